"""BAIRNet: two networks learn together to make a picture smaller and large again, by any factor along each side.

*Source*: Z. Pan et al., "Towards Bidirectional Arbitrary Image Rescaling: Joint Optimization and Cycle Idempotence",
CVPR 2022 (arXiv:2203.00911). For a picture x, (B, 3, H, W), and any smaller size h×w,

    y = Q( bicubic(x → h×w) + T_d( R_d( E_d(x) → h×w ) ) )         down: features of all pixels, read in each new cell
    x̂ = bicubic(y → H×W) + T_u( R_u( E_u(y) → H×W ) )              up: the same with the sides' roles exchanged
    R(f → h×w)(q) = GELU(a + ρ b + γ c),   [a, b, c] = W [f at 3×3 points of q's cell; ρ; γ; log₂ of its sides]
    loss = mean |x̂ - x| + λ mean (y - bicubic(x → h×w))²

ρ and γ are q's offsets from the middle of the old pixel in which it lies. Q rounds to 8 bits and lets gradients pass.
E and T are residual blocks; those of the small grid, where they are cheap, are `depth`, those of the large grid
`fine`. What is lost in x̂ teaches the downscaling network which detail to put into y, which otherwise stays as bicubic
made it. R is `foveal.nn.rescaling.resampled` with `cells`.

*Differs from the paper*: of which only the abstract and the first page could be read, so that sizes, blocks, the
weights of the loss and how features are read are chosen here; both networks add to bicubic resizing, which they start
as.

*Provenance*: written from the abstract and the description in the catalogue; there is no code of the authors.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.rescaling import cells, resampled, resized, rounded
from foveal.record import Method, Paper

__all__ = ["BAIRNet", "Rescaler", "rescaling_loss"]

POINTS = 3  # along each axis of a cell


def rescaling_loss(x: Tensor, small: Tensor, back: Tensor, *, guide: float = 1.0) -> Tensor:
    """Reconstruction and closeness of the small picture to bicubic.

    Args:
        x: pictures, (B, 3, H, W).
        small: y, (B, 3, h, w).
        back: x̂, (B, 3, H, W).
        guide: λ.

    Returns:
        Scalar.
    """
    return F.l1_loss(back, x) + guide * F.mse_loss(small, resized(x, (small.shape[-2], small.shape[-1])))


class _Residual(nn.Module):
    """(B, D, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1), nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Rescaler(nn.Module):
    """One direction: a picture (B, 3, H, W) and a size to the picture at that size, (B, 3, h, w).

    Args:
        dim: D.
        before: residual blocks on the old grid.
        after: residual blocks on the new one.
    """

    def __init__(self, dim: int, *, before: int, after: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(3, dim, 3, padding=1), nn.GELU(), *(_Residual(dim) for _ in range(before))
        )  # fmt: skip
        self.read = nn.Conv2d(POINTS**2 * dim + 4, 3 * dim, 1)
        self.body = nn.Sequential(*(_Residual(dim) for _ in range(after)))
        self.tail = nn.Conv2d(dim, 3, 3, padding=1)
        nn.init.zeros_(self.tail.weight)  # at the start, bicubic
        nn.init.zeros_(cast("Tensor", self.tail.bias))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        features = resampled(self.head(x), size, points=POINTS)  # (B, 9D, h, w)
        told = cells((x.shape[-2], x.shape[-1]), size).to(x).expand(len(x), -1, -1, -1)
        still, down, across = self.read(torch.cat([features, told], 1)).chunk(3, 1)
        y = F.gelu(still + told[:, :1] * down + told[:, 1:2] * across)
        out: Tensor = resized(x, size) + self.tail(self.body(y))
        return out


class BAIRNet(nn.Module):
    """The cycle, (B, 3, H, W) to the same shape by way of a small picture; RGB in [0, 1].

    Args:
        dim: D.
        depth: residual blocks of each network on the small grid.
        fine: residual blocks of each network on the large grid.
    """

    in_channels, out_channels, scale = 3, 3, 1

    def __init__(self, *, dim: int = 64, depth: int = 16, fine: int = 4) -> None:
        super().__init__()
        self.reduce = Rescaler(dim, before=fine, after=depth)
        self.enlarge = Rescaler(dim, before=depth, after=fine)

    def down(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Make pictures smaller.

        Args:
            x: (B, 3, H, W).
            size: h, w, at most H and W.

        Returns:
            y, (B, 3, h, w), multiples of 1/255 in [0, 1].

        Raises:
            ValueError: a side that becomes larger, or none.
        """
        if not (1 <= size[0] <= x.shape[-2] and 1 <= size[1] <= x.shape[-1]):
            raise ValueError(
                f"sides must be from 1 to {tuple(x.shape[-2:])}, got {tuple(size)}; `up` makes pictures larger"
            )
        return rounded(self.reduce(x, size))

    def up(self, small: Tensor, size: tuple[int, int]) -> Tensor:
        """Make small pictures large again.

        Args:
            small: y, (B, 3, h, w).
            size: H, W, at least h and w.

        Returns:
            x̂, (B, 3, H, W).

        Raises:
            ValueError: a side that becomes smaller.
        """
        if size[0] < small.shape[-2] or size[1] < small.shape[-1]:
            raise ValueError(
                f"sides must be at least {tuple(small.shape[-2:])}, got {tuple(size)}; `down` makes pictures smaller"
            )
        out: Tensor = self.enlarge(small, size)
        return out

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Smaller and large again.

        Args:
            x: (B, 3, H, W).
            size: h, w; None for half of each side.

        Returns:
            x̂, (B, 3, H, W).
        """
        height, width = x.shape[-2:]
        half = ((height + 1) // 2, (width + 1) // 2)
        return self.up(self.down(x, half if size is None else size), (height, width))


METHOD = Method(
    id=41,
    name="BAIRNet",
    kind="model",
    summary="Makes pictures smaller by any factor such that it can make them large again with little loss.",
    paper=Paper(
        "Towards Bidirectional Arbitrary Image Rescaling: Joint Optimization and Cycle Idempotence",
        "Z. Pan et al.",
        2022,
        "arXiv:2203.00911",
    ),
    models={"bairnet": BAIRNet},
    cases={"bairnet": {"dim": 4, "depth": 1, "fine": 0}},
)
