"""Evidence for UniRepLKNet: one kernel in place of its branches, counts, the field that it sees, and the zoo trial."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.evidence.drawn import drawn_
from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10
from foveal.evidence.tasks.zoo import MixerNet, Zoo, depthwise, widths
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.models.backbone.unireplknet import (
    DilatedReparam,
    UniRepLKNet,
    merged_kernel,
    unireplknet_a,
    unireplknet_f,
    unireplknet_n,
    unireplknet_p,
    unireplknet_s,
    unireplknet_t,
)
from foveal.record import bound, equal, faster, kept, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 200


def drawn(build: Callable[[], UniRepLKNet]) -> UniRepLKNet:
    """A network with all weights and statistics drawn: at their initial values γ and β would hide what is folded.

    Args:
        build: builder of the network.

    Returns:
        The network in eval mode.
    """
    torch.manual_seed(0)
    return drawn_(build().eval())


@torch.no_grad()
def _logits(*, folded: bool) -> Tensor:
    model = drawn(unireplknet_t)
    x = torch.randn(2, 3, 96, 64)
    return model.fold()(x) if folded else model(x)


def _branches(*, merged: bool) -> Tensor:
    torch.manual_seed(0)
    x, large, small = torch.randn(2, 5, 17, 12), torch.randn(5, 1, 13, 13), torch.randn(5, 1, 7, 7)
    if merged:
        return torch.conv2d(x, merged_kernel(large, [small], [2]), padding=6, groups=5)
    return torch.conv2d(x, large, padding=6, groups=5) + torch.conv2d(x, small, padding=6, dilation=2, groups=5)


class Large(DilatedReparam):
    """The network's 13×13 operator, folded whenever it does not train, (B, C, H, W) to the same.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 13)
        self.folded: list[nn.Conv2d] = []  # a list, so that it is no part of the state

    def train(self, mode: bool = True) -> Large:
        """Fold, or forget what was folded.

        Args:
            mode: whether it trains.

        Returns:
            The module.
        """
        super().train(mode)
        self.folded = [] if mode else [self.fold()]
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.folded[0](x) if self.folded else super().forward(x)


def large(dim: int = 40) -> MixerNet:
    """A small network whose stages have one block with a large kernel and one with a 3×3 kernel.

    Args:
        dim: channels of the first stage.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network: Any = MixerNet(depthwise, dim)
    for stage, channels in ((network.stage1, dim), (network.stage2, 2 * dim)):
        stage[0].mixer = Large(channels)
    built: MixerNet = network
    return built


stack = partial(MixerNet, depthwise, depths=(3, 3))


def half(gradient: Tensor, centre: float) -> float:
    """Side of the square around a place that holds half of a map.

    Args:
        gradient: map of weights, (H, H), at least 0.
        centre: row and column of the place; half a pixel is a corner between four.

    Returns:
        Side in pixels, interpolated between whole rings.
    """
    away = (torch.arange(len(gradient)) - centre).abs()
    rings = torch.maximum(away[:, None], away[None])
    distances = rings.unique()
    held = torch.stack([gradient[rings <= distance].sum() for distance in distances]) / gradient.sum()
    last = int((held < 0.5).sum())
    before, side = (0.0, 0.0) if not last else (float(held[last - 1]), 2 * float(distances[last - 1]) + 1)
    return side + (2 * float(distances[last]) + 1 - side) * (0.5 - before) / (float(held[last]) - before)


@cached(maxsize=8)
def field(build: Callable[[], MixerNet], seed: int) -> float:
    """The effective receptive field of a trained network: where a cell in the middle of its last map looks.

    Args:
        build: builder of the network.
        seed: seed of weights and batches.

    Returns:
        Side of the square that holds half of the gradient's absolute values, pixels of 32.
    """
    network = cifar10.trained(build, steps=STEPS, seed=seed)
    assert isinstance(network, MixerNet)
    x = cifar10.pictures("test", limit=100)[0].clone().requires_grad_()
    with torch.enable_grad():
        last = network.stage2(network.down(network.stage1(network.stem(x))))
        (gradient,) = torch.autograd.grad(last[..., 4, 4].sum(), x)
    # cell (4, 4) stands for pixels 16 to 19
    return half(gradient.abs().sum((0, 1)), 17.5)


def _relative() -> float:
    """Multiply-adds of the stack over those of the network, folded."""
    shape, network = (1, 3, 32, 32), large()
    network.stage1[0].mixer, network.stage2[0].mixer = (nn.Conv2d(c, c, 13, padding=6, groups=c) for c in (40, 80))
    return count_macs(TWIN(), shape) / count_macs(network, shape)


TWIN = partial(stack, 38)
ZOO = Zoo(large, widths(stack, range(24, 57, 2)), "a 3×3 stack", minutes=1.5)

CLAIMS = (
    equal(
        "UniRepLKNet-T with one convolution a block gives the logits of the one with branches.",
        ours=lambda: _logits(folded=True),
        theirs=lambda: _logits(folded=False),
        tolerance=1e-4,
        clause=1,
    ),
    equal(
        "A dilated kernel is a large one with zeros between its taps.",
        ours=lambda: _branches(merged=True),
        theirs=lambda: _branches(merged=False),
        beyond="branches merge exactly",
    ),
    faster(
        "Folded, UniRepLKNet-A takes less time at 224×224.",
        paper="branches cost nothing in use",
        ours=call(lambda: unireplknet_a().fold(), 1, 3, 224, 224),
        theirs=call(unireplknet_a, 1, 3, 224, 224),
        clause=2,
    ),
    *(
        params(f"UniRepLKNet-{name}, folded.", paper=size, model=lambda b=build: b().fold(), expect=size, clause=3)  # type: ignore[misc]
        for name, build, size in (("T", unireplknet_t, "31 M"), ("S", unireplknet_s, "56 M"))
    ),
    *(
        params(
            f"UniRepLKNet-{name}, folded.",
            paper=size,
            model=lambda b=build: b().fold(),  # type: ignore[misc]
            expect=size,
            beyond="sizes of the smaller networks",
        )
        for name, build, size in (
            ("A", unireplknet_a, "4.4 M"),
            ("F", unireplknet_f, "6.2 M"),
            ("P", unireplknet_p, "10.7 M"),
            ("N", unireplknet_n, "18.3 M"),
        )
    ),
    *(
        macs(
            f"UniRepLKNet-{name} at 224×224, folded.",
            paper=cost,
            model=lambda b=build: b().fold(),  # type: ignore[misc]
            shape=(1, 3, 224, 224),
            expect=cost,
            beyond="cost as printed",
        )
        for name, build, cost in (("T", unireplknet_t, "4.9 G"), ("S", unireplknet_s, "9.1 G"))
    ),
    bound(
        "The 3×3 stack with which fields are compared takes as many multiply-adds, within 5 %.",
        paper="equal",
        value=_relative,
        at_least=0.95,
        at_most=1.05,
        unit="of the network's",
        clause=4,
    ),
    kept(
        "A trained network sees farther: its effective receptive field is at least a pixel wider than the stack's.",
        paper="wide without going deep",
        quality=lambda seed: field(large, seed) - field(TWIN, seed),
        at_least=1.0,
        unit="pixels",
        data=f"{STEPS} steps on CIFAR-10, gradients on the first 100 test pictures; the square that holds half of them",
        needs=cifar10.NEEDS,
        clause=4,
    ),
    *ZOO.claims(clause=5),
)
