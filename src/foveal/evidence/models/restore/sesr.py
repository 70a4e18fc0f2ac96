"""Evidence of foveal.models.restore.sesr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.models.restore.sesr import SESR, sesr_m5, sesr_m11, sesr_xl
from foveal.record import equal, faster, kept, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


def _kernels(build: Callable[..., SESR]) -> nn.Module:
    """The collapsed convolutions alone: the paper's counts leave out the PReLU slopes, f of them a block."""
    network = build(2, in_channels=1).collapse()
    return nn.ModuleList([network.first, *network.blocks, network.last])


def _collapsing(*, collapsed: bool) -> Tensor:
    torch.manual_seed(0)
    network, x = sesr_m5(2, in_channels=1), torch.rand(2, 1, 33, 47)
    with torch.inference_mode():
        return network.collapse()(x) if collapsed else network.expanded(x)


class _Expanded(nn.Module):
    def __init__(self, network: SESR) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.expanded(x)


def _training_macs(model: nn.Module) -> float:
    from foveal.measure.cost import count_macs

    return float(count_macs(model, (32, 1, 64, 64)))


def _fsrcnn() -> nn.Module:
    """FSRCNN with d = 56, s = 12, m = 4 at ×2 (arXiv:1608.00367), the network the paper compares with."""
    shapes = [(1, 56, 5), (56, 12, 1), (12, 12, 3), (12, 12, 3), (12, 12, 3), (12, 12, 3), (12, 56, 1)]
    layers: list[nn.Module] = []
    for inputs, outputs, k in shapes:
        layers += [nn.Conv2d(inputs, outputs, k, padding=k // 2), nn.PReLU(outputs)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(56, 1, 9, stride=2, padding=4, output_padding=1)).eval()


def _timed(model: nn.Module) -> Callable[[], Any]:
    x = torch.rand(1, 1, 360, 640)

    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return call


def _gain(seed: int) -> float:
    from foveal.evidence.tasks.photos import gain, trained

    model = trained(sesr_m5, 2, steps=2000, seed=seed, luminance=True)
    assert isinstance(model, SESR)
    return gain(model.collapse(), 2, luminance=True)


CLAIMS = (
    macs(
        "M5 in training, a batch of 32 pictures of 64×64, as two convolutions a block.",
        paper="41.77 G",
        model=lambda: _Expanded(sesr_m5(2, in_channels=1)),
        shape=(32, 1, 64, 64),
        expect=41_775_267_840,
    ),
    smaller(
        "Multiplied out before each training step, the same forward pass takes a twentieth of that.",
        paper="22.7 times, 1.84 G",
        ours=lambda: _training_macs(sesr_m5(2, in_channels=1)),
        theirs=lambda: _training_macs(_Expanded(sesr_m5(2, in_channels=1))),
        at_least=22.7,
    ),
    params("M5 ×2, collapsed.", paper="13.52 K", model=lambda: _kernels(sesr_m5), expect=13_520),
    params("M11 ×2, collapsed.", paper="27.34 K", model=lambda: _kernels(sesr_m11), expect=27_344),
    params("XL ×2, collapsed.", paper="105.37 K", model=lambda: _kernels(sesr_xl), expect=105_376),
    macs(
        "M5 ×2 to 1280×720, collapsed.",
        paper="3.11 G",
        model=lambda: sesr_m5(2, in_channels=1).collapse(),
        shape=(1, 1, 360, 640),
        expect=3_115_008_000,
    ),
    equal(
        "The collapsed network equals the expanded one.",
        ours=lambda: _collapsing(collapsed=True),
        theirs=lambda: _collapsing(collapsed=False),
        tolerance=1e-4,
    ),
    faster(
        "M5 ×2 takes less processor time than FSRCNN, 640×360 to 1280×720.",
        paper="1.5 to 2 times on a phone",
        ours=lambda: _timed(sesr_m5(2, in_channels=1).collapse().eval()),
        theirs=lambda: _timed(_fsrcnn()),
    ),
    kept(
        "After a minute of training, M5 ×2 is at least 1 dB above bicubic on pictures it has not seen.",
        paper="37.39 dB on Set5, trained for days",
        quality=_gain,
        at_least=1.0,
        data="trained on BSDS500 without BSD100; Set5, Set14 and BSD100, ×2, luminance, shave 2",
        needs=("minutes", "bsds400", "Set5", "Set14", "BSD100"),
    ),
)
