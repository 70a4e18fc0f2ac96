"""IARN: an invertible network hides what a smaller picture would lose in that picture, for any factor of each side.

*Source*: Z. Pan et al., "Effective Invertible Arbitrary Image Rescaling", WACV 2023 (arXiv:2209.13055). A picture x,
(B, 3, H, W), is split before anything else (preemptive channel splitting) into what its smaller self of h×w tells and
the rest, both of H×W, D and U being bicubic resizing to h×w and back; K coupling blocks exchange between the two:

    y = U(D(x)),   z = x - y
    y ← y + F(z, p),   z ← z ⊙ exp(s) + G(y, p),   s = 2 σ(H(y, p)) - 1              block, exactly invertible
    small = Q( D(x) + D(y_K - y) )                                                  z_K is dropped
    y_K ≈ U(small),   z_K = 0,   blocks backwards,   x̂ = y + z
    loss = mean |x̂ - x| + λ mean (small - D(x))² + μ mean z_K²

p, (4, H, W), is the position-aware scale encoding: each pixel's offset from the centre of the small grid's pixel in
which it lies, and log₂ of both scales (`foveal.nn.rescaling.cells`). F, G and H are densely connected 3×3 convolutions,
and Q rounds to 8 bits and lets gradients pass. With y_K and z_K kept, x comes back exactly.

*Differs from the paper*: of which only the abstract and the first page could be read; the blocks are those of the
network it names as its base, IRN (arXiv:2005.05650), and the encoding, the grid of the blocks (that of the large
picture) and μ are chosen here. D(x) is not resized twice: only what the blocks change is.

*Provenance*: written from the abstract, the description in the catalogue and IRN's equations; there is no code of the
authors. Blocks and dense convolutions equal IRN's (pkuxmq/Invertible-Image-Rescaling) to 2e-16 in float64.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.rescaling import cells, resized, rounded
from foveal.record import Method, Paper

__all__ = ["IARN", "Coupling", "invertible_loss", "split"]


def split(x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Part a picture into what its smaller self tells and the rest.

    Args:
        x: (B, 3, H, W).
        size: h, w of the smaller one.

    Returns:
        D(x), (B, 3, h, w); y and z, (B, 3, H, W) each, whose sum is x.
    """
    small = resized(x, size)
    low = resized(small, (x.shape[-2], x.shape[-1]))
    return small, low, x - low


def invertible_loss(
    x: Tensor, small: Tensor, rest: Tensor, back: Tensor, *, guide: float = 4.0, drop: float = 0.01
) -> Tensor:
    """Reconstruction, closeness of the small picture to bicubic, and smallness of what is dropped.

    Args:
        x: pictures, (B, 3, H, W).
        small: (B, 3, h, w).
        rest: z_K, of any shape.
        back: x̂, (B, 3, H, W).
        guide: λ.
        drop: μ.

    Returns:
        Scalar.
    """
    near = F.mse_loss(small, resized(x, (small.shape[-2], small.shape[-1])))
    return F.l1_loss(back, x) + guide * near + drop * rest.square().mean()


class _Dense(nn.Module):
    """F, G or H: (B, 3, H, W) and p, (4, H, W), to (B, 3, H, W), 0 at the start."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(7 + i * dim, dim, 3, padding=1) for i in range(layers))
        self.out = nn.Conv2d(7 + layers * dim, 3, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast("Tensor", self.out.bias))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        y = torch.cat([x, told.expand(len(x), -1, -1, -1)], 1)
        for layer in self.layers:
            y = torch.cat([y, F.leaky_relu(layer(y), 0.2)], 1)
        out: Tensor = self.out(y)
        return out


class Coupling(nn.Module):
    """A block: y and z, (B, 3, H, W) each, to the same shapes.

    Args:
        shift: F.
        add: G.
        stretch: H.
    """

    def __init__(self, shift: nn.Module, add: nn.Module, stretch: nn.Module) -> None:
        super().__init__()
        self.shift, self.add, self.stretch = shift, add, stretch

    def forward(self, y: Tensor, z: Tensor, *told: Tensor) -> tuple[Tensor, Tensor]:
        y = y + self.shift(z, *told)
        return y, z * (2 * torch.sigmoid(self.stretch(y, *told)) - 1).exp() + self.add(y, *told)

    def inverse(self, y: Tensor, z: Tensor, *told: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` was given.

        Args:
            y: first output, (B, 3, H, W).
            z: second output, the same shape.
            *told: what F, G and H are told besides.

        Returns:
            Its y and z.
        """
        z = (z - self.add(y, *told)) * (1 - 2 * torch.sigmoid(self.stretch(y, *told))).exp()
        return y - self.shift(z, *told), z


class IARN(nn.Module):
    """The cycle, (B, 3, H, W) to the same shape by way of a small picture; RGB in [0, 1].

    Args:
        dim: channels that each layer of F, G and H adds.
        depth: K, coupling blocks.
        layers: layers of F, G and H before their last one.
    """

    in_channels, out_channels, scale = 3, 3, 1

    def __init__(self, *, dim: int = 32, depth: int = 8, layers: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Coupling(*(_Dense(dim, layers) for _ in range(3))) for _ in range(depth))

    def mixed(self, y: Tensor, z: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """All blocks.

        Args:
            y: (B, 3, H, W).
            z: the same shape.
            size: h, w, of the small picture.

        Returns:
            y_K and z_K.
        """
        told = cells(size, (y.shape[-2], y.shape[-1])).to(y)
        for block in self.blocks:
            y, z = block(y, z, told)
        return y, z

    def unmixed(self, y: Tensor, z: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """All blocks backwards.

        Args:
            y: y_K, (B, 3, H, W).
            z: z_K, the same shape.
            size: h, w, of the small picture.

        Returns:
            y and z.
        """
        told = cells(size, (y.shape[-2], y.shape[-1])).to(y)
        for block in reversed(self.blocks):
            y, z = cast("Coupling", block).inverse(y, z, told)
        return y, z

    def hidden(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Make pictures smaller, and say what is dropped.

        Args:
            x: (B, 3, H, W).
            size: h, w, at most H and W.

        Returns:
            The small picture, (B, 3, h, w), multiples of 1/255 in [0, 1]; z_K, (B, 3, H, W).

        Raises:
            ValueError: a side that becomes larger, or none.
        """
        if not (1 <= size[0] <= x.shape[-2] and 1 <= size[1] <= x.shape[-1]):
            raise ValueError(
                f"sides must be from 1 to {tuple(x.shape[-2:])}, got {tuple(size)}; `up` makes pictures larger"
            )
        small, low, rest = split(x, size)
        mixed, dropped = self.mixed(low, rest, size)
        return rounded(small + resized(mixed - low, size)), dropped

    def down(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Make pictures smaller.

        Args:
            x: (B, 3, H, W).
            size: h, w, at most H and W.

        Returns:
            (B, 3, h, w), multiples of 1/255 in [0, 1].
        """
        return self.hidden(x, size)[0]

    def up(self, small: Tensor, size: tuple[int, int]) -> Tensor:
        """Make small pictures large again.

        Args:
            small: (B, 3, h, w).
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
        mixed = resized(small, size)
        low, rest = self.unmixed(mixed, torch.zeros_like(mixed), (small.shape[-2], small.shape[-1]))
        return low + rest

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
    id=58,
    name="IARN",
    kind="model",
    summary="Makes pictures smaller by any factor with an invertible network that makes them large again.",
    paper=Paper("Effective Invertible Arbitrary Image Rescaling", "Z. Pan et al.", 2023, "arXiv:2209.13055"),
    models={"iarn": IARN},
    cases={"iarn": {"dim": 4, "depth": 1, "layers": 1}},
)
