"""TorMentor: plasma fractals, made by convolutions, as the strength of an augmentation at each pixel.

*Source*: A. Nicolaou et al., "TorMentor: Deterministic dynamic-path, data augmentations with fractals", 2022
(arXiv:2204.03776), the section on plasma fractals. Noise u in [0, 1], (B, H, W), is the field z at the pixels of the
coarsest lattice. Each of L steps then halves the distance of known pixels; at step l, with a = ρ^l:

    z at centres of squares     = (1 - a) · mean of their 4 corners + a · u          by a convolution
    z at middles of the edges   = (1 - a) · mean of their 4 neighbours + a · u       by another; 3 at borders

Each pixel is made once, so that one map of noise is all that a field depends on. Values stay in [0, 1]. Power falls
with frequency f as f^-(2h + 2), h = -log2 ρ. Stretched to [-1, 1], a field times a strength is s in

    brightness   x + s            contrast   1/2 + (x - 1/2)(1 + s)            warp   out(p) = x(p + s(p))

*Differs from the paper*: three augmentations of many; contrast turns about 1/2 and not 0. The coarsest lattice is
noise; the authors' code makes one of 3×n pixels by a first step of its own. A warp's field is coarse and enlarged, and
weakened where the picture would fold, so that a point q has one place p, p + s(p) = q, found by iteration.

*Provenance*: written from the paper. With the same noise two steps equal the authors' `one_diamond_one_square` to 1e-7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = ["PlasmaAugment", "plasma", "plasma_fields", "plasma_reference", "warp", "warp_points"]

COARSE = 16  # a warp's field has this many distances of pixels on the shorter side; plasma has a cusp at each pixel
SLOPE = 0.7  # largest slope of a warp; from 1 on the picture could fold
STEPS = 40  # of the iteration that finds where a point goes; leaves SLOPE^STEPS = 6e-7 of the first error


def _checked(noise: Tensor, levels: int) -> None:
    if levels < 0 or any((side - 1) % 2**levels for side in noise.shape[1:]) or min(noise.shape[1:]) < 2:
        raise ValueError(
            f"height and width must be one more than a multiple of 2^levels = {2**levels}, got "
            f"{tuple(noise.shape[1:])}; plasma_fields makes any size"
        )


def _between(field: Tensor, centres: Tensor) -> Tensor:
    """Means of the neighbours of the middles of horizontal edges: two pixels, and a centre above and one below."""
    pad = torch.nn.functional.pad
    total = field[:, :, :-1] + field[:, :, 1:] + pad(centres, (0, 0, 1, 0)) + pad(centres, (0, 0, 0, 1))
    number = field.new_full((field.shape[1], 1), 4)
    number[0] = number[-1] = 3
    return total / number


def plasma(noise: Tensor, *, roughness: float = 0.5, levels: int) -> Tensor:
    """Plasma fractals from noise.

    Args:
        noise: u, in [0, 1], (B, H, W); H - 1 and W - 1 are multiples of 2^levels.
        roughness: ρ, in [0, 1]: the part of noise at a step over that of the step before.
        levels: L.

    Returns:
        z, in [0, 1], (B, H, W).

    Raises:
        ValueError: another size.
    """
    _checked(noise, levels)
    field = noise[:, :: 2**levels, :: 2**levels]
    for level in range(1, levels + 1):
        stride, amount = 2 ** (levels - level), roughness**level
        fresh = noise[:, ::stride, ::stride]
        # the two kernels act on one phase each of the finer lattice, so that no zero is multiplied
        centres = torch.nn.functional.avg_pool2d(field, 2, 1)
        centres = (1 - amount) * centres + amount * fresh[:, 1::2, 1::2]
        finer = torch.empty_like(fresh)
        finer[:, ::2, ::2], finer[:, 1::2, 1::2] = field, centres
        finer[:, ::2, 1::2] = (1 - amount) * _between(field, centres) + amount * fresh[:, ::2, 1::2]
        finer[:, 1::2, ::2] = (1 - amount) * _between(field.mT, centres.mT).mT + amount * fresh[:, 1::2, ::2]
        field = finer
    return field


def plasma_reference(noise: Tensor, *, roughness: float = 0.5, levels: int) -> Tensor:
    """The same, pixel by pixel.

    Args:
        noise: u, (B, H, W).
        roughness: ρ.
        levels: L.

    Returns:
        z, (B, H, W).
    """
    _checked(noise, levels)
    height, width = noise.shape[1:]
    known: dict[tuple[int, int], Tensor] = {}
    for i in range(0, height, 2**levels):
        for j in range(0, width, 2**levels):
            known[i, j] = noise[:, i, j]
    diagonal, straight = ((-1, -1), (-1, 1), (1, -1), (1, 1)), ((-1, 0), (1, 0), (0, -1), (0, 1))
    for level in range(1, levels + 1):
        step, amount = 2 ** (levels - level), roughness**level
        for ways, parity in ((diagonal, 0), (straight, 1)):
            for i in range(0, height, step):
                for j in range(step * ((i // step + 1) % 2 if parity else 1), width, 2 * step):
                    if not parity and i // step % 2 == 0:
                        continue
                    around = [known[at] for a, b in ways if (at := (i + a * step, j + b * step)) in known]
                    known[i, j] = (1 - amount) * sum(around) / len(around) + amount * noise[:, i, j]
    return torch.stack([torch.stack([known[i, j] for j in range(width)], -1) for i in range(height)], 1)


def plasma_fields(shape: tuple[int, int, int], *, seed: int, roughness: float = 0.5) -> Tensor:
    """Fields of any size, stretched to the whole of [-1, 1].

    Args:
        shape: (B, H, W), sides of at least 2.
        seed: seed of the noise.
        roughness: ρ, in [0, 1].

    Returns:
        Fields, (B, H, W).

    Raises:
        ValueError: a side below 2, or a roughness outside [0, 1].
    """
    if min(shape[1:]) < 2:
        raise ValueError(f"a field takes at least 2×2 pixels, got {shape[1]}×{shape[2]}")
    if not 0 <= roughness <= 1:
        raise ValueError(f"roughness must be in [0, 1], got {roughness}; 0.5 is smooth, 0.7 like clouds")
    levels = int(math.log2(min(shape[1:]) - 1)) if min(shape[1:]) > 2 else 0
    sides = [-(-(side - 1) // 2**levels) * 2**levels + 1 for side in shape[1:]]
    noise = torch.rand(shape[0], *sides, generator=torch.Generator().manual_seed(seed))
    field = plasma(noise, roughness=roughness, levels=levels)[:, : shape[1], : shape[2]]
    least, most = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return 2 * (field - least) / (most - least) - 1


def _at(x: Tensor, at: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of x, (B, C, H, W), at pixel positions, (B, h, w, 2) as x and y; borders continue."""
    sides = at.new_tensor([x.shape[3] - 1, x.shape[2] - 1])
    return torch.nn.functional.grid_sample(x, 2 * at / sides - 1, mode=mode, padding_mode="border", align_corners=True)


def warp(x: Tensor, shift: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Take each pixel from elsewhere.

    Args:
        x: (B, C, H, W).
        shift: from where, relative, (B, 2, H, W): x and y in pixels.
        mode: "bilinear" for pictures, "nearest" for labels.

    Returns:
        (B, C, H, W); borders continue.
    """
    rows, columns = (torch.arange(side, device=x.device, dtype=shift.dtype) for side in x.shape[2:])
    here = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    return _at(x, here + shift.permute(0, 2, 3, 1), mode)


def warp_points(points: Tensor, shift: Tensor) -> Tensor:
    """Where points of a picture are after `warp`: p with p + s(p) = q.

    Args:
        points: q, (B, N, 2): x and y in pixels.
        shift: as for `warp`; of a slope below 1, or a point would be in several places.

    Returns:
        p, (B, N, 2); outside of the picture for what has left it.
    """
    moved = points
    for _ in range(STEPS):
        moved = points - _at(shift, moved[:, :, None])[..., 0].mT
    return moved


@dataclass(frozen=True)
class PlasmaAugment:
    """Brightness, contrast and place of each pixel changed by plasma fields; the same for the same seed and size.

    Args:
        brightness: largest change of brightness, in [0, 1].
        contrast: largest change of contrast, in [0, 1].
        warp: largest way of a pixel over the shorter side, in [0, 1]; less where the picture would fold.
        roughness: ρ of the fields, in [0, 1].

    Raises:
        ValueError: an amount outside its range.
    """

    brightness: float = 0.3
    contrast: float = 0.5
    warp: float = 0.04
    roughness: float = 0.5

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1), ("contrast", 1), ("warp", 1), ("roughness", 1)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name} must be in [0, {most}], got {value}; 0 leaves pictures as they are")

    def shift(self, shape: tuple[int, int, int], *, seed: int) -> Tensor:
        """From where each pixel is taken, weakened where the picture would fold.

        Args:
            shape: (B, H, W).
            seed: seed of the fields.

        Returns:
            x and y in pixels, relative, (B, 2, H, W).
        """
        batch, *sides = shape
        short = min(sides)
        height, width = (math.ceil((side - 1) / max(1, (short - 1) / COARSE)) + 1 for side in sides)
        fields = plasma_fields((2 * batch, height, width), seed=2 * seed + 1, roughness=self.roughness).unflatten(
            0, (batch, 2)
        )
        fields = torch.nn.functional.interpolate(fields, sides, mode="bicubic", align_corners=True)
        shift = self.warp * short * fields
        slope = (shift.diff(dim=2).abs().amax((2, 3)) + shift.diff(dim=3).abs().amax((2, 3))).amax(1)
        return shift * (SLOPE / slope).clamp(max=1)[:, None, None, None]

    def image(self, x: Tensor, *, seed: int) -> Tensor:
        """Augment pictures.

        Args:
            x: values in [0, 1], (B, C, H, W).
            seed: seed of the fields.

        Returns:
            (B, C, H, W), values in [0, 1].
        """
        batch, _, height, width = x.shape
        fields = plasma_fields((2 * batch, height, width), seed=2 * seed, roughness=self.roughness).to(x)
        brighter, stronger = fields.unflatten(0, (batch, 2))[:, :, None].unbind(1)
        moved = warp(x, self.shift((batch, height, width), seed=seed).to(x))
        contrasted = 0.5 + (moved - 0.5) * (1 + self.contrast * stronger)
        return (contrasted + self.brightness * brighter).clamp(0, 1)

    def mask(self, labels: Tensor, *, seed: int) -> Tensor:
        """Move labels as `image` moves pixels.

        Args:
            labels: integers, (B, H, W).
            seed: the pictures' seed.

        Returns:
            (B, H, W), of the labels' type.
        """
        shift = self.shift((len(labels), labels.shape[1], labels.shape[2]), seed=seed).to(labels.device)
        return warp(labels[:, None].double(), shift.double(), mode="nearest")[:, 0].to(labels.dtype)

    def points(self, points: Tensor, size: tuple[int, int], *, seed: int) -> Tensor:
        """Move points as `image` moves pixels.

        Args:
            points: (B, N, 2), x and y in pixels.
            size: height and width of the picture.
            seed: the pictures' seed.

        Returns:
            (B, N, 2).
        """
        return warp_points(points, self.shift((len(points), *size), seed=seed).to(points))


def _inputs(seed: int) -> dict[str, object]:
    return {"noise": torch.rand(2, 9, 13, generator=torch.Generator().manual_seed(seed)), "levels": 2}


METHOD = Method(
    id=56,
    name="TorMentor",
    kind="operator",
    summary="Plasma fractals, made by convolutions, say how strong an augmentation is at each pixel.",
    paper=Paper(
        "TorMentor: Deterministic dynamic-path, data augmentations with fractals",
        "A. Nicolaou et al.",
        2022,
        "arXiv:2204.03776",
    ),
    cases={"two_levels": Operator(plasma, plasma_reference, _inputs)},
)
