"""Evidence for SHViT: its attention beside timm's, counts, folded norms, time beside MobileViTv2, and the zoo trial."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.layers import ConvNormAct
from timm.models import shvit as timms
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from foveal.evidence.drawn import drawn_
from foveal.evidence.response import response
from foveal.evidence.rivals.mobilevitv2 import mobilevitv2
from foveal.evidence.tasks.zoo import Zoo, widths
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.nn.shvit import SHSA, use_single_head_
from foveal.record import equal, faster, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

shvit_s4 = partial(timm.create_model, "shvit_s4")


def published() -> nn.Module:
    """SHViT-S4 of timm with our attention.

    Returns:
        (B, 3, H, W) to (B, 1000).
    """
    return use_single_head_(shvit_s4())


def in_use() -> nn.Module:
    """The same as it is used: norms folded into the convolutions and the head.

    Returns:
        (B, 3, H, W) to (B, 1000).
    """
    folded: nn.Module = reparameterize_model(published().eval())
    return folded


def mobilevitv2_in_use() -> nn.Module:
    """MobileViTv2 ×1.0 of timm with its batch norms folded too.

    Returns:
        (B, 3, H, W) to (B, 1000).
    """
    model: nn.Module = timm.create_model("mobilevitv2_100").eval()
    for layer in [module for module in model.modules() if isinstance(module, ConvNormAct)]:
        norm: Any = layer.bn
        layer.conv = fuse_conv_bn_eval(layer.conv, norm)
        layer.bn = norm.act
    return model


def _attended(build: Callable[..., nn.Module], *, backward: bool = False) -> Tensor:
    return response(build(28, qk_dim=16), 2, 28, 13, 11, backward=backward)


@torch.no_grad()
def _logits(*, ours: bool, folded: bool = False) -> Tensor:
    torch.manual_seed(0)
    model = drawn_(shvit_s4().eval())
    x = torch.randn(2, 3, 160, 128)
    model = use_single_head_(model) if ours else model
    return (reparameterize_model(model) if folded else model)(x)


def small() -> nn.Module:
    """A quarter of the channels and a third of the blocks of SHViT-S4, on its maps of 16×16, 8×8 and 4×4.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network: Any = timms.SHViT(
        num_classes=10,
        embed_dim=(56, 84, 112),
        partial_dim=(12, 18, 24),
        qk_dim=(16, 16, 16),
        depth=(1, 2, 2),
        types=("i", "s", "s"),
    )
    network.patch_embed = timms.Conv2dNorm(3, 56, 3, 2, 1)  # stride 2 in place of 16 suits pictures of 32×32
    return use_single_head_(network)


ZOO = Zoo(small, widths(mobilevitv2, range(64, 145, 2)), "MobileViTv2", minutes=1.5)

CLAIMS = (
    params("timm's SHViT-S4 with our attention.", paper="16.5 M", model=published, expect="16.59 M", clause=1),
    macs(
        "timm's SHViT-S4 with our attention, at 256×256.",
        paper="986 M",
        model=published,
        shape=(1, 3, 256, 256),
        expect="0.986 G",
        clause=1,
    ),
    equal(
        "The attention equals timm's with the same weights.",
        ours=lambda: _attended(partial(SHSA, partial_dim=6)),
        theirs=lambda: _attended(partial(timms.SHSA, pdim=6)),
        tolerance=1e-5,
        clause=2,
    ),
    equal(
        "So do its gradients in training for the map and for all weights.",
        ours=lambda: _attended(partial(SHSA, partial_dim=6), backward=True),
        theirs=lambda: _attended(partial(timms.SHSA, pdim=6), backward=True),
        tolerance=1e-5,
        clause=2,
    ),
    equal(
        "timm's SHViT-S4 gives the same logits with our attention and the weights of its own.",
        ours=lambda: _logits(ours=True),
        theirs=lambda: _logits(ours=False),
        tolerance=1e-5,
        clause=2,
    ),
    faster(
        "SHViT-S4 takes at most a third of the time of MobileViTv2 ×1.0, both folded, eight pictures of 256×256.",
        paper="8.1× on a processor",
        ours=call(in_use, 8, 3, 256, 256),
        theirs=call(mobilevitv2_in_use, 8, 3, 256, 256),
        at_least=3.0,
        clause=3,
    ),
    *ZOO.claims(clause=4),
    equal(
        "Norms folded into convolutions and head leave the logits of SHViT-S4.",
        ours=lambda: _logits(ours=True, folded=True),
        theirs=lambda: _logits(ours=False),
        tolerance=1e-4,
        beyond="batch norms cost nothing in use",
    ),
    smaller(
        "Attention in 72 of 336 channels takes at most half the multiply-adds of attention in all, 16×16 pixels.",
        paper="memory and arithmetic saved by the partial ratio",
        ours=lambda: float(count_macs(SHSA(336, 72), (1, 336, 16, 16))),
        theirs=lambda: float(count_macs(SHSA(336, 336), (1, 336, 16, 16))),
        at_least=2.0,
        beyond="attention in part of the channels",
    ),
)
