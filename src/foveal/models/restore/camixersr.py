"""CAMixerSR: windows with detail get attention, the others a gate; a convolution sees all of them.

*Source*: Y. Wang et al., "CAMixerSR: Only Details Need More 'Attention'", CVPR 2024 (arXiv:2402.19289), section 3. The
mixer, x: (B, C, H, W), in windows of M×M pixels:

    v = W_v x,   (offsets, p, a_c, a_s) = predictor(v, global condition, place in the window)
    hard windows, a share γ with the highest p:   y = softmax((W_q x)(W_k (x + warp(x, offsets)))ᵀ) v
    simple windows:                               y = a_s ⊙ v
    all:                                          W_o (y + a_c ⊙ gelu(dwconv(y)))

Offsets are at most 8 pixels, a_c: (B, C, 1, 1), a_s: (B, 1, H, W), p: (B, N) for N windows; `dwconv` is two depthwise
3×3 convolutions, the second dilated. A block is norm(x + mixer(x)), then norm(x + ffn(x)) with a gated network. Groups
of blocks end in a 1×1 convolution and a skip; a 3×3 convolution to s² phases makes the picture. In training windows are
drawn as hard with probability p (Gumbel-softmax, straight through); `loss` adds (mean of all draws − γ)².

*Differs from the paper*: in use exactly ⌈γ N⌉ windows are hard (the authors' code scales γ by a draw). Only they are
warped. Logarithms of p, not p, enter the Gumbel-softmax, and in training the two paths are mixed by the mask at their
end (theirs: at the start). With γ = 1 or 0 nothing is drawn.

*Provenance*: written from the paper; layer sizes, norms and the loss were looked up in the authors' code. With its
weights the output equals theirs to 2e-8 in float64, at γ = 1 and, with their draw fixed to one half, at γ = 0.5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.nn.budget import affordable
from foveal.nn.gather import kept, put, take, top
from foveal.record import Method, Paper
from foveal.runtime.route import Route, recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CAMixer", "CAMixerSR", "loss"]

REACH = 8.0  # largest offset, pixels


def windows(x: Tensor, side: int) -> Tensor:
    """Divide a map into windows.

    Args:
        x: map, (B, C, H, W); H and W are multiples of the side.
        side: M.

    Returns:
        Windows in rows, (B, N, M², C).
    """
    x = x.unflatten(2, (-1, side)).unflatten(4, (-1, side))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def unwindowed(x: Tensor, side: int, height: int) -> Tensor:
    """Join windows to a map.

    Args:
        x: windows, (B, N, M², C).
        side: M.
        height: H.

    Returns:
        Map, (B, C, H, W).
    """
    x = x.unflatten(2, (side, side)).unflatten(1, (height // side, -1))
    # (B, H/M, W/M, M, M, C) to (B, C, H/M, M, W/M, M)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def warped(x: Tensor, offsets: Tensor, at: Tensor) -> Tensor:
    """Sample a map beside some of its pixels, bilinearly; beyond the border its outermost pixels are repeated.

    Args:
        x: map, (B, C, H, W).
        offsets: horizontal and vertical offsets, in pixels, (B, K, M², 2).
        at: columns and rows of the pixels, (B, K, M², 2).

    Returns:
        Samples, (B, K, M², C).
    """
    size = x.new_tensor([max(x.shape[3] - 1, 1), max(x.shape[2] - 1, 1)])
    grid = (at + offsets) / size * 2 - 1
    sampled = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.movedim(1, -1)


class _Predictor(nn.Module):
    """What the mixer knows about its windows before it works on them.

    Args:
        dim: C.
        side: M.
    """

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.side, width = side, dim + 4
        self.reduce = nn.Sequential(
            nn.Conv2d(width, width // 4, 1), LayerNorm2d(width // 4), nn.LeakyReLU(0.1, inplace=True)
        )
        self.offsets = nn.Sequential(
            nn.Conv2d(width // 4, width // 8, 1), nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(width // 8, 2, 1)
        )
        self.classify = nn.Sequential(
            nn.Linear(side**2, side), nn.LeakyReLU(0.1, inplace=True), nn.Linear(side, 2), nn.LogSoftmax(-1)
        )
        self.channels = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width // 4, dim, 1), nn.Sigmoid())
        self.space = nn.Sequential(nn.Conv2d(width // 4, 1, 3, padding=1), nn.Sigmoid())

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Offsets, log-probabilities of hard and simple, and the gates of channels and of space.

        condition: (B, C + 4, H, W); results: (B, 2, H, W), (B, N, 2), (B, C, 1, 1) and (B, 1, H, W).
        """
        x = self.reduce(condition)
        score = self.classify(windows(x.mean(1, keepdim=True), self.side)[..., 0])
        return REACH * self.offsets(x).tanh(), score, self.channels(x), self.space(x)


class CAMixer(nn.Module):
    """Mixer of windows, (B, C, H, W) and a global condition to (B, C, H, W), with the draws of training.

    Args:
        dim: C.
        window: M, sides of H and W are multiples of it.
    """

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.project_v = nn.Conv2d(dim, dim, 1)
        self.project_q, self.project_k = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.spatial = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.Conv2d(dim, dim, 3, padding=2, dilation=2, groups=dim)
        )
        self.project_out = nn.Conv2d(dim, dim, 1)
        self.predictor = _Predictor(dim, window)

    def _attention(self, x: Tensor, rows: Tensor, v: Tensor, offsets: Tensor, at: Tensor) -> Tensor:
        """Attention in windows: the map, its windows, values, offsets and places, (B, K, M², …)."""
        q, k = self.project_q(rows), self.project_k(rows + warped(x, offsets, at))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)

    def forward(self, x: Tensor, condition: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        """Mix.

        Args:
            x: features, (B, C, H, W).
            condition: global condition, (B, 2, H, W).
            ratio: γ, share of hard windows, in [0, 1].

        Returns:
            Features, (B, C, H, W); which windows were hard, (B, N), 0 or 1, with gradients in training.
        """
        side, (height, width) = self.window, x.shape[2:]
        v = self.project_v(x)
        steps = torch.linspace(-1, 1, side, dtype=x.dtype, device=x.device)
        place = torch.stack(torch.meshgrid(steps, steps, indexing="ij")).repeat(1, height // side, width // side)
        seen = torch.cat([v, condition, place.expand(len(x), -1, -1, -1)], 1)
        offsets, score, channels, space = self.predictor(seen)
        grid = torch.meshgrid(*(torch.arange(n, device=x.device) for n in (height, width)), indexing="ij")
        at = windows(torch.stack(grid[::-1])[None].to(x), side).expand(len(x), -1, -1, -1)
        parts = [windows(part, side) for part in (x, v, offsets)] + [at]
        count = kept(score.shape[1], ratio) if ratio else 0
        if self.training and 0 < ratio < 1:
            hard = F.gumbel_softmax(score, hard=True)[..., 0]
            y = torch.lerp(windows(v * space, side), self._attention(x, *parts), hard[..., None, None])
        else:
            index = top(score[..., 0], count)
            hard = torch.zeros_like(score[..., 0]).scatter(1, index, 1.0)
            if count < score.shape[1]:
                y = windows(v * space, side)
                y = put(y, index, self._attention(x, *(take(part, index) for part in parts))) if count else y
            else:
                y = self._attention(x, *parts)
        y = unwindowed(y, side, height)
        return self.project_out(F.gelu(self.spatial(y)) * channels + y), hard


class _FeedForward(nn.Module):
    """Gated network, (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.depthwise(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.gelu(gate) * x)


class _Block(nn.Module):
    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.mixer, self.ffn = CAMixer(dim, window), _FeedForward(dim)

    def forward(self, x: Tensor, condition: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        mixed, hard = self.mixer(x, condition, ratio)
        x = self.norm1(x + mixed)
        return self.norm2(x + self.ffn(x)), hard


class _Group(nn.Module):
    def __init__(self, dim: int, depth: int, window: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(dim, window) for _ in range(depth))
        self.tail = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, condition: Tensor, ratio: float) -> tuple[Tensor, list[Tensor]]:
        skip, masks = x, []
        for block in self.blocks:
            x, hard = block(x, condition, ratio)
            masks.append(hard)
        return skip + self.tail(x), masks


class CAMixerSR(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    `ratio` may be set at any time, whatever it was in training.

    Args:
        scale: s, at least 1.
        dim: width.
        depths: number of blocks in each group.
        window: M, side of a window in pixels.
        ratio: γ, share of windows that get attention, in [0, 1]; the rest is rounded up to a window.
        in_channels: C.

    Raises:
        ValueError: a scale below 1, or a ratio outside its range.
    """

    tiling = "overlap"  # a gate averages the whole picture, and its windows compete

    def __init__(
        self,
        scale: int = 4,
        *,
        dim: int = 60,
        depths: tuple[int, ...] = (4, 4, 6, 6),
        window: int = 16,
        ratio: float = 0.5,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be in [0, 1], got {ratio}; 0.5 gives half of the windows attention")
        self.scale, self.window, self.ratio = scale, window, ratio
        self.head = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.condition = nn.Sequential(
            nn.Conv2d(dim, 8, 1), nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(8, 2, 3, padding=1), nn.LeakyReLU(0.1)
        )
        self.groups = nn.ModuleList(_Group(dim, depth, window) for depth in depths)
        self.body_tail = nn.Conv2d(dim, dim, 3, padding=1)
        self.tail = nn.Conv2d(dim, in_channels * scale**2, 3, padding=1)

    def routed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The picture, and which windows got attention.

        Args:
            x: low-resolution pictures, (B, C, H, W).

        Returns:
            Pictures, (B, C, s·H, s·W); 0 or 1 for each block and window, (blocks, B, N), with gradients in training.
        """
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % self.window, 0, -height % self.window), mode="replicate")
        skip = features = self.head(x)
        condition, masks = self.condition(features), []
        for group in self.groups:
            features, found = group(features, condition, self.ratio)
            masks += found
        out = F.pixel_shuffle(self.tail(skip + self.body_tail(features)), self.scale)
        return out[..., : height * self.scale, : width * self.scale], torch.stack(masks)

    def forward(self, x: Tensor) -> Tensor:
        out, masks = self.routed(x)
        if (routes := recorded()) is not None:
            fixed, attention = self.costs()
            rows, columns = (math.ceil(n / self.window) for n in x.shape[2:])
            work = (fixed + attention * masks.mean(0)) / (fixed + attention)
            counts = tuple(masks.sum(2).mean(1).tolist())
            routes.append(
                Route(
                    work.unflatten(1, (rows, columns)).float().cpu().numpy(),
                    counts,
                    (float(rows * columns),) * len(counts),
                    unit="windows",
                )
            )
        return out

    def costs(self) -> tuple[int, int]:
        """Multiply-adds for each input pixel.

        Returns:
            Of everything but attention, and of attention if all windows get it.
        """
        fixed = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Conv2d))
        mixers = [m for m in self.modules() if isinstance(m, CAMixer)]
        for mixer in mixers:
            fixed -= sum(m.weight.numel() for m in mixer.predictor.channels if isinstance(m, nn.Conv2d))
            fixed += sum(m.weight.numel() for m in mixer.predictor.classify if isinstance(m, nn.Linear)) // (
                self.window**2
            )
        dim = self.head.out_channels
        return fixed, len(mixers) * 2 * dim * (dim + self.window**2)

    def fit_budget_(self, budget: float, pictures: Sequence[Tensor] = ()) -> None:  # noqa: ARG002
        """Set the ratio that takes a share of the multiply-adds of attention everywhere.

        Args:
            budget: share, in (0, 1].
            pictures: not used: a ratio costs the same on every picture.
        """
        fixed, attention = self.costs()
        whole = fixed + attention
        self.ratio = affordable(budget, least=fixed / whole, each=attention / whole)


def loss(network: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Absolute error and ratio loss.

    Args:
        network: `CAMixerSR` in training.
        batch: low- and high-resolution patches, (B, C, h, w) and (B, C, s·h, s·w).

    Returns:
        Mean error of pixels, plus the squared distance of the mean share of hard windows to γ.
    """
    out, masks = network.routed(batch[0])
    return F.l1_loss(out, batch[1]) + (masks.mean() - network.ratio).square()


METHOD = Method(
    id=110,
    name="CAMixerSR",
    kind="model",
    summary="A predictor gives windows with detail attention and the others a gate; one ratio says how many.",
    paper=Paper("CAMixerSR: Only Details Need More “Attention”", "Y. Wang et al.", 2024, "arXiv:2402.19289"),
    models={"camixersr": CAMixerSR},
    cases={"camixersr": {"scale": 2, "dim": 8, "depths": (1, 1), "window": 4}},
)
