"""Evidence for LSNet: its aggregation by unfolding, counts, times beside RepViT and EfficientViM, and the zoo trial."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models.repvit import ConvNorm, RepVit
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from foveal.evidence.drawn import drawn_
from foveal.evidence.tasks.zoo import Zoo, widths
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.models.backbone.lsnet import (
    LSConv,
    LSNet,
    dynamic_aggregation,
    dynamic_aggregation_reference,
    lsnet_b,
    lsnet_s,
    lsnet_t,
)
from foveal.record import equal, faster, grows, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


def _aggregated(function: Callable[[Tensor, Tensor], Tensor], *, backward: bool = False) -> Tensor:
    """What an aggregation gives, or the gradients of the sum of its squares."""
    torch.manual_seed(0)
    x, weights = torch.randn(2, 24, 13, 11, requires_grad=True), torch.randn(2, 3, 9, 13, 11, requires_grad=True)
    out = function(x, weights)
    if not backward:
        return out.detach()
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(out.square().sum(), (x, weights))])


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with all weights and statistics drawn: at its initial values, half of each block adds nothing.

    Args:
        build: builder of the network.

    Returns:
        The network in eval mode.
    """
    torch.manual_seed(0)
    return drawn_(build().eval())


@torch.no_grad()
def _logits(*, merged: bool) -> Tensor:
    model = drawn(lsnet_t)
    for name, value in model.named_parameters():
        if name.endswith(("ffn.2.bn.weight", "mixer.bn.weight", "proj.1.bn.weight")):
            value.mul_(0.2)  # branches add a part: else maps grow from block to block, and attention turns on rounding
    x = torch.randn(2, 3, 96, 64)
    return (reparameterize_model(model) if merged else model)(x)


def _merged(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A network as it is used: norms and branches in the convolutions before them."""
    return lambda: reparameterize_model(build().eval())


def repvit(dim: int) -> nn.Module:
    """The rival: timm's RepViT with three stages, on maps of 16×16, 8×8 and 4×4.

    Args:
        dim: channels of the first stage, even; the others have twice and three times as many.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network: Any = RepVit(
        num_classes=10, embed_dim=(dim, 2 * dim, 3 * dim), depth=(1, 1, 1), distillation=False, legacy=True
    )
    network.stem = ConvNorm(3, dim, 3, 2, 1)  # stride 2 in place of 4 suits pictures of 32×32
    built: nn.Module = network
    return built


# Channels, blocks and classes of LSNet on the same maps.
small = partial(LSNet, dims=(48, 96, 144), depths=(2, 2, 2), patch_size=2, num_heads=3, num_classes=10)

SIZES = (
    ("T", lsnet_t, "11.4 M", "0.3 G"),
    ("S", lsnet_s, "16.1 M", "0.5 G"),
    ("B", lsnet_b, "23.2 M", "1.3 G"),
)
ZOO = Zoo(small, widths(repvit, range(24, 81, 2)), "RepViT", minutes=1.5)

CLAIMS = (
    equal(
        "The dynamic aggregation is that by unfolding.",
        ours=lambda: _aggregated(dynamic_aggregation),
        theirs=lambda: _aggregated(dynamic_aggregation_reference),
        clause=1,
    ),
    equal(
        "So are its gradients for the map and for the kernels.",
        ours=lambda: _aggregated(dynamic_aggregation, backward=True),
        theirs=lambda: _aggregated(dynamic_aggregation_reference, backward=True),
        clause=1,
    ),
    *(
        params(f"LSNet-{name}.", paper=size, model=build, expect=size, tolerance=0.02, clause=2)
        for name, build, size, _ in SIZES
    ),
    *(
        macs(
            f"LSNet-{name} at 224×224.",
            paper=cost,
            model=build,
            shape=(1, 3, 224, 224),
            expect=cost,
            tolerance=0.05,  # the authors count the aggregation and its norms too
            beyond="cost of the paper's networks",
        )
        for name, build, _, cost in SIZES
    ),
    macs(
        "The perception of 64 channels takes 21/16·64² + 24.5·64 multiply-adds a pixel.",
        paper="linear in the pixels",
        model=partial(LSConv, 64),
        shape=(1, 64, 14, 14),
        expect=14**2 * (21 * 64**2 // 16 + 49 * 32),
        beyond="cost of LS convolution",
    ),
    grows(
        "They grow with the pixels.",
        paper="linear in the pixels",
        cost=lambda side: float(count_macs(LSConv(16), (1, 16, side, side))),
        sizes=(8, 16, 32),
        of=lambda side: float(side**2),
        exponent=(0.999, 1.001),
        beyond="cost of LS convolution",
    ),
    smaller(
        "LS convolution takes at most a sixth of the multiply-adds of a dense 3×3 convolution of 256 channels.",
        paper="lightweight",
        ours=lambda: float(count_macs(LSConv(256), (1, 256, 14, 14))),
        theirs=lambda: float(count_macs(nn.Conv2d(256, 256, 3, padding=1), (1, 256, 14, 14))),
        at_least=6.0,
        beyond="cost of LS convolution",
    ),
    equal(
        "Norms and branches merged into the convolutions leave the logits of LSNet-T.",
        ours=lambda: _logits(merged=True),
        theirs=lambda: _logits(merged=False),
        tolerance=1e-4,
        beyond="branches cost nothing in use",
    ),
    faster(
        "LSNet-T takes less time than RepViT-M0.9, the smallest of timm, both merged, eight pictures of 224×224.",
        paper="faster than RepViT on an RTX 3090",
        ours=call(_merged(lsnet_t), 8, 3, 224, 224),
        theirs=call(_merged(partial(timm.create_model, "repvit_m0_9")), 8, 3, 224, 224),
        clause=3,
    ),
    faster(
        "It takes at most 1.5 times the time of EfficientViM-M1, which has fewer multiply-adds.",
        paper="14,708 pictures a second on an RTX 3090",
        ours=call(_merged(lsnet_t), 8, 3, 224, 224),
        theirs=call(_merged(partial(timm.create_model, "efficientvim_m1")), 8, 3, 224, 224),
        at_least=1 / 1.5,
        clause=3,
    ),
    *ZOO.claims(clause=4),
)
