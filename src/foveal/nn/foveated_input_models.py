"""Foveated input models: before a network sees it, a picture is sampled ever more coarsely away from a point.

*Source*: A. Deza, T. Konkle, "Emergent Properties of Foveated Perceptual Systems", 2020 (arXiv:2006.07991), section 2:
a fixed first stage, then an ordinary network that learns. The stage keeps the fovea and pools the periphery in windows
whose width grows with the distance e from the fixation, in pixels:

    n = round(2π / rate) spokes,  ρ = 2π / n,  e₀ = 2 / ρ,  q = (1 + ρ/2) / (1 - ρ/2)
    fovea      e < e₀                           each pixel is a sample
    ring k     e₀ q^k ≤ e < e₀ q^(k+1)          n windows, each of width ρ c and area (ρ c)², c = (q + 1)/2 · e₀ q^k

so that a disc of K rings has the fovea's pixels and n K samples. Windows begin where they are two pixels wide, which is
where each of them has a pixel. From (B, C, H, W) to the same shape:

    blur       means of the windows, interpolated bilinearly in (log e, angle)
    texture    the pixels of each window in another, fixed order: its statistics stay, their places are lost

*Differs from the paper*: its texture mixes features of a VGG with noise in each window, by adaptive instance
normalisation, and its blur is Gaussian; here both come from the same windows and need no trained network.
*Provenance*: written from the abstract and the catalogue's account of the mechanism; pooling windows as in the models
of the periphery that the paper builds on (J. Freeman, E. P. Simoncelli, "Metamers of the ventral stream", 2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.runtime.route import Route, recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Foveate", "FoveatedInput", "Schedule", "Windows", "windows"]

PERIPHERIES = ("blur", "texture")


class Schedule(NamedTuple):
    """Sizes of windows against the distance from the fixation, see above.

    Args:
        spokes: n, windows of a ring.
        rate: ρ, width of a window over the distance of its centre.
        fovea: e₀, radius of the fovea in pixels.
        growth: q, outer over inner radius of a ring.
    """

    spokes: int
    rate: float
    fovea: float
    growth: float

    @classmethod
    def of(cls, rate: float) -> Schedule:
        """The schedule whose ρ is nearest to a rate.

        Args:
            rate: growth of the windows, in (0, 1].

        Returns:
            The schedule.
        """
        spokes = round(2 * math.pi / rate)
        exact = 2 * math.pi / spokes
        return cls(spokes, exact, 2 / exact, (1 + exact / 2) / (1 - exact / 2))

    def edge(self, ring: int) -> float:
        """Inner radius of a ring.

        Args:
            ring: number of the ring, from 0.

        Returns:
            Pixels.
        """
        return self.fovea * self.growth**ring

    def width(self, ring: int) -> float:
        """Width of the windows of a ring, along and across; their area is its square.

        Args:
            ring: number of the ring, from 0.

        Returns:
            Pixels.
        """
        return self.rate * (self.edge(ring) + self.edge(ring + 1)) / 2

    def samples(self, rings: int, fovea: int) -> int:
        """Samples of a disc.

        Args:
            rings: K, number of rings around the fovea.
            fovea: number of pixels of the fovea, about π e₀².

        Returns:
            Number of samples.
        """
        return fovea + self.spokes * rings


class Windows(NamedTuple):
    """Windows of a picture of some size.

    Args:
        labels: number of each pixel's window, (H, W) int64; each pixel of the fovea is its own window.
        sizes: pixels of each window, (M,).
        ring: ring of each pixel, (H, W) int64, -1 in the fovea.
        neighbours: windows that a pixel's blurred value comes from, (4, H·W) int64.
        weights: their weights, (4, H·W), which sum to 1.
    """

    labels: Tensor
    sizes: Tensor
    ring: Tensor
    neighbours: Tensor
    weights: Tensor


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached tensor must also be usable in a later training step
def windows(size: tuple[int, int], *, rate: float, fixation: tuple[float, float] = (0.5, 0.5)) -> Windows:
    """Divide a picture into windows.

    Args:
        size: height and width in pixels.
        rate: growth of the windows, in (0, 1].
        fixation: row and column of the fixation as shares of the sides, in [0, 1].

    Returns:
        Windows; do not change them, they are shared.
    """
    plan = Schedule.of(rate)
    y, x = (torch.arange(n, dtype=torch.float64) + 0.5 - f * n for n, f in zip(size, fixation, strict=True))
    distance = torch.hypot(y[:, None], x[None]).clamp(min=1e-9)
    turn = (torch.atan2(y[:, None], x[None]) / (2 * math.pi)).remainder(1) * plan.spokes
    depth = torch.log(distance / plan.fovea) / math.log(plan.growth)
    ring, spoke = depth.floor().long().clamp(min=-1), turn.floor().long() % plan.spokes
    inside = distance < plan.fovea
    ring = torch.where(inside, -1, ring.clamp(min=0))
    # numbers with gaps: pixels of the fovea, then all windows of all rings
    rings, offset = int(ring.max()) + 1, size[0] * size[1]
    own = torch.where(inside, torch.arange(offset).view(size), offset + ring * plan.spokes + spoke)
    found, labels, sizes = own.unique(return_inverse=True, return_counts=True)
    number = torch.full((offset + max(rings, 1) * plan.spokes,), -1).index_put((found,), torch.arange(len(found)))
    neighbours, weights = [], []
    inner, left = (depth - 0.5).floor(), (turn - 0.5).floor()
    for k in (0, 1):
        for j in (0, 1):
            at = (inner + k).long().clamp(0, max(rings - 1, 0)) * plan.spokes + (left + j).long() % plan.spokes
            share = (1 - (depth - 0.5 - inner - k).abs()) * (1 - (turn - 0.5 - left - j).abs())
            window = torch.where(inside, labels, number[offset + at])
            neighbours.append(window.clamp(min=0).flatten())
            weights.append((share * (window >= 0)).flatten())
    weight = torch.stack(weights)
    first = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=weight.dtype)[:, None]
    weight = torch.where(inside.flatten(), first, weight / weight.sum(0))  # the fovea stays as it is, to the bit
    return Windows(labels, sizes, ring, torch.stack(neighbours), weight.float())


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached tensor must also be usable in a later training step
def _order(size: tuple[int, int], rate: float, fixation: tuple[float, float], seed: int) -> Tensor:
    """Where each pixel of a texture comes from, (H·W,): from its own window."""
    labels = windows(size, rate=rate, fixation=fixation).labels.flatten()
    drawn = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = torch.empty_like(labels)
    order[labels.argsort(stable=True)] = (labels + drawn).argsort()
    return order


@dataclass(frozen=True)
class Foveate:
    """Step: put a foveated stage before a network.

    Args:
        fixation: row and column as shares of the sides, in [0, 1].
        rate: width of a window over its distance from the fixation, in [0, 1]; 0 leaves pictures as they are.
        periphery: "blur" or "texture".
        seed: seed of the order of pixels in a texture.

    Raises:
        ValueError: a number outside its range, or an unknown periphery.
    """

    fixation: tuple[float, float] = (0.5, 0.5)
    rate: float = 0.4
    periphery: str = "blur"
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.fixation) != 2 or not all(0 <= x <= 1 for x in self.fixation):
            raise ValueError(
                f"fixation must be a row and a column in [0, 1], got {self.fixation}; (0.5, 0.5) is central"
            )
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must be in [0, 1], got {self.rate}; 0.4 is about a person's")
        if self.periphery not in PERIPHERIES:
            raise ValueError(f"periphery must be one of {', '.join(PERIPHERIES)}, got {self.periphery!r}")

    def apply(self, model: nn.Module, data: Any = None) -> nn.Sequential:  # noqa: ARG002 - nothing is calibrated
        """Put the stage before a network.

        Args:
            model: network from pictures, (B, C, H, W), of any size.
            data: not used.

        Returns:
            Stage and network.
        """
        return nn.Sequential(FoveatedInput(self), model)

    def windows(self, size: Sequence[int]) -> Windows:
        """Windows of pictures of a size.

        Args:
            size: height and width in pixels.

        Returns:
            Windows.

        Raises:
            ValueError: a rate of 0, which has none.
        """
        if not self.rate:
            raise ValueError("a rate of 0 has no windows; take one above 0")
        return windows((int(size[0]), int(size[1])), rate=self.rate, fixation=self.fixation)

    def samples(self, x: Tensor) -> Tensor:
        """Means of all windows, all that `blur` keeps of a picture.

        Args:
            x: pictures, (B, C, H, W).

        Returns:
            Samples, (B, C, M).
        """
        found = self.windows(x.shape[2:])
        labels, sizes = found.labels.flatten().to(x.device), found.sizes.to(x)
        return x.new_zeros(*x.shape[:2], len(sizes)).index_add(2, labels, x.flatten(2)) / sizes

    def __call__(self, x: Tensor) -> Tensor:
        """Foveate.

        Args:
            x: pictures, (B, C, H, W), of any range.

        Returns:
            Pictures, (B, C, H, W).
        """
        if not self.rate:
            return x
        if self.periphery == "texture":
            order = _order((x.shape[2], x.shape[3]), self.rate, self.fixation, self.seed)
            return x.flatten(2)[..., order.to(x.device)].view(x.shape)
        found, samples = self.windows(x.shape[2:]), self.samples(x)
        parts = zip(found.neighbours.to(x.device), found.weights.to(x), strict=True)
        return torch.stack([weight * samples[..., at] for at, weight in parts]).sum(0).view(x.shape)


class FoveatedInput(nn.Module):
    """The stage, (B, C, H, W) to the same shape. It has nothing to learn.

    Args:
        config: how it samples.
    """

    def __init__(self, config: Foveate) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        if self.config.rate and (routes := recorded()) is not None:
            found = self.config.windows(x.shape[2:])
            work = np.broadcast_to((1 / found.sizes[found.labels]).numpy().astype(np.float32), (len(x), *x.shape[2:]))
            samples, pixels = float(len(found.sizes)), float(found.labels.numel())
            routes.append(Route(work, (samples,), (pixels,), unit="pixels"))
        return self.config(x)

    def extra_repr(self) -> str:
        return str(self.config)


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(3, 2, 3)


METHOD = Method(
    id=90,
    name="Foveated input models",
    kind="transform",
    summary="A first stage keeps a picture's centre and pools the rest in windows that grow with the distance from it.",
    paper=Paper("Emergent Properties of Foveated Perceptual Systems", "A. Deza, T. Konkle", 2020, "arXiv:2006.07991"),
    cases={
        name: Transform(
            Foveate(rate=0.9, periphery=name).apply,
            _tiny,
            lambda seed: torch.rand(2, 3, 13, 17, generator=torch.Generator().manual_seed(seed)),
            Foveate(rate=0.0).apply,
            tolerance=0.0,
        )
        for name in PERIPHERIES
    },
)
