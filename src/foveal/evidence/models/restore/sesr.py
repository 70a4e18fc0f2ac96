"""Evidence for SESR: the collapsed network against the expanded one, counts against the table, time against FSRCNN's.

The paper truncates instead of rounding: 105,376 is printed as 105.37 K, 3,115,008,000 as 3.11 G. Counts are compared
exactly.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.tasks import photos
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.models.restore.sesr import SESR, sesr_m11, sesr_xl
from foveal.record import equal, faster, kept, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 2000
luma = partial(SESR, 2, in_channels=1)  # M5 as the paper measures it


def _kernels(build: Callable[..., SESR]) -> nn.Module:
    """The collapsed convolutions alone: the paper's counts leave out the PReLU slopes, f per block."""
    network = build(2, in_channels=1).collapse()
    return nn.ModuleList([network.first, *network.blocks, network.last])


def _collapsed() -> SESR:
    return luma().collapse()


def _collapsing(*, collapsed: bool) -> Tensor:
    torch.manual_seed(0)
    network, x = luma(), torch.rand(2, 1, 33, 47)
    with torch.inference_mode():
        return network.collapse()(x) if collapsed else network.expanded(x)


class _Expanded(nn.Module):
    """M5 in training as two convolutions a block."""

    def __init__(self) -> None:
        super().__init__()
        self.network = luma()

    def forward(self, x: Tensor) -> Tensor:
        return self.network.expanded(x)


def _fsrcnn() -> nn.Module:
    """FSRCNN with d = 56, s = 12, m = 4 at ×2 (arXiv:1608.00367), the network the paper compares with."""
    shapes = [(1, 56, 5), (56, 12, 1), (12, 12, 3), (12, 12, 3), (12, 12, 3), (12, 12, 3), (12, 56, 1)]
    layers: list[nn.Module] = []
    for inputs, outputs, k in shapes:
        layers += [nn.Conv2d(inputs, outputs, k, padding=k // 2), nn.PReLU(outputs)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(56, 1, 9, stride=2, padding=4, output_padding=1))


def _gain(seed: int) -> float:
    model = photos.trained(SESR, 2, steps=STEPS, seed=seed, luminance=True)
    assert isinstance(model, SESR)
    return photos.gain(model.collapse(), 2, luminance=True)


CLAIMS = (
    macs(
        "M5 in training, a batch of 32 pictures of 64×64, as two convolutions a block.",
        paper="41.77 G",
        model=_Expanded,
        shape=(32, 1, 64, 64),
        expect=41_775_267_840,
        beyond="cost of training expanded",
    ),
    smaller(
        "Multiplied out before each training step, the same forward pass takes a twentieth of that.",
        paper="22.7 times, 1.84 G",
        ours=lambda: count_macs(luma(), (32, 1, 64, 64)),
        theirs=lambda: count_macs(_Expanded(), (32, 1, 64, 64)),
        at_least=22.7,
        beyond="cost of training collapsed",
    ),
    params("M5 ×2, collapsed.", paper="13.52 K", model=partial(_kernels, SESR), expect=13_520, clause=2),
    params("M11 ×2, collapsed.", paper="27.34 K", model=partial(_kernels, sesr_m11), expect=27_344, clause=2),
    params("XL ×2, collapsed.", paper="105.37 K", model=partial(_kernels, sesr_xl), expect=105_376, clause=2),
    macs(
        "M5 ×2 to 1280×720, collapsed.",
        paper="3.11 G",
        model=_collapsed,
        shape=(1, 1, 360, 640),
        expect=3_115_008_000,
        clause=2,
    ),
    equal(
        "The collapsed network equals the expanded one.",
        ours=lambda: _collapsing(collapsed=True),
        theirs=lambda: _collapsing(collapsed=False),
        tolerance=1e-4,
        clause=1,
    ),
    faster(
        "M5 ×2 takes less processor time than FSRCNN, 640×360 to 1280×720.",
        paper="1.5 to 2 times on a phone",
        ours=call(_collapsed, 1, 1, 360, 640),
        theirs=call(_fsrcnn, 1, 1, 360, 640),
        clause=4,
    ),
    kept(
        "After a minute of training, M5 ×2 is at least 1 dB above bicubic on pictures it has not seen.",
        paper="37.39 dB on Set5, trained for days",
        quality=_gain,
        at_least=1.0,
        data=f"{STEPS} steps on bsds400; first 30 of Set5, Set14 and BSD100, ×2, luminance, shave 2; collapsed",
        needs=photos.NEEDS,
        clause=3,
    ),
)
