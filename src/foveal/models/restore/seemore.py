"""SeemoRe: a low-rank expert chosen for the picture modulates the features; long stripes modulate them again.

*Source*: E. Zamfir et al., "See More Details: Efficient Image Super-Resolution by Experts Mining", ICML 2024
(arXiv:2402.03412), section 3. A 3×3 convolution to C features, groups, norm, a 3×3 convolution and a residual over all
of them, a 3×3 convolution to 3·s² channels, pixel shuffle. A group, x: (B, C, H, W), is a rank-modulating expert
followed by a spatial-modulating one, each with a gated feed-forward behind it:

    x ← x + block(norm(x));   x ← x + gelu(W₂ (a ∘ dwconv(b))),   [a, b] = gelu(W₁ norm(x))
    rank:     [a, k] = shuffle(W conv(x));   a ← gelu(stripe₃(a));   k ← k + up(W dwconv(gelu(down(gelu(down(k))))))
              block = W (a + wₑ · Uₑ (Kₑ k ∘ Dₑ a)),   w = softmax(R mean(a)),   e = argmax w
    spatial:  [q, v] = gelu(W x);   block = W (stripe₁₁(q) ∘ v)

Expert e maps to its rank (2, 4, 8 …), D and K, and back, U. `down` is a depthwise convolution of 4×4 cells, `up` is
bilinear, stripeₖ a depthwise 1×k and a depthwise k×1 convolution. In use only the chosen expert is evaluated; training
evaluates all and weighs the others with 0.

*Differs from the paper*: a side below 16 pixels is repeated up to 16 before `down`; an exported network evaluates all
experts, so that one graph serves every picture.

*Provenance*: written from the paper; layer sizes were looked up in the authors' code, whose parameter names are kept so
that their weights load.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.record import Method, Paper

__all__ = ["ExpertLayer", "SeemoRe", "seemore_b", "seemore_l"]

CELL = 4  # side of a cell of the context branch
MEAN = (0.4488, 0.4371, 0.4040)  # of the colours in DIV2K


def channel_shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels.

    Args:
        x: features, (B, 2C, H, W).

    Returns:
        (B, 2C, H, W): channels 0, C, 1, C + 1 …
    """
    return torch.stack(x.chunk(2, 1), 2).flatten(1, 2)


class _Stripes(nn.Module):
    """Depthwise 1×k, then k×1 convolution; (B, C, H, W) to the same."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        k, p = kernel_size, kernel_size // 2
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim, (1, k), padding=(0, p), groups=dim),
            nn.Conv2d(dim, dim, (k, 1), padding=(p, 0), groups=dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fn_1 = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1), nn.GELU())
        self.fn_2 = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU())
        self.gate = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fn_1(x).chunk(2, 1)
        return self.fn_2(a * self.gate(b))


class _Expert(nn.Module):
    """U (K k ∘ D a)."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(dim, rank, 1), nn.Conv2d(dim, rank, 1)
        self.conv_3 = nn.Conv2d(rank, dim, 1)

    def forward(self, a: Tensor, k: Tensor) -> Tensor:
        return self.conv_3(self.conv_2(k) * self.conv_1(a))


class _Router(nn.Module):
    def __init__(self, dim: int, experts: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, experts, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).softmax(1)


class ExpertLayer(nn.Module):
    """Adds the output of the best expert for each picture, weighed by the router.

    Args:
        dim: C.
        ranks: rank of each expert.
    """

    def __init__(self, dim: int, ranks: tuple[int, ...]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_Expert(dim, rank) for rank in ranks)
        self.gate = _Router(dim, len(ranks))

    def dense(self, a: Tensor, k: Tensor) -> Tensor:
        """Evaluate every expert; those that were not chosen count 0.

        Args:
            a: features, (B, C, H, W).
            k: context, (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        weights = self.gate(a)
        best, chosen = weights.topk(1, 1)
        masked = torch.zeros_like(weights).scatter(1, chosen, best)
        return a + sum(expert(a, k) * masked[:, i, None, None, None] for i, expert in enumerate(self.experts))

    def sparse(self, a: Tensor, k: Tensor) -> Tensor:
        """Evaluate for each picture its own expert alone.

        Args:
            a: features, (B, C, H, W).
            k: context, (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        best, chosen = self.gate(a).max(1)
        parts = [self.experts[int(e)](a[i : i + 1], k[i : i + 1]) for i, e in enumerate(chosen)]
        return a + torch.cat(parts) * best[:, None, None, None]

    def forward(self, a: Tensor, k: Tensor) -> Tensor:
        # Which expert a picture takes is known neither to a traced graph nor without storage.
        if self.training or a.is_meta or torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return self.dense(a, k)
        return self.sparse(a, k)


class _RankModulation(nn.Module):
    """Block of the rank-modulating expert, (B, C, H, W) to the same."""

    def __init__(self, dim: int, ranks: tuple[int, ...], *, recursion: int, shuffle: bool) -> None:
        super().__init__()
        self.recursion, self.shuffle = recursion, shuffle
        self.conv_1 = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.GELU(), nn.Conv2d(dim, 2 * dim, 1))
        self.agg_conv = nn.Sequential(nn.Conv2d(dim, dim, CELL, stride=CELL, groups=dim), nn.GELU())
        self.conv = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.Conv2d(dim, dim, 1))
        self.conv_2 = nn.Sequential(_Stripes(dim, 3), nn.GELU())
        self.moe_layer = ExpertLayer(dim, ranks)
        self.proj = nn.Conv2d(dim, dim, 1)

    def _context(self, k: Tensor) -> Tensor:
        side = CELL**self.recursion
        coarse = k
        if not torch.compiler.is_exporting() and min(k.shape[2:]) < side:  # one path for the exporter: large enough
            down, right = (max(0, side - length) for length in k.shape[2:])
            coarse = F.pad(k, (0, right, 0, down), mode="replicate")
        for _ in range(self.recursion):
            coarse = self.agg_conv(coarse)  # the same weights each time
        # (B, C, H / 4ʳ, W / 4ʳ) to (B, C, H, W)
        return k + F.interpolate(self.conv(coarse), size=k.shape[2:], mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_1(x)
        a, k = (channel_shuffle(x) if self.shuffle else x).chunk(2, 1)
        return self.proj(self.moe_layer(self.conv_2(a), self._context(k)))


class _SpatialModulation(nn.Module):
    """Block of the spatial-modulating expert, (B, C, H, W) to the same."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 1)
        self.to_qv = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1), nn.GELU())
        self.attn = _Stripes(dim, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.to_qv(x).chunk(2, 1)
        return self.proj(self.attn(q) * v)


class _Modulated(nn.Module):
    """A block and a feed-forward, each behind a norm and with a residual."""

    def __init__(self, dim: int, block: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.block, self.ffn = block, _FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.block(self.norm_1(x))
        return x + self.ffn(self.norm_2(x))


class _Group(nn.Module):
    def __init__(self, local_block: nn.Module, global_block: nn.Module) -> None:
        super().__init__()
        self.local_block, self.global_block = local_block, global_block

    def forward(self, x: Tensor) -> Tensor:
        return self.global_block(self.local_block(x))


class SeemoRe(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s, at least 1.
        dim: width; 36 in SeemoRe-T.
        depth: number of groups; 6 in SeemoRe-T.
        ranks: rank of each expert.
        kernel_size: length of the stripes, odd.
        recursion: r, number of times the context is reduced by 4.
        shuffle: whether features and context share their channels by turns.
        in_channels: C.

    Raises:
        ValueError: if the scale is below 1, the stripes have an even length or there is no expert.
    """

    mean: Tensor
    tiling = "overlap"  # the router reads the whole picture

    def __init__(
        self,
        scale: int = 2,
        *,
        dim: int = 36,
        depth: int = 6,
        ranks: tuple[int, ...] = (2, 4, 8),
        kernel_size: int = 11,
        recursion: int = 2,
        shuffle: bool = True,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        if not ranks:
            raise ValueError("ranks must name at least one expert, got none")
        self.scale = scale
        self.multiple = self.minimum = CELL**recursion  # tiles start at the borders of context cells
        mean = MEAN if in_channels == len(MEAN) else (0.5,) * in_channels
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.conv_1 = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.body = nn.Sequential(
            *(
                _Group(
                    _Modulated(dim, _RankModulation(dim, ranks, recursion=recursion, shuffle=shuffle)),
                    _Modulated(dim, _SpatialModulation(dim, kernel_size)),
                )
                for _ in range(depth)
            )
        )
        self.norm = LayerNorm2d(dim)
        self.conv_2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(dim, in_channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_1(x - self.mean)
        features = features + self.conv_2(self.norm(self.body(features)))
        return self.upsampler(features) + self.mean


# SeemoRe-T is `SeemoRe` itself.
seemore_b = partial(SeemoRe, dim=48, depth=8)  # SeemoRe-B
seemore_l = partial(SeemoRe, dim=48, depth=16, recursion=1, shuffle=False)  # SeemoRe-L


METHOD = Method(
    id=89,
    name="SeemoRe",
    kind="model",
    summary="Low-rank experts chosen for each picture, then long stripes, modulate the features.",
    paper=Paper(
        "See More Details: Efficient Image Super-Resolution by Experts Mining",
        "E. Zamfir et al.",
        2024,
        "arXiv:2402.03412",
    ),
    models={"seemore_t": SeemoRe, "seemore_b": seemore_b, "seemore_l": seemore_l},
    cases={
        "seemore_t": {"scale": 2, "dim": 4, "depth": 1, "ranks": (1, 2)},
        "seemore_b": {"scale": 3, "dim": 4, "depth": 1},
        "seemore_l": {"scale": 4, "dim": 4, "depth": 1},
    },
)
