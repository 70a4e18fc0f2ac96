"""Layers of a multi-scale normalizing flow, and the flow itself: what the invertible convolutions are put into.

*Source*: D. Kingma, P. Dhariwal, "Glow: Generative Flow with Invertible 1×1 Convolutions", NeurIPS 2018
(arXiv:1807.03039), sections 2 and 3. A layer maps x to y and says log|det ∂y/∂x|; a flow maps pictures to latents z,

    log p(x) = Σ log N(z; 0, 1) + Σ log|det|,        bits per dimension = -log₂ p(x) / (C·H·W) + 8

for x of 256 levels with uniform noise, scaled to a range of 1. At each level 2×2 pixels become channels, steps follow,
and all but the last level give half of their channels away as latents.

*Differs from the paper*: latents given away are standard normal rather than predicted from the other half; the 1×1
convolution is a plain matrix; the scale of a coupling is 2·tanh(s/2) in the logarithm, as in the code of FInC Flow.
*Provenance*: written from the paper.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ActNorm", "Conv1x1", "Coupling", "Flow", "glow_step"]


class ActNorm(nn.Module):
    """Scale and shift of each channel, first set so that the first batch in training has mean 0 and variance 1.

    Args:
        dim: C.
    """

    set_up: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dim, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(dim, 1, 1))
        self.register_buffer("set_up", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and not self.set_up:
            with torch.no_grad():
                self.shift.copy_(-x.mean((0, 2, 3), keepdim=True)[0])
                self.log_scale.copy_(-(x.std((0, 2, 3), correction=0, keepdim=True)[0] + 1e-6).log())
                self.set_up.fill_(True)
        return (x + self.shift) * self.log_scale.exp(), self.log_scale.sum() * x[0, 0].numel()

    def inverse(self, y: Tensor) -> Tensor:
        """The way back.

        Args:
            y: (B, C, H, W).

        Returns:
            x, (B, C, H, W).
        """
        return y * (-self.log_scale).exp() - self.shift


class Conv1x1(nn.Module):
    """Invertible 1×1 convolution, orthogonal at first.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(dim, dim)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.conv2d(x, self.weight[:, :, None, None]), self.weight.slogdet()[1] * x[0, 0].numel()

    def inverse(self, y: Tensor) -> Tensor:
        """The way back.

        Args:
            y: (B, C, H, W).

        Returns:
            x, (B, C, H, W).
        """
        return torch.conv2d(y, self.weight.inverse()[:, :, None, None])


class Coupling(nn.Module):
    """Affine coupling: a small network of the first half of the channels scales and shifts the second half.

    Args:
        dim: C, even.
        width: channels of the network between.
    """

    def __init__(self, dim: int, *, width: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(dim // 2, width, 3, padding=1), nn.Conv2d(width, width, 1)
        last = nn.Conv2d(width, dim, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def _of(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.net(kept).chunk(2, 1)
        return 2 * torch.tanh(scale / 2), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x.chunk(2, 1)
        log_scale, shift = self._of(kept)
        return torch.cat([kept, changed * log_scale.exp() + shift], 1), log_scale.sum((1, 2, 3))

    def inverse(self, y: Tensor) -> Tensor:
        """The way back.

        Args:
            y: (B, C, H, W).

        Returns:
            x, (B, C, H, W).
        """
        kept, changed = y.chunk(2, 1)
        log_scale, shift = self._of(kept)
        return torch.cat([kept, (changed - shift) * (-log_scale).exp()], 1)


def glow_step(dim: int, *, width: int) -> list[nn.Module]:
    """Layers of one step of Glow.

    Args:
        dim: C, even.
        width: channels inside the coupling.

    Returns:
        ActNorm, 1×1 convolution, coupling.
    """
    return [ActNorm(dim), Conv1x1(dim), Coupling(dim, width=width)]


class Flow(nn.Module):
    """Multi-scale flow from pictures, (B, C, H, W), to latents, one tensor for each level.

    Args:
        in_channels: C.
        levels: number of halvings of the picture.
        depth: number of steps at each level.
        width: channels inside the couplings.
        step: function of channels and width to the layers of one step.

    Raises:
        ValueError: no level or no step.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        levels: int = 2,
        depth: int = 4,
        width: int = 32,
        step: Callable[..., Sequence[nn.Module]] = glow_step,
    ) -> None:
        super().__init__()
        if levels < 1 or depth < 1:
            raise ValueError(f"levels and depth must be at least 1, got {levels} and {depth}")
        self.levels: Any = nn.ModuleList()  # of lists of layers
        dim = in_channels
        for level in range(levels):
            dim = 4 * (dim if level == 0 else dim // 2)
            self.levels.append(nn.ModuleList(layer for _ in range(depth) for layer in step(dim, width=width)))

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        sides = 2 ** len(self.levels)
        if x.shape[2] % sides or x.shape[3] % sides:
            raise ValueError(f"height and width must be multiples of {sides}, got {tuple(x.shape[2:])}; crop or pad")
        latents, total = [], x.new_zeros(len(x))
        for number, level in enumerate(self.levels, 1):
            x = F.pixel_unshuffle(x, 2)
            for layer in level:
                x, log_det = layer(x)
                total = total + log_det
            if number < len(self.levels):
                given, x = x.chunk(2, 1)
                latents.append(given)
        return [*latents, x], total

    def inverse(self, latents: Sequence[Tensor]) -> Tensor:
        """The way back.

        Args:
            latents: what `forward` returns first.

        Returns:
            Pictures, (B, C, H, W).
        """
        *given, x = latents
        for level in reversed(self.levels):
            for layer in reversed(level):
                x = layer.inverse(x)
            x = F.pixel_shuffle(x, 2)
            if given:
                x = torch.cat([given.pop(), x], 1)
        return x

    def bits(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Bits per dimension.

        Args:
            pixels: (B, C, H, W) of uint8.
            noise: of the same shape, in [0, 1).

        Returns:
            (B,).
        """
        latents, log_det = self((pixels + noise) / 256 - 0.5)
        log_p = sum(-0.5 * (z.square() + math.log(2 * math.pi)).sum((1, 2, 3)) for z in latents)
        return 8 - (log_p + log_det) / (math.log(2) * pixels[0].numel())

    @torch.no_grad()
    def sample(self, count: int, *, side: int, seed: int = 0, temperature: float = 1.0) -> Tensor:
        """New pictures.

        Args:
            count: B.
            side: height and width in pixels.
            seed: seed of the latents.
            temperature: standard deviation of the latents.

        Returns:
            (B, C, side, side), values in [0, 1].
        """
        generator, latents = torch.Generator().manual_seed(seed), []
        for number, level in enumerate(self.levels, 1):
            dim = next(layer for layer in level if isinstance(layer, ActNorm)).shift.shape[0]
            shape = (count, dim if number == len(self.levels) else dim // 2, side >> number, side >> number)
            latents.append(temperature * torch.randn(shape, generator=generator))
        return (self.inverse(latents) + 0.5).clamp(0, 1)
