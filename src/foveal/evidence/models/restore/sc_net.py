"""Evidence for SCNet: its shifts against sparse 3×3 convolutions, and against EDSR with as many weights."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.edsr import EDSR, Block
from foveal.evidence.tasks import equal_minutes
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs, count_parameters
from foveal.models.restore.sc_net import SCNet, SCResBlock
from foveal.nn.channel_shift import ShiftConv2d
from foveal.record import bound, equal, faster, macs, params, smaller

small = partial(SCNet, dim=32, depth=9)
plain = partial(EDSR, dim=12, depth=7)  # 3×3 convolutions, as many parameters to 1 %


def _expanded(network: nn.Module) -> nn.Module:
    """A copy whose shifts and 1×1 convolutions are 3×3 convolutions."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, ShiftConv2d):
                setattr(module, name, child.expanded())
    return network


def _output(*, expanded: bool) -> Tensor:
    torch.manual_seed(0)
    network, x = SCNet(2, dim=32, depth=4).double().eval(), torch.rand(2, 3, 23, 31, dtype=torch.float64)
    with torch.inference_mode():
        return (_expanded(network) if expanded else network)(x)


def _block(*, plain: bool) -> nn.Module:
    """A block with shifts, or one of two 3×3 convolutions."""
    return Block(64) if plain else SCResBlock(64)


def _layer(kernel_size: int) -> float:
    return count_macs(nn.Conv2d(64, 64, kernel_size, padding=kernel_size // 2), (1, 64, 48, 48))


CLAIMS = (
    equal(
        "The network equals the one whose shifts and 1×1 convolutions are sparse 3×3 convolutions.",
        ours=lambda: _output(expanded=False),
        theirs=lambda: _output(expanded=True),
        tolerance=1e-6,
        clause=1,
    ),
    equal_minutes.better(
        small,
        "After equal processor minutes a small ×2 is at most 0.1 dB below EDSR with as many parameters.",
        than=plain,
        scale=2,
        minutes=1,
        by=-0.1,
        paper="matches or surpasses networks of 3×3 convolutions",
        clause=2,
    ),
    bound(
        "The two have the same number of parameters to 1 %.",
        paper="",
        value=lambda: count_parameters(small(2)) / count_parameters(plain(2)),
        at_least=0.99,
        at_most=1.01,
        clause=2,
    ),
    faster(
        "The small network takes no more processor time than EDSR with as many parameters, 320×180 to 640×360.",
        paper="",
        ours=call(partial(small, 2), 1, 3, 180, 320),
        theirs=call(partial(plain, 2), 1, 3, 180, 320),
        at_least=1.0,
        beyond="latency of the two",
    ),
    smaller(
        "A layer takes a ninth of the multiply-adds of a 3×3 convolution.",
        paper="1 / 9",
        ours=lambda: _layer(1),
        theirs=lambda: _layer(3),
        at_least=9,
        beyond="compute of a layer",
    ),
    params(
        "Parameters of SCNet-T ×4, interpolated.",
        paper="authors' code",
        model=partial(SCNet, shuffle=False),
        expect=154_371,
        beyond="size of SCNet-T",
    ),
    macs(
        "Multiply-adds of SCNet-T ×4 to 1280×720, shuffled.",
        paper="layer sizes",
        model=SCNet,
        shape=(1, 3, 180, 320),
        expect=57_600 * (3 * 64 + 32 * 64**2 + 5 * 64**2 + 4 * 5 * 64**2 + 16 * (64**2 + 3 * 64)),
        beyond="cost of SCNet-T",
    ),
    faster(
        "A block of 64 channels takes less processor time than one of 3×3 convolutions, 320×180.",
        paper="a ninth of the multiply-adds",
        ours=call(partial(_block, plain=False), 1, 64, 180, 320),
        theirs=call(partial(_block, plain=True), 1, 64, 180, 320),
        beyond="time of a block",
    ),
)
