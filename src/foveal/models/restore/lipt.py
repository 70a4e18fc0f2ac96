"""LIPT: few attention layers among many 3×3 convolutions, which are trained as six branches and run as one.

*Source*: J. Qiao et al., "LIPT: Latency-aware Image Processing Transformer", IEEE TIP 34, 2025 (arXiv:2404.06075),
read in abstract; structure, sizes and formulas from the authors' code. A 3×3 convolution to C features, blocks, a skip
around them, a 3×3 convolution and a pixel shuffle. A block, every second one with windows shifted by w / 2, is two
sub-blocks of

    x + HRM x,  x + HRM x,  x + P attention(x),  x + HRM x          x: (B, C, H, W), P: 1×1

    HRM:         K₂ relu(K₁ x), each K a 3×3 convolution with batch norms ν, trained as the sum of
                 ν(A x),  ν(B x),  ν(mean₃ₓ₃ ν(D x)),  ν(E ν((I + G) x)),  s ⊙ Sₓ * (U x) + b,  t ⊙ S_y * (V x) + c
                 A, E: 3×3;  B, D, G, U, V: 1×1;  s, t, b, c: a number for each channel
    attention:   softmax(q qᵀ) v in windows of w×w tokens            (q, v) = ν(W x), C / 2 channels for each half
                 the first half of the channels: plain windows; the second half: sparse windows (NVSM)

A sparse window i takes w of the 2w rows from i·w on, the even ones of the first half and the odd ones of the second,
and columns likewise: it sees twice as far at the cost of a plain window. Each row is in exactly one window, so the
sampling is a fixed permutation of rows and columns. The second sub-block computes no q: it reuses the attention maps
of the first on its own v. In evaluation, all of K is linear: `fold` reads the one 3×3 kernel off its response to
impulses, with batch norms included.

*Differs from the paper*: the batch norms that end an HRM start at 0.01, not at 1, and P at a hundredth of its usual
start: else the sums of four normalised branches in each of thirty HRMs drown the picture, and a short training is spent
on quieting them. As in the authors' code, the outputs of a sparse window stand in the order of its tokens and are not
carried back to their places; the second sub-block mixes the tokens of plain windows by both maps; S has √2 where
Sobel's filters have 2; there is no Laplacian branch; rows wrap around at the border.

*Provenance*: written from the abstract and the authors' code, which it equals under shared weights to rounding (double
precision), in training and in evaluation, with shared maps and without, ×2 to ×4.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from foveal.nn.windows import joined, to_multiple, windowed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["LIPT", "BranchedConv2d", "SparseWindowAttention", "attention_maps", "lipt_base", "lipt_tiny", "sparse"]

MEAN = (0.4488, 0.4371, 0.4040)  # of the colours in DIV2K
START = 0.01  # factor of the branches' last weights at the start


def sparse(x: Tensor, window: int) -> Tensor:
    """Bring the tokens of each sparse window into a plain one.

    Args:
        x: (B, C, H, W), H and W multiples of `window`.
        window: w, even.

    Returns:
        The same pixels in another order, (B, C, H, W): row j of window i was row (i·w + 2j) mod H for j below w / 2,
        and row (i·w + 2j + 1) mod H from there on; columns likewise.
    """
    for axis in (2, 3):
        # (…, windows, w / 2), the even and the odd rows of each window
        even, odd = (x.unflatten(axis, (-1, window // 2, 2)).select(axis + 2, i) for i in range(2))
        x = torch.cat([even, odd.roll(-1, axis)], axis + 1).flatten(axis, axis + 1)
    return x


def _tokens(x: Tensor, window: int) -> Tensor:
    """(B, C, H, W) to (B · windows, w², C)."""
    return windowed(x.permute(0, 2, 3, 1), (window, window))


def attention_maps(query: Tensor) -> Tensor:
    """How much of each token of a window a token takes; queries are keys too.

    Args:
        query: q of each window, (B · windows, N, C).

    Returns:
        softmax(q qᵀ), (B · windows, N, N), not scaled by the width.
    """
    return (query @ query.mT).softmax(-1)


class SparseWindowAttention(nn.Module):
    """NVSM-SA, (B, C, H, W) to the same; H and W are multiples of the window.

    Args:
        dim: C, even.
        window: w, even.
        shift: rows and columns by which windows are shifted.
        maps: whether it computes attention maps; otherwise it is given those of another layer.

    Raises:
        ValueError: an odd number of channels, or an odd window.
    """

    def __init__(self, dim: int, window: int, *, shift: int = 0, maps: bool = True) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim must be even, one half for each kind of window, got {dim}")
        if window % 2:
            raise ValueError(f"window must be even, got {window}; take {window + 1}")
        self.window, self.shift = window, shift
        inner = 2 * dim if maps else dim
        self.project: nn.Module = nn.Sequential(nn.Conv2d(dim, inner, 1), nn.BatchNorm2d(inner))
        self.out = nn.Conv2d(dim, dim, 1)
        with torch.no_grad():
            self.out.weight.mul_(START)

    def forward(self, x: Tensor, maps: tuple[Tensor, ...] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Attend.

        Args:
            x: (B, C, H, W).
            maps: attention maps of both halves, empty if they are computed here.

        Returns:
            (B, C, H, W), and the maps.
        """
        height, width = x.shape[2:]
        x = self.project(x)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (2, 3))
        plain, spread = x.chunk(2, 1)
        values: Sequence[Tensor]
        if maps:
            values = [_tokens(half, self.window) for half in (plain, spread)]
        else:
            halves = (_tokens(half, self.window).chunk(2, -1) for half in (plain, sparse(spread, self.window)))
            queries, values = zip(*halves, strict=True)
            maps = tuple(attention_maps(query) for query in queries)
        # (B · windows, w², C)
        mixed = torch.cat([one @ value for one, value in zip(maps, values, strict=True)], -1)
        back = joined(mixed, (self.window, self.window), height, width, (self.shift, self.shift))
        return self.out(back.permute(0, 3, 1, 2)), maps

    @torch.no_grad()
    def fold_(self) -> None:
        """Take the batch norm into the projection, in place."""
        if isinstance(self.project, nn.Sequential):
            conv, norm = self.project
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            self.project = fuse_conv_bn_eval(conv.eval(), norm.eval())


class _PaddedNorm(nn.BatchNorm2d):
    """Batch norm of (B, C, H, W), then a border of one pixel that holds what it makes of 0."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight / (self.running_var + self.eps).sqrt()
        border = (self.bias - self.running_mean * scale).detach()[:, None, None]
        return F.pad(out - border, (1, 1, 1, 1)) + border


class _Edges(nn.Module):
    """A 1×1 convolution and an edge filter of each channel, (B, C, H, W) to (B, C', H, W)."""

    filter: Tensor

    def __init__(self, in_channels: int, out_channels: int, *, vertical: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, padding=1)
        self.scale = nn.Parameter(1e-3 * torch.randn(out_channels, 1, 1, 1))
        self.bias = nn.Parameter(1e-3 * torch.randn(out_channels))
        across = torch.tensor([[1, 0, -1], [2**0.5, 0, -(2**0.5)], [1, 0, -1]])
        self.register_buffer("filter", across.mT.contiguous() if vertical else across, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.conv(x), self.scale * self.filter, self.bias, groups=len(self.bias))


class _Residual1x1(nn.Conv2d):
    """x + G x, (B, C, H, W) to the same, G starting at 0."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 1, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class BranchedConv2d(nn.Module):
    """The sum of six branches, in evaluation a 3×3 convolution; (B, C, H, W) to (B, C', H, W).

    Args:
        in_channels: C.
        out_channels: C'.
        start: what the scales of the last batch norms start with.
    """

    def __init__(self, in_channels: int, out_channels: int, *, start: float = 1.0) -> None:
        super().__init__()
        self.in_channels = in_channels
        conv = partial(nn.Conv2d, in_channels, out_channels, bias=False)
        norm = partial(nn.BatchNorm2d, out_channels)
        self.full = nn.Sequential(conv(3, padding=1), norm())
        self.point = nn.Sequential(conv(1), norm())
        self.mean = nn.Sequential(conv(1), _PaddedNorm(out_channels), nn.AvgPool2d(3, 1), norm())
        self.deep = nn.Sequential(_Residual1x1(in_channels), _PaddedNorm(in_channels), conv(3), norm())
        self.across, self.down = (_Edges(in_channels, out_channels, vertical=vertical) for vertical in (False, True))
        for branch in (self.full, self.point, self.mean, self.deep):
            last = branch[-1]
            assert isinstance(last, nn.BatchNorm2d)
            nn.init.constant_(last.weight, start)

    def forward(self, x: Tensor) -> Tensor:
        return self.full(x) + self.point(x) + self.mean(x) + self.deep(x) + self.across(x) + self.down(x)

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """The same map, in evaluation, as one convolution.

        Returns:
            3×3 convolution with zero padding.
        """
        exact, origin = copy.deepcopy(self).double().eval(), next(self.parameters())
        # (C + 1, C, 3, 3): a picture for each input channel with 1 at its centre, and an empty one
        impulses = torch.eye(self.in_channels + 1, self.in_channels, dtype=torch.float64, device=origin.device)
        seen = exact(F.pad(impulses[..., None, None], (2, 2, 2, 2)))
        kernel, bias = (seen[:-1] - seen[-1:])[..., 1:4, 1:4].flip(2, 3).transpose(0, 1), seen[-1, :, 2, 2]
        conv = nn.Conv2d(self.in_channels, len(bias), 3, padding=1).to(origin)
        conv.load_state_dict({"weight": kernel, "bias": bias})
        return conv


def _hrm(dim: int, expansion: float) -> nn.Sequential:
    """HRM, (B, C, H, W) to the same."""
    inner = round(expansion * dim)
    return nn.Sequential(BranchedConv2d(dim, inner), nn.ReLU(), BranchedConv2d(inner, dim, start=START))


class _SubBlock(nn.Module):
    """(B, C, H, W) and attention maps to the same."""

    def __init__(self, dim: int, expansion: float, attention: Callable[..., SparseWindowAttention], *, maps: bool):
        super().__init__()
        self.first, self.second, self.third = (_hrm(dim, expansion) for _ in range(3))
        self.attention = attention(maps=maps)

    def forward(self, x: Tensor, maps: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = x + self.first(x)
        x = x + self.second(x)
        attended, maps = self.attention(x, maps)
        x = x + attended
        return x + self.third(x), maps


class LIPT(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    The defaults are those of the light network.

    Args:
        scale: s, at least 1; 1 removes damage at the picture's own size.
        dim: width, even.
        depth: number of sub-blocks.
        shared: how many sub-blocks share attention maps, a divisor of `depth`.
        window: side of a window, in pixels, even.
        expansion: ratio of an HRM's inner width to `dim`.
        in_channels: C.

    Raises:
        ValueError: a scale below 1, or a depth that cannot be shared.
    """

    mean: Tensor
    tiling = "overlap"

    def __init__(
        self,
        scale: int = 2,
        *,
        dim: int = 64,
        depth: int = 10,
        shared: int = 2,
        window: int = 8,
        expansion: float = 1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        if depth % shared:
            raise ValueError(f"depth must be a multiple of shared = {shared}, got {depth}")
        self.scale, self.shared = scale, shared
        self.multiple = window  # tiles start at the borders of windows
        mean = MEAN if in_channels == len(MEAN) else (0.5,) * in_channels
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.head = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.body = nn.ModuleList()
        for i in range(depth):
            shift = i // shared % 2 * (window // 2)
            attention = partial(SparseWindowAttention, dim, window, shift=shift)
            self.body.append(_SubBlock(dim, expansion, attention, maps=i % shared == 0))
        self.tail = nn.Conv2d(dim, in_channels * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        first = features = self.head(to_multiple(x, self.multiple) - self.mean)
        maps: tuple[Tensor, ...] = ()
        for i, block in enumerate(self.body):
            features, maps = block(features, maps if i % self.shared else ())
        out = F.pixel_shuffle(self.tail(first + features), self.scale) + self.mean
        return out[..., : self.scale * height, : self.scale * width]

    def fold(self) -> LIPT:
        """The same network with one convolution in place of each sum of branches.

        Returns:
            A copy for use, not for training.
        """
        network = copy.deepcopy(self).eval()
        for module in list(network.modules()):
            if isinstance(module, SparseWindowAttention):
                module.fold_()
            for name, child in module.named_children():
                if isinstance(child, BranchedConv2d):
                    setattr(module, name, child.fold())
        return network


lipt_tiny = partial(LIPT, dim=24, depth=8)  # LIPT-Tiny
# LIPT-Light is `LIPT` itself.
lipt_base = partial(LIPT, dim=144, depth=22, shared=1, window=16)  # LIPT-Base


METHOD = Method(
    id=8,
    name="LIPT",
    kind="model",
    summary="3×3 convolutions folded from six branches, and a few attention layers whose windows see twice as far.",
    paper=Paper("LIPT: Latency-aware Image Processing Transformer", "J. Qiao et al.", 2024, "arXiv:2404.06075"),
    models={"lipt_light": LIPT, "lipt_tiny": lipt_tiny, "lipt_base": lipt_base},
    cases={
        "lipt_light": {"scale": 2, "dim": 4, "depth": 2, "window": 4},
        "lipt_tiny": {"scale": 3, "dim": 2, "depth": 2, "window": 2},
        "lipt_base": {"scale": 1, "dim": 4, "depth": 1, "window": 4},
    },
)
