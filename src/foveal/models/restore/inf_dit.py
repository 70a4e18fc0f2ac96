"""Inf-DiT: a diffusion transformer whose blocks see only those above and to the left, so one row of them is enough.

*Source*: Z. Yang et al., "Inf-DiT: Upsampling Any-Resolution Image with Memory-Efficient Diffusion Transformer",
ECCV 2024 (arXiv:2405.04312). Patches of p×p pixels of the noisy and of the bicubic picture are tokens, n of them to a
block. With e from time and picture, a layer takes a block's tokens x, (B, n, C), in three steps, the second in the
first layer only:

    x + attend(q, k + r₀, left-top's k + r₁, left's k + r₂, top's k + r₃)      of norm(x) (1 + a₁) + b₁
    x + cross(q + s, k + u)                                                    of norm(x) and 3×3 low-resolution blocks
    x + mlp(norm(x) (1 + a₂) + b₂),  (a₁, b₁, a₂, b₂) = linear(silu e)

q and k are normalised and rotated by row and column (RoPE); r, s and u are learnt. A block needs k and v of the row
above, from its left neighbour on, of each layer: with w blocks in a row

    2 · depth · (w + 1) · n · C numbers are kept, whatever the height

*Differs from the paper*: blocks outside the picture are left out (the authors' training repeats the block itself there,
their blockwise inference leaves them out); in place of CLIP's embedding of the small picture, a perceptron of its 8×8
thumbnail; blocks one by one. Training and sampling are the caller's, here `foveal.train.diffusion`'s, not EDM's.

*Provenance*: abstract, and the layers by the authors' code (THUDM/Inf-DiT), written anew. Attention of inner blocks,
with their shared norm of q and k, rotation and r, equals that code's `attention_forward` exactly, by hand.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.block_attention import AROUND, attend, beside, beside_kept, rotated
from foveal.nn.unet import sinusoids, upsampled
from foveal.nn.windows import to_multiple
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from foveal.nn.block_attention import Kept

    See = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # q, k, v and r to what is seen

__all__ = ["InfDiT"]

LOW_PATCH = 2  # side of a patch of the low resolution
THUMB = 8
MARGIN = 3  # pixels of low resolution beyond a block that its bicubic picture depends on, and one more


class _Layer(nn.Module):
    def __init__(self, dim: int, num_heads: int, tokens: int, near: int | None) -> None:
        super().__init__()
        self.num_heads, width = num_heads, dim // num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(width, eps=1e-6)  # of queries and keys
        self.offsets = nn.Parameter(torch.zeros(len(AROUND), num_heads, width))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))
        self.modulation = nn.Linear(dim, 4 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        if near is not None:
            self.cross_q, self.cross_kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
            self.cross_norm, self.cross_proj = nn.LayerNorm(width, eps=1e-6), nn.Linear(dim, dim)
            self.query_place = nn.Parameter(0.02 * torch.randn(tokens, num_heads, width))
            self.key_place = nn.Parameter(0.02 * torch.randn(near, num_heads, width))

    def _cross(self, x: Tensor, near: Tensor) -> Tensor:
        grid = x.shape[:3]
        q = self.cross_norm(self.cross_q(x).unflatten(-1, (self.num_heads, -1))) + self.query_place
        key, value = self.cross_kv(near).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        key = self.cross_norm(key) + self.key_place
        q, key, value = (y.flatten(0, 2) for y in (q, key, value))
        return self.cross_proj(attend(q, key, value).unflatten(0, grid))

    def forward(self, x: Tensor, embedded: Tensor, places: Tensor, near: Tensor, see: See) -> Tensor:
        """Tokens (B, rows, columns, n, C) to the same; `near` are those of 3×3 low-resolution blocks."""
        first, shift1, second, shift2 = self.modulation(embedded)[:, None, None, None].chunk(4, -1)
        normal = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + first) + shift1
        q, k, v = self.qkv(normal).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        x = x + self.proj(see(rotated(self.norm(q), places), rotated(self.norm(k), places), v, self.offsets))
        if hasattr(self, "cross_q"):
            x = x + self._cross(F.layer_norm(x, x.shape[-1:], eps=1e-6), near)
        return x + self.mlp(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + second) + shift2)


class InfDiT(nn.Module):
    """Low resolution (B, C, h, w), noisy picture (B, C, s·h, s·w) and time to a prediction like the noisy picture.

    Args:
        scale: s.
        in_channels: C.
        dim: channels of a token, a multiple of 4 · `num_heads`.
        depth: layers.
        num_heads: heads of each.
        patch_size: p.
        block: side of a block in pixels of the noisy picture, a multiple of p and of 2 s.

    Raises:
        ValueError: sizes that do not divide each other.
    """

    def __init__(
        self,
        scale: int = 4,
        *,
        in_channels: int = 3,
        dim: int = 1280,
        depth: int = 28,
        num_heads: int = 16,
        patch_size: int = 4,
        block: int = 128,
    ) -> None:
        super().__init__()
        if dim % (4 * num_heads):
            raise ValueError(f"dim must be a multiple of 4 · num_heads = {4 * num_heads}, got {dim}")
        if block % patch_size or block % (LOW_PATCH * scale):
            raise ValueError(
                f"block must be a multiple of patch_size = {patch_size} and of {LOW_PATCH} · scale = "
                f"{LOW_PATCH * scale}, got {block}"
            )
        self.scale, self.dim, self.patch_size, self.block = scale, dim, patch_size, block
        self.side, self.low_side = block // patch_size, block // scale // LOW_PATCH  # tokens of a block's side
        self.embed = nn.Conv2d(2 * in_channels, dim, patch_size, patch_size)
        self.embed_low = nn.Conv2d(in_channels, dim, LOW_PATCH, LOW_PATCH)
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.whole = nn.Sequential(nn.Linear(in_channels * THUMB**2, dim), nn.SiLU(), nn.Linear(dim, dim))
        tokens, near = self.side**2, (3 * self.low_side) ** 2
        self.layers = nn.ModuleList([_Layer(dim, num_heads, tokens, None if i else near) for i in range(depth)])
        self.modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, in_channels * patch_size**2)
        for p in (*self.whole[2].parameters(), *self.modulation.parameters(), *self.head.parameters()):
            nn.init.zeros_(p)

    def _embedded(self, low: Tensor, t: Tensor) -> Tensor:
        """e, after its silu, (B, C)."""
        thumb = F.adaptive_avg_pool2d(low, THUMB).flatten(1)
        return F.silu(self.time(sinusoids(t, self.dim).to(low.dtype)) + self.whole(thumb))

    def _places(self, row: int, column: int, rows: int, columns: int) -> Tensor:
        """Row and column of each token, (rows, columns, n, 2), from block (row, column) on."""
        inside, grid = torch.arange(self.side, device=self.head.weight.device), (rows, columns, self.side, self.side)
        # (rows, side) and (columns, side)
        ys, xs = (
            (first + torch.arange(count, device=inside.device))[:, None] * self.side + inside
            for first, count in ((row, rows), (column, columns))
        )
        ys, xs = ys[:, None, :, None].expand(grid), xs[None, :, None, :].expand(grid)
        return torch.stack([ys, xs], -1).flatten(2, 3)

    def _blocks(self, x: Tensor, side: int) -> Tensor:
        """A map (B, C, H, W) as blocks of tokens, (B, rows, columns, side², C)."""
        blocks = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)

    def _predicted(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Pixels of tokens (B, rows, columns, n, C): (B, C, H, W)."""
        scale, shift = self.modulation(embedded)[:, None, None, None].chunk(2, -1)
        pixels = self.head(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        p, side = self.patch_size, self.side
        grid = pixels.unflatten(4, (-1, p, p)).unflatten(3, (side, side))
        # (B, rows, columns, side, side, C, p, p) → (B, C, rows, side, p, columns, side, p)
        return grid.permute(0, 5, 1, 3, 6, 2, 4, 7).flatten(5, 7).flatten(2, 4)

    def _padded(self, low: Tensor, noisy: Tensor | None, t: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        height, width = (self.scale * side for side in low.shape[-2:])
        if noisy is not None and noisy.shape[-2:] != (height, width):
            raise ValueError(
                f"a low resolution of {low.shape[-2]}×{low.shape[-1]} takes a noisy picture of {height}×{width}, got "
                f"{noisy.shape[-2]}×{noisy.shape[-1]}"
            )
        noisy = low.new_zeros(*low.shape[:2], height, width) if noisy is None else noisy
        t = torch.zeros(len(low), device=low.device) if t is None else t
        return to_multiple(low, self.block // self.scale), to_multiple(noisy, self.block), t

    def forward(
        self, low: Tensor, noisy: Tensor | None = None, t: Tensor | None = None, *, see: See = beside
    ) -> Tensor:
        """One denoising pass over the whole picture.

        Args:
            low: (B, C, h, w).
            noisy: (B, C, s·h, s·w); None for zeros.
            t: times, (B,); None for zeros.
            see: attention of all blocks, `foveal.nn.block_attention.beside` or its reference, `dense`.

        Returns:
            (B, C, s·h, s·w).

        Raises:
            ValueError: a noisy picture of another size.
        """
        height, width = (self.scale * side for side in low.shape[-2:])
        low, noisy, t = self._padded(low, noisy, t)
        embedded = self._embedded(low, t)
        pictures = torch.cat([noisy, upsampled(low, (noisy.shape[-2], noisy.shape[-1]))], 1)
        x = self._blocks(self.embed(pictures), self.side)
        rows, columns = x.shape[1:3]
        three = 3 * self.low_side
        near = F.unfold(self.embed_low(low), three, padding=self.low_side, stride=self.low_side)
        # (B, rows, columns, 9 blocks' tokens, C)
        near = near.unflatten(1, (self.dim, -1)).permute(0, 3, 2, 1).unflatten(1, (rows, columns))
        places = self._places(0, 0, rows, columns)
        for layer in self.layers:
            x = layer(x, embedded, places, near, see)
        return self._predicted(x, embedded)[..., :height, :width]

    def _near(self, low: Tensor, row: int, column: int) -> tuple[Tensor, Tensor]:
        """Bicubic picture of a block and tokens of the 3×3 low-resolution blocks around it."""
        side, s = self.block // self.scale, self.scale
        spans = [(at * side, (at + 1) * side, length) for at, length in zip((row, column), low.shape[-2:], strict=True)]
        (top, down), (first, last) = ((max(0, a - MARGIN), min(end, b + MARGIN)) for a, b, end in spans)
        large = upsampled(low[..., top:down, first:last], (s * (down - top), s * (last - first)))
        y, x = s * (row * side - top), s * (column * side - first)
        (top, down), (first, last) = ((max(0, a - side), min(end, b + side)) for a, b, end in spans)
        tokens = self.embed_low(low[..., top:down, first:last])
        lacking = [(a - side < 0, b + side > end) for a, b, end in spans]
        (above, below), (left, right) = ([self.low_side * lacks for lacks in pair] for pair in lacking)
        tokens = F.pad(tokens, (left, right, above, below))
        return large[..., y : y + self.block, x : x + self.block], tokens.flatten(2).mT[:, None, None]

    def blockwise(
        self, low: Tensor, noisy: Tensor | None = None, t: Tensor | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """The same pass block by block, in the order of reading; a row of blocks is kept.

        Args:
            low: (B, C, h, w).
            noisy: (B, C, s·h, s·w); None for zeros.
            t: times, (B,); None for zeros.

        Yields:
            Row, column and prediction of each block, (B, C, block, block), smaller at the far borders.

        Raises:
            ValueError: a noisy picture of another size.
        """
        height, width = (self.scale * side for side in low.shape[-2:])
        low, noisy, t = self._padded(low, noisy, t)
        embedded, side = self._embedded(low, t), self.block
        columns = noisy.shape[-1] // side
        above: list[Kept | None] = [None] * columns
        for row in range(noisy.shape[-2] // side):
            left: Kept | None = None
            corner: Kept | None = None
            for column in range(columns):
                top = above[column]
                own: Kept = []
                y, x = row * side, column * side
                large, near = self._near(low, row, column)
                tokens = self.embed(torch.cat([noisy[..., y : y + side, x : x + side], large], 1))
                tokens = self._blocks(tokens, self.side)
                places = self._places(row, column, 1, 1)
                for index, layer in enumerate(self.layers):
                    others = [None if kept is None else kept[index] for kept in (corner, left, top)]
                    tokens = layer(tokens, embedded, places, near, partial(beside_kept, others, own))
                yield row, column, self._predicted(tokens, embedded)[..., : height - y, : width - x]
                corner, above[column], left = top, own, own

    def streamed(self, low: Tensor, noisy: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """The blocks of `blockwise` as a picture.

        Args:
            low: (B, C, h, w).
            noisy: (B, C, s·h, s·w); None for zeros.
            t: times, (B,); None for zeros.

        Returns:
            (B, C, s·h, s·w), what `forward` gives.
        """
        out = low.new_empty(*low.shape[:2], *(self.scale * side for side in low.shape[-2:]))
        for row, column, made in self.blockwise(low, noisy, t):
            y, x = row * self.block, column * self.block
            out[..., y : y + made.shape[-2], x : x + made.shape[-1]] = made
        return out


METHOD = Method(
    id=182,
    name="Inf-DiT",
    kind="model",
    summary="A diffusion transformer whose blocks see only those above and to the left, so one row of them is kept.",
    paper=Paper(
        "Inf-DiT: Upsampling Any-Resolution Image with Memory-Efficient Diffusion Transformer",
        "Z. Yang et al.",
        2024,
        "arXiv:2405.04312",
    ),
    models={"inf_dit": InfDiT},
    cases={"inf_dit": {"scale": 2, "dim": 8, "depth": 2, "num_heads": 2, "patch_size": 2, "block": 8}},
)
