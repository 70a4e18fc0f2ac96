"""Evidence for LeViT: its attention beside timm's, counts, folded norms, time beside EfficientNet, the zoo trial."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from timm.models import EfficientNet
from timm.models import levit as timms
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from foveal.evidence.drawn import drawn_
from foveal.evidence.response import response
from foveal.evidence.rivals.folded import folded
from foveal.evidence.tasks.zoo import Zoo, widths
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.nn.levit import BiasedAttention, ShrinkingAttention, use_biased_
from foveal.record import equal, faster, macs, params, smaller

# What the paper prints: parameters in millions, and multiply-adds.
SIZES = {
    "128s": (7.8, "305 M"),
    "128": (9.2, "406 M"),
    "192": (11.0, "658 M"),
    "256": (18.9, "1120 M"),
    "384": (39.1, "2353 M"),
}


def published(name: str) -> nn.Module:
    """A network of timm with our attention and both heads, as the published ones were trained.

    Args:
        name: "128s" to "384".

    Returns:
        (B, 3, 224, 224) to (B, 1000).
    """
    return use_biased_(timm.create_model(f"levit_{name}"))


def in_use(name: str) -> nn.Module:
    """The same with its norms folded into the layers before them and into the heads.

    Args:
        name: "128s" to "384".

    Returns:
        (B, 3, 224, 224) to (B, 1000).
    """
    model: nn.Module = reparameterize_model(published(name).eval())
    return model


# Layers by whether they are ours, and whether they shrink the map.
_LAYERS = {
    (True, False): lambda: BiasedAttention(12, 3, key_dim=4, size=(5, 6)),
    (False, False): lambda: timms.Attention(12, 4, 3, 2.0, (5, 6), act_layer=nn.Hardswish),
    (True, True): lambda: ShrinkingAttention(12, 20, 3, key_dim=4, size=(5, 6)),
    (False, True): lambda: timms.AttentionDownsample(12, 20, 4, 3, 4.0, 2, (5, 6), act_layer=nn.Hardswish),
}


def _attended(*, ours: bool, shrinks: bool, backward: bool = False) -> Tensor:
    return response(_LAYERS[ours, shrinks](), 2, 30, 12, backward=backward)


@torch.no_grad()
def _logits(*, ours: bool, merged: bool = False) -> Tensor:
    torch.manual_seed(0)
    model: nn.Module = drawn_(timm.create_model("levit_128s").eval())
    x = torch.randn(2, 3, 224, 224)
    model = use_biased_(model) if ours else model
    return (reparameterize_model(model) if merged else model)(x)


def small() -> nn.Module:
    """A quarter of LeViT-128S's channels and fewer blocks, on maps of 16×16, 8×8 and 4×4.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network: Any = timms.Levit(
        img_size=32,
        num_classes=10,
        embed_dim=(32, 64, 96),
        key_dim=16,
        num_heads=(2, 3, 4),
        depth=(1, 1, 2),
        stem_backbone=timms.ConvNorm(3, 32, 3, 2, 1),  # stride 2 in place of 16 suits pictures of 32×32
        stem_stride=2,
    )
    return use_biased_(network)


def efficientnet(dim: int) -> nn.Module:
    """The rival: blocks of EfficientNet by timm, on the same maps.

    Args:
        dim: channels of the stem; EfficientNet-B0 has 32. All others follow, rounded to even numbers.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    blocks = [
        ["ds_r1_k3_s1_e1_c16_se0.25", "ir_r1_k3_s1_e6_c24_se0.25"],
        ["ir_r2_k5_s2_e6_c40_se0.25"],
        ["ir_r1_k3_s2_e6_c80_se0.25", "ir_r1_k5_s1_e6_c112_se0.25"],
    ]
    rounded = partial(round_channels, multiplier=dim / 32, divisor=2)
    return EfficientNet(
        decode_arch_def(blocks),
        num_classes=10,
        num_features=rounded(480),
        stem_size=32,
        round_chs_fn=rounded,
        act_layer=nn.SiLU,
    )


ZOO = Zoo(small, widths(efficientnet, range(30, 93, 2)), "EfficientNet", minutes=1.5)

CLAIMS = (
    *(
        params(
            f"LeViT-{name.upper()} of timm with our attention.",
            paper=f"{size} M",
            model=partial(published, name),
            expect=f"{size} M",
            tolerance=0.1 / size,
            clause=1,
        )
        for name, (size, _) in SIZES.items()
    ),
    equal(
        "Norms folded into linear layers and heads leave the logits of timm's LeViT-128S.",
        ours=lambda: _logits(ours=True, merged=True),
        theirs=lambda: _logits(ours=False),
        tolerance=1e-4,
        clause=2,
    ),
    faster(
        "LeViT-192 (80.0 % on ImageNet) takes at most half the time of EfficientNet-B1 (79.1 %), both folded, eight "
        "pictures of 224×224 and of 240×240.",
        paper="5× faster at 80 %",
        ours=call(partial(in_use, "192"), 8, 3, 224, 224),
        theirs=call(folded(partial(timm.create_model, "efficientnet_b1")), 8, 3, 240, 240),
        at_least=2.0,
        clause=3,
    ),
    faster(
        "LeViT-256 (81.6 %) takes less time than EfficientNet-B2 (80.1 %), both folded, eight pictures of 224×224 and "
        "of 260×260.",
        paper="5× faster at 80 %",
        ours=call(partial(in_use, "256"), 8, 3, 224, 224),
        theirs=call(folded(partial(timm.create_model, "efficientnet_b2")), 8, 3, 260, 260),
        at_least=1.2,
        clause=3,
    ),
    *ZOO.claims(clause=4),
    *(
        macs(
            f"LeViT-{name.upper()} at 224×224.",
            paper=cost,
            model=partial(published, name),
            shape=(1, 3, 224, 224),
            expect=cost,
            tolerance=0.02,
            beyond="multiply-adds as printed",
        )
        for name, (_, cost) in SIZES.items()
    ),
    *(
        equal(
            f"{name} equals timm's with the same weights{', gradients in training' if backward else ''}.",
            ours=partial(_attended, ours=True, shrinks=shrinks, backward=backward),
            theirs=partial(_attended, ours=False, shrinks=shrinks, backward=backward),
            beyond="the operators",
        )
        for name, shrinks in (("The attention", False), ("The shrinking attention", True))
        for backward in (False, True)
    ),
    smaller(
        "Keys of half the values' channels save a quarter of the attention's multiply-adds in LeViT-128's first stage.",
        paper="keys narrower than values",
        ours=lambda: float(count_macs(BiasedAttention(128, 4), (1, 196, 128))),
        theirs=lambda: float(count_macs(BiasedAttention(128, 4, key_dim=32, attn_ratio=1.0), (1, 196, 128))),
        at_least=1.33,
        beyond="keys narrower than values",
    ),
)
