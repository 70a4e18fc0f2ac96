"""Evidence for EfficientViT-M: its attention beside timm's, counts, folded norms, times, and the zoo trial."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models import efficientvit_msra as timms
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.levit import Attention
from timm.models.mobilenetv3 import MobileNetV3
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from foveal.evidence.drawn import drawn_
from foveal.evidence.response import response
from foveal.evidence.rivals.folded import folded
from foveal.evidence.tasks.zoo import Zoo, widths
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.nn.efficientvit_m import CascadedGroupAttention, use_cascaded_
from foveal.record import equal, faster, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

# What the paper prints: parameters and multiply-adds at 224×224.
SIZES = {
    "M0": ("2.3 M", "79 M"),
    "M1": ("3.0 M", "167 M"),
    "M2": ("4.2 M", "201 M"),
    "M3": ("6.9 M", "263 M"),
    "M4": ("8.8 M", "299 M"),
    "M5": ("12.4 M", "522 M"),
}


def in_use(name: str, **options: Any) -> nn.Module:
    """A network of timm with our attention, its norms folded into the convolutions and the head.

    Args:
        name: "M0" to "M5".
        **options: of timm's network.

    Returns:
        (B, 3, H, W) to (B, 1000).
    """
    built = timm.create_model(f"efficientvit_{name.lower()}", **options).eval()
    folded_: nn.Module = reparameterize_model(use_cascaded_(built))
    return folded_


def _theirs(dim: int) -> nn.Module:
    """The attention of timm with two heads, on maps of 7×7."""
    return timms.CascadedGroupAttention(dim, 16, 2, attn_ratio=dim / 32, resolution=7, kernels=(7, 5))  # type: ignore[arg-type]


def _ours(dim: int) -> nn.Module:
    return CascadedGroupAttention(dim, 2, kernels=(7, 5))


def _attended(build: Callable[[int], nn.Module], *, backward: bool = False) -> Tensor:
    return response(build(24), 2, 24, 7, 7, backward=backward)


@torch.no_grad()
def _logits(*, ours: bool, folded_: bool = False) -> Tensor:
    torch.manual_seed(0)
    model: nn.Module = drawn_(timm.create_model("efficientvit_m2").eval())
    x = torch.randn(2, 3, 224, 224)
    model = use_cascaded_(model) if ours else model
    return (reparameterize_model(model) if folded_ else model)(x)


def small() -> nn.Module:
    """Heads and kernels of EfficientViT-M1 with fewer channels and blocks, on maps of 16×16, 8×8 and 4×4.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network: Any = timms.EfficientVitMsra(
        img_size=256,  # a map of 16×16 behind a stem of stride 16
        num_classes=10,
        embed_dim=(32, 48, 96),
        depth=(1, 1, 2),
        num_heads=(2, 3, 3),
        window_size=(8, 8, 4),
        kernels=(7, 5, 3),
    )
    network.patch_embed = timms.ConvNorm(3, 32, 3, 2, 1)  # stride 2 suits pictures of 32×32
    return use_cascaded_(network)


def mobilenetv3(dim: int) -> nn.Module:
    """The rival: blocks of MobileNetV3-Large by timm, on the same maps.

    Args:
        dim: channels of the stem; the published network has 16. All others follow, rounded to even numbers.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    blocks = [
        ["ds_r1_k3_s1_e1_c16_nre", "ir_r1_k3_s1_e4_c24_nre"],
        ["ir_r2_k5_s2_e3_c40_se0.25_nre"],
        ["ir_r1_k3_s2_e6_c80", "ir_r1_k3_s1_e2.5_c80", "ir_r1_k3_s1_e6_c112_se0.25"],
        ["cn_r1_k1_s1_c480"],
    ]
    rounded = partial(round_channels, multiplier=dim / 16, divisor=2)
    return MobileNetV3(
        decode_arch_def(blocks),
        num_classes=10,
        num_features=rounded(640),
        round_chs_fn=rounded,
        act_layer=nn.Hardswish,
    )


ZOO = Zoo(small, widths(mobilenetv3, range(24, 57)), "MobileNetV3", minutes=1.5)

# All heads see all channels: LeViT's attention with as many channels of queries, keys and values.
full_attention = partial(Attention, 288, 16, 3, attn_ratio=6.0, resolution=7, use_conv=True, act_layer=nn.ReLU)
cascaded = partial(CascadedGroupAttention, 288, 3, kernels=(7, 5, 3))

CLAIMS = (
    *(
        params(
            f"{name} of timm with our attention, its norms folded.",
            paper=size,
            model=partial(in_use, name),
            expect=size,
            clause=1,
        )
        for name, (size, _) in SIZES.items()
    ),
    equal(
        "Norms folded into convolutions and head leave the logits of timm's M2.",
        ours=lambda: _logits(ours=True, folded_=True),
        theirs=lambda: _logits(ours=False),
        tolerance=1e-4,
        clause=2,
    ),
    faster(
        "M2 classifies at least twice as many pictures a second as MobileViT-XXS, both folded, one thread, 16 pictures "
        "of 224×224 and of 256×256.",
        paper="3.7× on a processor",
        ours=call(partial(in_use, "M2"), 16, 3, 224, 224),
        theirs=call(folded(partial(timm.create_model, "mobilevit_xxs")), 16, 3, 256, 256),
        at_least=2.0,
        threads=1,
        clause=3,
    ),
    faster(
        "M5 classifies more than MobileNetV3-Large, both folded, one thread, 16 pictures of 224×224.",
        paper="1.45× on a processor",
        ours=call(partial(in_use, "M5"), 16, 3, 224, 224),
        theirs=call(folded(partial(timm.create_model, "mobilenetv3_large_100")), 16, 3, 224, 224),
        threads=1,
        clause=3,
    ),
    *ZOO.claims(clause=4),
    *(
        macs(
            f"{name} at 224×224.",
            paper=cost,
            model=partial(in_use, name),
            shape=(1, 3, 224, 224),
            expect=cost,
            tolerance=0.02,
            beyond="multiply-adds as printed",
        )
        for name, (_, cost) in SIZES.items()
    ),
    equal(
        "The attention equals timm's with the same weights.",
        ours=lambda: _attended(_ours),
        theirs=lambda: _attended(_theirs),
        beyond="the operator",
    ),
    equal(
        "So do its gradients in training for the map and for all weights.",
        ours=lambda: _attended(_ours, backward=True),
        theirs=lambda: _attended(_theirs, backward=True),
        beyond="the operator",
    ),
    smaller(
        "The attention of M5's second stage takes at most 2/3 of what three heads take that each see all channels.",
        paper="heads project a part of the channels",
        ours=lambda: float(count_macs(cascaded(), (1, 288, 7, 7))),
        theirs=lambda: float(count_macs(nn.Sequential(full_attention()), (1, 288, 7, 7))),
        at_least=1.5,
        beyond="computation saved by splitting the channels",
    ),
)
