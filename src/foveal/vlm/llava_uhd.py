"""LLaVA-UHD: a picture of any size and shape as slices near the encoder's own shape, each compressed to a few tokens.

*Source*: R. Xu et al., "LLaVA-UHD: an LMM Perceiving Any Aspect Ratio and High-Resolution Images", ECCV 2024
(arXiv:2403.11703), section 3. A picture of W×H pixels for an encoder of Wv×Hv is cut into m columns and n rows,

    N = ⌈W·H / (Wv·Hv)⌉                                         ideal number of slices
    S(m, n) = −|log((W·n) / (H·m)) − log(Wv / Hv)|              how close a slice's shape is to the encoder's
    m, n = argmax S(m, n)  over  m·n ∈ {N − 1, N, N + 1}
    w·h ≤ P,  w : h ≈ W/m : H/n                                 patches of an encoded slice, P those of Wv×Hv

The encoder's positions are interpolated to (h, w). One resampler, K learnt queries, serves the slices and an overview
of the whole picture; "," stands between the slices of a row and a line break behind each row, so that

    tokens = K·(m·n + 1) + n·(m − 1) + n,   K for a picture that is not cut.

*Differs from the paper*: the paper does not say in which order overview and slices stand; here the overview comes
first. A tie of two grids goes to fewer slices, then to fewer columns. A cap on the slices is an argument; the paper has
none.
*Provenance*: written from the paper. The authors' code (thunlp/LLaVA-UHD, `slice_image_minicpm`) chooses the grid
by the same rule for a square encoder; it first reduces the picture to multiples of a patch, where slices here cover
every pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

__all__ = ["COMMA", "NEWLINE", "Plan", "Resampler", "Sliced", "cost", "encoded", "plan", "score", "slices"]

COMMA, NEWLINE = -1, -2  # in a schema, beside the numbers of pictures


def score(size: tuple[int, int], grid: tuple[int, int], encoder: tuple[int, int] = (336, 336)) -> float:
    """How close the shape of a grid's slices is to the shape that the encoder was trained on.

    Args:
        size: height and width of the picture, in pixels.
        grid: rows and columns.
        encoder: height and width that the encoder was trained on, in pixels.

    Returns:
        S, at most 0.
    """
    (height, width), (rows, columns) = size, grid
    return -abs(math.log(width * rows / (height * columns)) - math.log(encoder[1] / encoder[0]))


def encoded(size: tuple[float, float], patches: int) -> tuple[int, int]:
    """Patches that a slice is encoded in.

    Args:
        size: height and width of the slice; only their ratio counts.
        patches: the most that there may be, P.

    Returns:
        Rows and columns, h·w ≤ P.
    """
    ratio = size[1] / size[0]
    rows, columns = (max(1, math.floor(math.sqrt(patches * part) + 1e-9)) for part in (1 / ratio, ratio))
    rows = min(rows, patches)
    return rows, min(columns, patches // rows)


@dataclass(frozen=True)
class Plan:
    """What becomes of a picture.

    Args:
        size: height and width of the picture, in pixels.
        grid: rows and columns of slices; (1, 1) for a picture that is not cut.
        patch: side of a patch, in pixels.
        patches: P.
        queries: K.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    patch: int = 14
    patches: int = 576
    queries: int = 64

    @property
    def boxes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Top, left, bottom and right of each slice in reading order, in pixels; none if the picture is not cut."""
        if self.grid == (1, 1):
            return ()
        rows, columns = (
            [round(i * side / parts) for i in range(parts + 1)]
            for side, parts in zip(self.size, self.grid, strict=True)
        )
        return tuple((top, left, bottom, right) for top, bottom in pairwise(rows) for left, right in pairwise(columns))

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Patches, rows and columns, of the overview and of each slice."""
        each = encoded((self.size[0] / self.grid[0], self.size[1] / self.grid[1]), self.patches)
        return (encoded(self.size, self.patches), *[each] * len(self.boxes))

    @property
    def schema(self) -> tuple[int, ...]:
        """What stands where: 0 the overview, 1 … the slices, `COMMA` and `NEWLINE`."""
        rows, columns = self.grid
        order = [0]
        for row in range(rows if self.boxes else 0):
            for column in range(columns):
                order += [1 + row * columns + column, NEWLINE if column == columns - 1 else COMMA]
        return tuple(order)

    @property
    def tokens(self) -> int:
        """Tokens that the language model reads."""
        return sum(self.queries if entry >= 0 else 1 for entry in self.schema)


def plan(
    size: tuple[int, int],
    *,
    encoder: tuple[int, int] = (336, 336),
    patch: int = 14,
    queries: int = 64,
    most: int | None = None,
) -> Plan:
    """Cut a picture.

    Args:
        size: height and width of the picture, in pixels.
        encoder: height and width that the encoder was trained on, in pixels.
        patch: side of a patch, in pixels.
        queries: tokens that a slice becomes, K.
        most: the most slices; None for as many as the picture asks for.

    Returns:
        The plan.

    Raises:
        VlmError: a number below 1, or an encoder smaller than a patch.
    """
    if min(*size, *encoder, patch, queries, 1 if most is None else most) < 1 or min(encoder) < patch:
        raise VlmError(
            f"sizes and counts must be at least 1 and the encoder at least one patch, got a picture of {size}, an "
            f"encoder of {encoder}, patches of {patch}, {queries} queries and at most {most} slices"
        )
    ideal = math.ceil(size[0] * size[1] / (encoder[0] * encoder[1]))
    grid = (1, 1)
    if ideal > 1:
        limit = ideal + 1 if most is None else most
        counts = [n for n in (ideal - 1, ideal, ideal + 1) if n <= limit] or [limit]
        grids = [(n // columns, columns) for n in counts for columns in range(1, n + 1) if n % columns == 0]
        grid = max(grids, key=lambda g: (round(score(size, g, encoder), 12), -g[0] * g[1], -g[1]))
    return Plan(size, grid, patch, (encoder[0] // patch) * (encoder[1] // patch), queries)


def slices(picture: Tensor, plan: Plan) -> list[Tensor]:
    """The pictures that the encoder sees.

    Args:
        picture: pixels, (B, C, H, W).
        plan: of this size.

    Returns:
        The overview and the slices, each (B, C, p·h, p·w), antialiased.

    Raises:
        VlmError: a plan of another size.
    """
    if tuple(picture.shape[-2:]) != plan.size:
        raise VlmError(f"the plan is for {plan.size} pixels, got a picture of {tuple(picture.shape[-2:])}; plan anew")
    parts = [picture, *(picture[..., top:bottom, left:right] for top, left, bottom, right in plan.boxes)]
    return [
        F.interpolate(part, (h * plan.patch, w * plan.patch), mode="bicubic", antialias=True, align_corners=False)
        for part, (h, w) in zip(parts, plan.shapes, strict=True)
    ]


def sines(height: int, width: int, dim: int) -> Tensor:
    """Positions as sines of a row's and a column's number, (height · width, dim)."""
    rates = 10000 ** -(torch.arange(dim // 4) / max(1, dim // 4))
    rows, columns = (torch.arange(n)[:, None] * rates for n in (height, width))
    each = [torch.cat((angle.sin(), angle.cos()), 1) for angle in (rows, columns)]
    down, along = each[0][:, None].expand(-1, width, -1), each[1][None].expand(height, -1, -1)
    return torch.cat((down, along), 2).flatten(0, 1)


class Resampler(nn.Module):
    """Patches of a picture of any shape to K tokens: learnt queries attend to them once.

    Args:
        dim: channels of the patches.
        out_channels: channels of the tokens.
        queries: K.
        num_heads: attention heads.

    Raises:
        ValueError: `dim` that 4 or `num_heads` does not divide.
    """

    def __init__(self, dim: int, out_channels: int, *, queries: int = 64, num_heads: int = 8) -> None:
        super().__init__()
        if dim % 4 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of 4 and of num_heads, got {dim} and {num_heads} heads")
        self.out_channels = out_channels
        self.query = nn.Parameter(torch.randn(queries, dim) * dim**-0.5)
        self.norm, self.asked = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attend = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.out = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, out_channels))

    def forward(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """Patches, (B, h·w, C), of a picture of (h, w) patches to tokens, (B, K, out_channels)."""
        keys = self.norm(x)
        at = sines(*shape, x.shape[2]).to(x)
        query = self.asked(self.query).expand(len(x), -1, -1)
        mixed, _ = self.attend(query, keys + at, keys, need_weights=False)
        tokens: Tensor = self.out(query + mixed)
        return tokens


class Sliced(nn.Module):
    """An encoder, a resampler and the two separators: a picture of any size to tokens.

    Args:
        encoder: (B, C, p·h, p·w) to patches (B, h·w, dim); it interpolates its positions, as timm's networks of
            `dynamic_img_size` do.
        resampler: patches to tokens.
        img_size: side that the encoder was trained on, in pixels.
        patch_size: p.
        most: the most slices of a picture.
    """

    def __init__(
        self, encoder: nn.Module, resampler: Resampler, *, img_size: int, patch_size: int, most: int | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.resampler = encoder, resampler
        self.img_size, self.patch_size, self.most = img_size, patch_size, most
        self.separators = nn.Parameter(torch.randn(2, resampler.out_channels) * 0.02)  # "," and line break

    def plan(self, size: tuple[int, int]) -> Plan:
        """The plan for pictures of a height and a width."""
        side, queries = (self.img_size, self.img_size), len(self.resampler.query)
        return plan(size, encoder=side, patch=self.patch_size, queries=queries, most=self.most)

    def forward(self, picture: Tensor) -> Tensor:
        """Pictures, (B, C, H, W), to tokens, (B, `plan(...).tokens`, out_channels)."""
        made = self.plan((picture.shape[2], picture.shape[3]))
        overview, *parts = slices(picture, made)
        # slices have one shape: one pass encodes all
        return self.join(made, self.encoder(overview), self.encoder(torch.cat(parts)) if parts else None)

    def join(self, made: Plan, overview: Tensor, parts: Tensor | None) -> Tensor:
        """Tokens of encoded pictures.

        Args:
            made: the plan.
            overview: patches of the overview, (B, h·w, dim).
            parts: patches of the slices, one slice of all pictures after the other, (slices · B, h·w, dim); None if the
                picture is not cut.

        Returns:
            Tokens, (B, `made.tokens`, out_channels).
        """
        found = [self.resampler(overview, made.shapes[0])]
        if parts is not None:
            found += self.resampler(parts, made.shapes[1]).chunk(len(made.boxes))
        signs = self.separators[:, None, None].expand(-1, len(overview), 1, -1)
        return torch.cat([found[e] if e >= 0 else signs[0 if e == COMMA else 1] for e in made.schema], 1)


def cost(plan: Plan, *, resample: bool = True) -> float:
    """Multiply-adds of CLIP-L/14, the resampler and Vicuna-13B for one picture.

    Args:
        plan: of the picture.
        resample: whether patches become K tokens; else LLaVA-1.5's way, a token a patch through two linear layers.

    Returns:
        Multiply-adds; words are left out.
    """

    def layers(n: int, depth: int, dim: int, hidden: int, matrices: int) -> float:
        return depth * (4.0 * n * dim**2 + 2 * n**2 * dim + matrices * n * dim * hidden)

    vision, text = 1024, 5120
    patches = [h * w for h, w in plan.shapes]
    encoder = sum(layers(n + 1, 24, vision, 4 * vision, 2) + n * 3 * plan.patch**2 * vision for n in patches)
    if not resample:
        return encoder + sum(n * (vision * text + text**2) + layers(n, 40, text, 13824, 3) for n in patches)
    k = plan.queries
    between = sum(2 * n * vision**2 + 2 * k * vision**2 + 2 * k * n * vision + k * vision * text for n in patches)
    return encoder + between + layers(plan.tokens, 40, text, 13824, 3)


def _sliced(seed: int, encoder: nn.Module) -> Sliced:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        resampler = Resampler(12, 6, queries=2, num_heads=2)
        return Sliced(encoder, resampler, img_size=4, patch_size=2).double().requires_grad_(False)


class _Patches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.unfold(x, 2, stride=2).transpose(1, 2)


def _at_once(picture: Tensor) -> Tensor:
    tokens: Tensor = _sliced(0, _Patches())(picture)
    return tokens


def _each_alone(picture: Tensor) -> Tensor:
    """`Sliced`, slice after slice, attention written out."""
    model = _sliced(0, _Patches())
    made, found = model.plan((picture.shape[2], picture.shape[3])), []
    seen, net = slices(picture, made), model.resampler
    for entry in made.schema:
        if entry < 0:
            found.append(model.separators[-1 - entry].expand(len(picture), 1, -1))
            continue
        x, (h, w) = model.encoder(seen[entry]), made.shapes[entry]
        keys, query = net.norm(x), net.asked(net.query).expand(len(x), -1, -1)
        places = torch.stack([sines(h, w, 12)[i] for i in range(h * w)]).to(x)
        weights, bias = net.attend.in_proj_weight.chunk(3), net.attend.in_proj_bias.chunk(3)
        q, k, v = (F.linear(a, b, c) for a, b, c in zip((query, keys + places, keys), weights, bias, strict=True))
        heads = [
            (q[..., s] @ k[..., s].transpose(1, 2) / 6**0.5).softmax(2) @ v[..., s] for s in (slice(6), slice(6, 12))
        ]
        found.append(net.out(query + net.attend.out_proj(torch.cat(heads, 2))))
    return torch.cat(found, 1)


def _picture(seed: int) -> dict[str, Any]:
    return {"picture": torch.rand(2, 3, 7, 11, generator=torch.Generator().manual_seed(seed))}


METHOD = Method(
    id=65,
    name="LLaVA-UHD",
    kind="operator",
    summary="A picture of any size as slices near the encoder's shape, each compressed to a few tokens.",
    paper=Paper(
        "LLaVA-UHD: an LMM Perceiving Any Aspect Ratio and High-Resolution Images",
        "R. Xu et al.",
        2024,
        "arXiv:2403.11703",
    ),
    cases={"sliced": Operator(_at_once, _each_alone, _picture)},
)
