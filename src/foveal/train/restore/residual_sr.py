"""Super-resolution by diffusion of what the bicubic picture lacks.

*Source*: H. Li et al., "SRDiff: Single Image Super-Resolution with Diffusion Probabilistic Models", arXiv:2104.14951,
section 3.3. With y the low resolution, (B, C, h, w), in [0, 1] and x the high one, (B, C, s·h, s·w),

    x₀ = clamp(g · 2 (x - bicubic y)),  in [-1, 1],     g = 2

is what diffuses; the network sees x_t, t and y.

*Differs from the paper*: the network is conditioned on the small picture, not on features of an RRDB.

*Provenance*: written from the paper; g and the schedule, a cosine of 100 steps, from the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.unet import upsampled
from foveal.train.diffusion import cosine_schedule, denoising_loss, known, ordinary_pair, sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.train.diffusion import Pair

__all__ = ["ResidualSR"]


class ResidualSR(nn.Module):
    """Super-resolution by diffusion of what is missing in the bicubic picture.

    x₀ is the difference of high resolution and bicubic picture in [-1, 1], doubled, as in SRDiff; the network is
    conditioned on the low resolution.

    Args:
        network: function of noisy residuals, (B, C, s·h, s·w), times and low resolution, (B, C, h, w), in [-1, 1].
        scale: s.
        alpha_bar: ᾱ, (T,); None takes SRDiff's, a cosine of 100 steps.
        predicted: what the network predicts.
        gain: what residuals in [-1, 1] are multiplied by.
        steps: how often `forward` asks the network.
        sampler: sampler of `forward`.
    """

    alpha_bar: Tensor

    def __init__(
        self,
        network: nn.Module,
        scale: int,
        *,
        alpha_bar: Tensor | None = None,
        predicted: str = "noise",
        gain: float = 2.0,
        steps: int = 10,
        sampler: str = "ddim",
    ) -> None:
        super().__init__()
        self.network, self.scale, self.predicted, self.gain = network, scale, known(predicted), gain
        self.steps, self.sampler = steps, sampler
        self.register_buffer("alpha_bar", cosine_schedule(100) if alpha_bar is None else alpha_bar)

    def bicubic(self, low: Tensor) -> Tensor:
        """The picture without a residual.

        Args:
            low: (B, C, h, w) in [0, 1].

        Returns:
            (B, C, s·h, s·w), about in [0, 1].
        """
        return upsampled(low, (self.scale * low.shape[-2], self.scale * low.shape[-1]))

    def loss(
        self,
        low: Tensor,
        high: Tensor,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        pair: Pair = ordinary_pair,
        norm: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            low: (B, C, h, w) in [0, 1].
            high: (B, C, s·h, s·w) in [0, 1].
            t: times, see `denoising_loss`.
            noise: ε, see `denoising_loss`.
            pair: see `denoising_loss`.
            norm: see `denoising_loss`.

        Returns:
            Scalar.
        """
        clean = (2 * self.gain * (high - self.bicubic(low))).clamp(-1, 1)
        return denoising_loss(
            self.network,
            clean,
            self.alpha_bar,
            condition=2 * low - 1,
            predicted=self.predicted,
            t=t,
            noise=noise,
            pair=pair,
            norm=norm,
        )

    def forward(
        self,
        low: Tensor,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw a picture.

        Args:
            low: (B, C, h, w) in [0, 1].
            steps: how often to ask the network; None for the module's.
            sampler: "ddim" or "ddpm"; None for the module's.
            generator: source of all noise.

        Returns:
            (B, C, s·h, s·w) in [0, 1].
        """
        base = self.bicubic(low)
        residual = sample(
            self.network,
            torch.randn(base.shape, generator=generator, device=base.device, dtype=base.dtype),
            self.alpha_bar,
            steps=self.steps if steps is None else steps,
            condition=2 * low - 1,
            predicted=self.predicted,
            sampler=self.sampler if sampler is None else sampler,
            generator=generator,
        )
        return (base + residual / (2 * self.gain)).clamp(0, 1)
