"""Evidence for SwiftFormer: its attention beside timm's, counts, time over tokens, and the zoo trial."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.layers import Attention
from timm.models.swiftformer import EfficientAdditiveAttention, SwiftFormer
from torch import Tensor, nn

from foveal.evidence.rivals.mobilevitv2 import mobilevitv2
from foveal.evidence.tasks.zoo import Zoo, widths
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.nn.swiftformer import AdditiveAttention, use_additive_
from foveal.record import equal, faster, grows, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable

swiftformer_s = partial(timm.create_model, "swiftformer_s")


def published() -> nn.Module:
    """SwiftFormer-S of timm with our attention.

    Returns:
        (B, 3, H, W) to (B, 1000).
    """
    return use_additive_(swiftformer_s())


def _attended(build: Callable[[int], nn.Module], *, backward: bool = False) -> Tensor:
    """What an attention with drawn weights gives, or all its gradients of the sum of squares."""
    torch.manual_seed(0)
    layer, x = build(24), torch.randn(2, 24, 13, 11, requires_grad=True)
    for name, value in sorted(layer.state_dict().items()):
        value.normal_(std=1.0 if name == "w_g" else 24**-0.5)
    out = layer(x)
    if not backward:
        return out.detach()
    named = dict(layer.named_parameters())
    wanted = [x, *(named[name] for name in sorted(named))]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(out.square().sum(), wanted)])


@torch.no_grad()
def _logits(*, ours: bool) -> Tensor:
    """Logits with weights and statistics drawn: at its initial values an attention adds 1e-5 of its output."""
    torch.manual_seed(0)
    model = swiftformer_s().eval()
    for name, value in model.state_dict().items():
        if name.endswith(("gamma", "running_var")) or (name.endswith("weight") and value.ndim == 1):
            value.uniform_(0.5, 1.5)  # of a norm or of a branch
        elif "num_batches" not in name:
            value.normal_(std=0.3 if value.ndim == 1 else value[0].numel() ** -0.5)
    x = torch.randn(2, 3, 96, 64)
    return (use_additive_(model) if ours else model)(x)


def softmax_attention(dim: int) -> nn.Module:
    """What additive attention replaces: queries meet all keys, one head.

    Args:
        dim: C.

    Returns:
        timm's attention, (B, N, C) to the same.
    """
    return Attention(dim, num_heads=1, qkv_bias=True)


def small() -> nn.Module:
    """SwiftFormer of timm with our attention, on maps of 16×16, 8×8 and 4×4.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network: Any = SwiftFormer(
        layers=[2, 2, 2],
        embed_dims=[32, 64, 128],
        downsamples=[False, True, True],
        num_classes=10,
        layer_scale_init_value=0.1,  # 1e-5 needs more steps than these trainings have
    )
    # stride 2 in place of 4 suits pictures of 32×32
    network.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
    return use_additive_(network)


ZOO = Zoo(small, widths(mobilevitv2, range(48, 113, 2)), "MobileViTv2", minutes=1.5)

attention = partial(AdditiveAttention, 48)  # channels of the first stage of SwiftFormer-S
softmax = partial(softmax_attention, 48)

CLAIMS = (
    params("timm's SwiftFormer-S with our attention.", paper="6.1 M", model=published, expect="6.092 M", clause=1),
    macs(
        "timm's SwiftFormer-S with our attention, at 224×224.",
        paper="1.0 G",
        model=published,
        shape=(1, 3, 224, 224),
        expect="0.985 G",
        clause=1,
    ),
    equal(
        "The attention equals timm's with the same weights.",
        ours=lambda: _attended(AdditiveAttention),
        theirs=lambda: _attended(lambda dim: EfficientAdditiveAttention(dim, dim)),
        tolerance=1e-5,
        clause=2,
    ),
    equal(
        "So do its gradients for the map and for all weights.",
        ours=lambda: _attended(AdditiveAttention, backward=True),
        theirs=lambda: _attended(lambda dim: EfficientAdditiveAttention(dim, dim), backward=True),
        tolerance=1e-5,
        clause=2,
    ),
    equal(
        "timm's SwiftFormer-S gives the same logits with our attention and the weights of its own.",
        ours=lambda: _logits(ours=True),
        theirs=lambda: _logits(ours=False),
        tolerance=1e-5,
        clause=2,
    ),
    faster(
        "8,192 tokens take at most 2.4 times the time of 4,096.",
        paper="linear in the tokens",
        ours=call(attention, 1, 48, 64, 128),
        theirs=call(attention, 1, 48, 64, 64),
        at_least=1 / 2.4,
        clause=3,
    ),
    faster(
        "With softmax attention of one head they take more than that.",
        paper="quadratic in the tokens",
        ours=call(softmax, 1, 4096, 48),
        theirs=call(softmax, 1, 8192, 48),
        at_least=2.4,
        clause=3,
    ),
    *ZOO.claims(clause=4),
    grows(
        "Its multiply-adds grow with the tokens.",
        paper="linear in the tokens",
        cost=lambda side: float(count_macs(AdditiveAttention(16), (1, 16, side, side))),
        sizes=(8, 16, 32),
        of=lambda side: float(side**2),
        exponent=(0.999, 1.001),
        beyond="linear complexity",
    ),
    faster(
        "On the 56×56 tokens of the first stage it takes at most half the time of softmax attention.",
        paper="attention at every stage",
        ours=call(attention, 1, 48, 56, 56),
        theirs=call(softmax, 1, 3136, 48),
        at_least=2.0,
        beyond="attention at every stage",
    ),
)
