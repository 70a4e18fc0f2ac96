"""LASI: a perceptual distance of pictures from how each pixel is best predicted by those before it; nothing is learnt.

*Source*: D. Severo et al., "The Unreasonable Effectiveness of Linear Prediction as a Perceptual
Metric", ICLR 2024 (arXiv:2310.05986), section 3. With z(q), (D,), the D nearest neighbours of a pixel q among those
before it in raster order, the embedding of a pixel p solves weighted least squares over all pixels before it,

    u(p) = argmin_u Σ_{q before p} ω^|p - q|₁ (x(q) - u · z(q))² + λ |u|²,   u(p): (D,)
         = (Σ ω^|p - q|₁ z(q) z(q)ᵀ + λ I)⁻¹ Σ ω^|p - q|₁ x(q) z(q)
    distance = mean_p | û_x(p) - û_y(p) |,   û = u / |u|

Entries of the D×D matrices depend on the difference of two neighbours and are shared by all pairs with that difference:
one map of products x(q) x(q + d) for each, summed with its weights by a filter along rows and then along columns.
D is 2, 6, 12 or 20 for neighbours up to a distance of 1, 2, 3 or 4.

*Differs from the paper*: each channel is predicted by its own neighbours, not by other channels; the plane around the
picture is 0 and counts as pixels before p, so that neighbourhoods are the same everywhere, where the authors complete
them with pixels further away. ω = 0.8 and λ = 80 / 127.5 for values in [-1, 1] are from the authors' code.

*Provenance*: written from the paper; constants from the authors' code (dsevero/Linear-Autoregressive-Similarity-Index),
whose embeddings it equals to 3e-15 on a plane that zeros surround, for D of 2, 6 and 12, compared by hand in float64.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = ["DECAY", "RIDGE", "embedding", "embedding_reference", "lasi", "lasi_loss", "neighbours"]

DECAY, RIDGE = 0.8, 80 / 127.5
BLOCK = 32  # pixels of a row that are filtered by one small matrix
STRIP = 8192  # pixels that are solved for at a time: their matrices stay in the cache


@cache
def neighbours(dim: int) -> tuple[tuple[int, int], ...]:
    """Places of the nearest pixels before a pixel in raster order.

    Args:
        dim: D.

    Returns:
        Rows and columns from the pixel, nearest first, those of equal distance in raster order.

    Raises:
        ValueError: D below 1.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}; 6 is the default")
    reach = range(-dim, dim + 1)
    places = [(y, x) for y in range(-dim, 1) for x in reach if y < 0 or x < 0]
    return tuple(sorted(places, key=lambda place: (abs(place[0]) + abs(place[1]), place))[:dim])


@cache
@torch.inference_mode(False)  # a cached tensor must also be usable in a later training step
def _toeplitz(size: int, decay: float) -> tuple[Tensor, Tensor]:
    """Weights of strict decaying sums: element i to later elements j of a block; whole blocks to later ones."""
    lag = torch.arange(size, dtype=torch.float64)[None] - torch.arange(size, dtype=torch.float64)[:, None]
    return torch.where(lag > 0, decay**lag, 0), torch.where(lag > 0, decay ** (BLOCK * (lag - 1)), 0)


@cache
@torch.inference_mode(False)  # a cached tensor must also be usable in a later training step
def _weights(length: int, decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of a row's filter: in a block, of blocks' totals to carries, and the share of a carry."""
    within, carry = _toeplitz(BLOCK, decay)[0], _toeplitz(-(-length // BLOCK), decay)[1]
    at = torch.arange(BLOCK, dtype=torch.float64)
    return torch.cat([within, (decay ** (BLOCK - at))[:, None]], 1), carry, decay**at


def _past(maps: Tensor, decay: float) -> Tensor:
    """Sums over all pixels before each in raster order, with weights decay^distance, (n, H, W) to the same.

    Along rows to the left and to the right, then what is known of whole rows downwards; each filter is a small matrix
    inside blocks of pixels and another one that carries the blocks' totals on.
    """
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (0, -width % BLOCK))
    within, carry, share = (part.to(maps) for part in _weights(width, decay))
    blocks = padded.unflatten(-1, (-1, BLOCK))  # (n, H, blocks, 32)
    forth, back = blocks @ within, blocks @ within.flip(0, 1).roll(-1, 1)
    left = torch.addcmul(forth[..., :-1], (forth[..., -1] @ carry)[..., None], share)
    rows = torch.addcmul(blocks + back[..., :-1], (back[..., -1] @ carry.T)[..., None], share.flip(0)) + left
    rows = F.pad(rows.flatten(-2), (0, 0, 0, -height % BLOCK)).unflatten(-2, (-1, BLOCK))  # (n, blocks, 32, W)
    within, carry, share = (part.to(maps) for part in _weights(height, decay))
    down = within.T @ rows
    carried = carry.T @ down[:, :, -1]
    below = torch.addcmul(down[:, :, :-1], carried[:, :, None], share[:, None])
    return (below.flatten(1, 2)[:, :height] + left.flatten(-2))[..., :width]


def _solved(matrix: list[list[Tensor]], wanted: list[Tensor]) -> Tensor:
    """Solve positive definite systems, one a pixel, by elimination on whole maps.

    Args:
        matrix: lower triangle, D rows of 1 to D entries, (n,) each.
        wanted: right side, D of (n,).

    Returns:
        Solutions, (D, n).
    """
    dim = len(wanted)
    rows, side = [list(row) for row in matrix], list(wanted)
    for k in range(dim):
        inverse = rows[k][k].reciprocal()
        for i in range(k + 1, dim):
            factor = rows[i][k] * inverse
            for j in range(k + 1, i + 1):
                rows[i][j] = torch.addcmul(rows[i][j], factor, rows[j][k], value=-1)
            side[i] = torch.addcmul(side[i], factor, side[k], value=-1)
    found: list[Tensor] = side
    for i in reversed(range(dim)):
        for j in range(i + 1, dim):
            found[i] = torch.addcmul(found[i], rows[j][i], found[j], value=-1)
        found[i] = found[i] / rows[i][i]
    return torch.stack(found)


def embedding(x: Tensor, *, dim: int = 6, decay: float = DECAY, ridge: float = RIDGE) -> Tensor:
    """Coefficients that predict each pixel from its neighbours, as all pixels before it were best predicted.

    Args:
        x: planes, (n, H, W), values in [-1, 1].
        dim: D.
        decay: ω, in (0, 1).
        ridge: λ, above 0.

    Returns:
        u, (n, D, H, W).

    Raises:
        ValueError: another number of axes, or ω or λ out of range.
    """
    if x.ndim != 3 or not 0 < decay < 1 or ridge <= 0:
        raise ValueError(
            f"LASI takes planes (n, H, W), decay in (0, 1) and ridge above 0, got {tuple(x.shape)}, {decay}, {ridge}"
        )
    places = neighbours(dim)
    reach = max(max(abs(y), abs(z)) for y, z in places)
    height, width = x.shape[-2:]
    around = F.pad(x, (reach,) * 4)
    points = [*places, (0, 0)]
    # For each difference of two points, in raster order, the maps of its products and where they are read.
    read: dict[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]] = {}
    for i, a in enumerate(points):
        for j, b in enumerate(points[: min(i, dim - 1) + 1]):
            first, second = min(a, b), max(a, b)
            read[i, j] = first, (second[0] - first[0], second[1] - first[1])
    kinds = sorted({difference for _, difference in read.values()})
    wide = F.pad(around, (2 * reach, 2 * reach, 0, 2 * reach))
    tall, broad = around.shape[-2:]
    shifted = [wide[:, y : y + tall, 2 * reach + z : 2 * reach + z + broad] for y, z in kinds]
    sums = [_past(around * other, decay) for other in shifted]  # (n, H + 2r, W + 2r) each

    def entry(i: int, j: int) -> Tensor:
        (y, z), difference = read[i, j]
        part = sums[kinds.index(difference)]
        return part[:, reach + y : reach + y + height, reach + z : reach + z + width].reshape(-1)

    strips = []
    entries = {pair: entry(*pair) for pair in read}
    for begin in range(0, x.numel(), STRIP):
        here = {pair: value[begin : begin + STRIP] for pair, value in entries.items()}
        matrix = [[here[i, j] + ridge if i == j else here[i, j] for j in range(i + 1)] for i in range(dim)]
        strips.append(_solved(matrix, [here[dim, j] for j in range(dim)]))
    return torch.cat(strips, 1).unflatten(1, x.shape).movedim(0, 1)


def embedding_reference(x: Tensor, *, dim: int = 6, decay: float = DECAY, ridge: float = RIDGE) -> Tensor:
    """`embedding`, one pixel after the other.

    Args:
        x: planes, (n, H, W), values in [-1, 1].
        dim: D.
        decay: ω, in (0, 1).
        ridge: λ, above 0.

    Returns:
        u, (n, D, H, W).
    """
    places, reach = neighbours(dim), dim
    height, width = x.shape[-2:]
    plane = F.pad(x, (2 * reach,) * 4)
    inside = [(y, z) for y in range(-reach, height) for z in range(-reach, width + reach)]
    known = torch.stack(
        [torch.stack([plane[:, 2 * reach + y + dy, 2 * reach + z + dz] for dy, dz in places], 1) for y, z in inside]
    )
    target = torch.stack([plane[:, 2 * reach + y, 2 * reach + z] for y, z in inside])  # (pixels, n)
    made = []
    for y in range(height):
        for z in range(width):
            weights = torch.tensor([
                decay ** (abs(y - row) + abs(z - column)) if (row, column) < (y, z) else 0.0 for row, column in inside
            ], dtype=x.dtype)  # fmt: skip
            matrix = torch.einsum("q,qni,qnj->nij", weights, known, known) + ridge * torch.eye(dim, dtype=x.dtype)
            made.append(torch.linalg.solve(matrix, torch.einsum("q,qn,qni->ni", weights, target, known)))
    return torch.stack(made, 2).unflatten(2, (height, width))


def lasi(x: Tensor, y: Tensor, *, dim: int = 6) -> Tensor:
    """Distance of pictures.

    Args:
        x: pictures, (B, C, H, W), values in [0, 1]; one channel, luminance, takes a third of the time of three.
        y: pictures of the same shape.
        dim: D, the length of a pixel's embedding.

    Returns:
        Distance of each picture, (B,), in [0, 2]; 0 for equal ones.

    Raises:
        ValueError: different shapes.
    """
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(f"LASI takes two batches (B, C, H, W) of one shape, got {tuple(x.shape)}, {tuple(y.shape)}")
    planes = torch.cat([x, y]).flatten(0, 1)
    units = F.normalize(embedding(2 * planes - 1, dim=dim) + 1e-6, dim=1)
    ours, theirs = units.unflatten(0, (2, *x.shape[:2]))  # (B, C, D, H, W)
    return torch.linalg.vector_norm(ours - theirs, dim=2).mean((1, 2, 3))


def lasi_loss(out: Tensor, target: Tensor) -> Tensor:
    """The mean distance of pictures, as a loss.

    Args:
        out: a network's pictures, (B, C, H, W), values in [0, 1].
        target: what they should be, of the same shape; it gets no gradient.

    Returns:
        Scalar.
    """
    return lasi(out, target.detach()).mean()


def _planes(seed: int, *shape: int) -> dict[str, Any]:
    return {"x": 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1}


METHOD = Method(
    id=246,
    name="LASI",
    kind="operator",
    summary="A perceptual distance from the coefficients that predict each pixel from those before it.",
    paper=Paper(
        "The Unreasonable Effectiveness of Linear Prediction as a Perceptual Metric",
        "D. Severo et al.",
        2024,
        "arXiv:2310.05986",
    ),
    cases={
        "two": Operator(
            lambda x: embedding(x, dim=2), lambda x: embedding_reference(x, dim=2), lambda seed: _planes(seed, 2, 4, 5)
        ),
        "six": Operator(embedding, embedding_reference, lambda seed: _planes(seed, 1, 5, 4)),
    },
)
