"""Evidence for BiFormer: its attention beside dense attention, counts, time, and the zoo trial beside windows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from foveal.evidence.drawn import drawn_
from foveal.evidence.tasks.zoo import Zoo, widths
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.models.backbone.biformer import (
    BiFormer,
    BiFormerBlock,
    BiLevelRoutingAttention,
    biformer_b,
    biformer_s,
    biformer_t,
    routed_attention,
    routed_attention_reference,
)
from foveal.nn.windows import WindowAttention
from foveal.record import equal, faster, grows, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, HEADS, SIDE, REGIONS = 64, 2, 56, 7  # of BiFormer-T's first stage
WINDOW = 4


@torch.no_grad()
def _layer(*, dense: bool, height: int = 28, width: int = 28) -> Tensor:
    """The layer that routes to all regions, or dense attention and the local term with its weights."""
    torch.manual_seed(0)
    layer = drawn_(BiLevelRoutingAttention(DIM, HEADS, regions=REGIONS, top_k=REGIONS**2))
    x = torch.randn(2, height, width, DIM)
    if not dense:
        return layer(x)
    query, key, value = (y.flatten(1, 2) for y in layer.qkv(x).chunk(3, -1))
    q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, scale=DIM**-0.5).transpose(1, 2).reshape(x.shape)
    local = layer.local(value.mT.reshape(2, DIM, height, width))
    return layer.proj(out + local.permute(0, 2, 3, 1))


def _routed(function: Callable[..., Tensor], *, backward: bool = False) -> Tensor:
    """What four of 49 regions give on a map that seven does not divide, or the gradients of the sum of its squares."""
    torch.manual_seed(0)
    qkv = [torch.randn(2, 23, 30, 24, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    out = function(*qkv, regions=REGIONS, top_k=4, num_heads=3)
    if not backward:
        return out.detach()
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(out.square().sum(), qkv)])


class _Routed(nn.Module):
    """Routing and attention without the projections around them, on regions of which N^(1/3) stand on a side."""

    def __init__(self, regions: int) -> None:
        super().__init__()
        self.regions = regions

    def forward(self, x: Tensor) -> Tensor:
        return routed_attention(x, x, x, regions=self.regions, top_k=2, num_heads=1)


def _cost(side: int) -> float:
    return float(count_macs(_Routed(round(side ** (2 / 3))), (1, side, side, 4)))


def _dense() -> Callable[[Tensor], Tensor]:
    """Dense attention, fused, without a local term."""
    layer = Attention(DIM, HEADS, qkv_bias=True).eval()
    return lambda x: layer(x.flatten(1, 2))


def small(dim: int = 32) -> nn.Module:
    """BiFormer on maps of 16×16, 8×8 and 4×4: 2 of 16 regions, 4 of 16 regions, and dense attention.

    Args:
        dim: channels of the first stage, even; the others have twice and three times as many.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network = BiFormer(
        dims=(dim, 2 * dim, 3 * dim),
        depths=(2, 2, 2),
        num_heads=(2, 4, 6),
        top_ks=(2, 4, None),
        regions=4,
        num_classes=10,
    )
    # stride 2 in place of 4 suits pictures of 32×32
    network.stem = nn.Sequential(nn.Conv2d(3, dim, 3, 2, 1), nn.BatchNorm2d(dim))
    return network


def window_twin(dim: int) -> nn.Module:
    """The rival: the same network with attention in windows of 4×4, every other block's shifted, in place of routing.

    Args:
        dim: channels of the first stage, even; the others have twice and three times as many.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network = small(dim)
    routing = [m for m in network.modules() if isinstance(m, BiFormerBlock)][:4]
    for i, block in enumerate(routing):
        shift = (0, WINDOW // 2)[i % 2]
        channels, heads = block.norm1.normalized_shape[0], (2, 4)[i // 2]
        block.attn = WindowAttention(channels, heads, (WINDOW, WINDOW), (shift, shift))
    return network


SIZES = (
    ("T", biformer_t, "13.1 M", "2.2 G"),
    ("S", biformer_s, "25.5 M", "4.5 G"),
    ("B", biformer_b, "56.8 M", "9.8 G"),
)
ZOO = Zoo(small, widths(window_twin, range(24, 49, 2)), "window attention", minutes=2.0)

CLAIMS = (
    equal(
        "Routing to all 49 regions is dense attention and the local term.",
        ours=lambda: _layer(dense=False),
        theirs=lambda: _layer(dense=True),
        tolerance=1e-5,
        clause=1,
    ),
    equal(
        "So it is on a map that the regions do not divide.",
        ours=lambda: _layer(dense=False, height=23, width=30),
        theirs=lambda: _layer(dense=True, height=23, width=30),
        tolerance=1e-5,
        clause=1,
    ),
    equal(
        "Gathering four of 49 regions is dense attention under a mask.",
        ours=lambda: _routed(routed_attention),
        theirs=lambda: _routed(routed_attention_reference),
        tolerance=1e-9,
        beyond="attention to the regions found",
    ),
    equal(
        "So are its gradients for queries, keys and values.",
        ours=lambda: _routed(routed_attention, backward=True),
        theirs=lambda: _routed(routed_attention_reference, backward=True),
        tolerance=1e-9,
        beyond="attention to the regions found",
    ),
    params("BiFormer-T.", paper="13.1 M", model=biformer_t, expect="13.1 M", clause=2),
    *(
        params(f"BiFormer-{name}.", paper=size, model=build, expect=size, beyond="sizes that the paper prints")
        for name, build, size, _ in SIZES[1:]
    ),
    *(
        macs(
            f"BiFormer-{name} at 224×224, within 2 % of what the paper counts.",
            paper=cost,
            model=build,
            shape=(1, 3, 224, 224),
            expect=cost,
            tolerance=0.02,
            beyond="sizes that the paper prints",
        )
        for name, build, _, cost in SIZES
    ),
    macs(
        "The layer's multiply-adds are N (4 C² + 25 C) + R² C + 2 N k n C.",
        paper="3 N C² + 2 R² C + 2 N k n C, without the last projection and the local term",
        model=partial(BiLevelRoutingAttention, DIM, HEADS, regions=REGIONS, top_k=4),
        shape=(1, SIDE, SIDE, DIM),
        expect=SIDE**2 * (4 * DIM**2 + 25 * DIM + 2 * 4 * 8**2 * DIM) + REGIONS**4 * DIM,
        beyond="complexity",
    ),
    grows(
        "With as many regions a side as the cube root of the pixels, those of routing and attention grow as N^(4/3).",
        paper="O((HW)^(4/3))",
        cost=_cost,
        sizes=(8, 64, 216),
        of=lambda side: float(side**2),
        exponent=(1.33, 1.34),
        beyond="complexity",
    ),
    faster(
        "At 56×56 tokens the layer with 4 of 49 regions takes at most half the time of fused dense attention, "
        "which has no local term.",
        paper="efficient on a GPU",
        ours=call(partial(BiLevelRoutingAttention, DIM, HEADS, regions=REGIONS, top_k=4), 1, SIDE, SIDE, DIM),
        theirs=call(_dense, 1, SIDE, SIDE, DIM),
        at_least=2.0,
        clause=3,
    ),
    *ZOO.claims(clause=4),
)
