"""DREAM: a diffusion model learns from inputs as wrong as its own predictions make them.

*Source*: J. Zhou et al., "DREAM: Diffusion Rectification and Estimation-Adaptive Models", CVPR 2024 (arXiv:2312.00210).
While sampling, a network sees what its earlier errors left; while learning, it does not. For each pair of a training
step, with ᾱ and (B, C, H, W) for the rest, the network is asked once without gradient, and input and target move by its
error:

    Δ = ε - ε_θ(x_t, t),   λ = (√(1 - ᾱ_t))^p
    x_t ← x_t + √(1 - ᾱ_t) λ Δ,   ε ← ε + λ Δ

p trades distortion (0 rectifies fully) for perception; the paper takes 1. As p grows λ falls to 0, the ordinary loss.

*Differs from the paper*: nothing; layers such as dropout are in the same mode in both passes, as in diffusers.

*Provenance*: abstract, and the formulas by the authors' code (jinxinzhou/DREAM, whose "order" is p), written anew.
Equals diffusers 0.42.1 (`compute_dream_and_update_latents`) to 1e-7, see the tests and the evidence, and the authors'
code, by hand, to 2e-7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Objective
from foveal.record import Method, Paper
from foveal.train.diffusion import Draw, cosine_schedule, denoising_loss, ordinary_pair

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Dream", "correct", "strength"]


def strength(kept: Tensor, power: float) -> Tensor:
    """λ.

    Args:
        kept: ᾱ_t of each, (B,).
        power: p, at least 0; infinity gives 0.

    Returns:
        (B,), in [0, 1].
    """
    # not by the power of infinity, which is 1 where ᾱ is so small that 1 - ᾱ rounds to 1
    return torch.zeros_like(kept) if math.isinf(power) else (1 - kept) ** (power / 2)


def correct(
    noisy: Tensor, noise: Tensor, predicted: Tensor, kept: Tensor, *, power: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Move the input and the target by the error of the network.

    Args:
        noisy: x_t, (B, C, H, W).
        noise: ε, (B, C, H, W).
        predicted: ε_θ(x_t, t), (B, C, H, W); it gets no gradient.
        kept: ᾱ_t of each, (B,).
        power: p.

    Returns:
        The input and the target, (B, C, H, W) each; their x₀ is the one they had.
    """
    # (B, C, H, W)
    moved = strength(kept, power)[:, None, None, None] * (noise - predicted.detach())
    return noisy + (1 - kept).sqrt()[:, None, None, None] * moved, noise + moved


@dataclass(frozen=True)
class Dream:
    """`pair` of `foveal.train.diffusion.denoising_loss`: asks the network and corrects.

    Args:
        power: p, at least 0; infinity gives the ordinary pair, for one more pass.

    Raises:
        ValueError: p below 0.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise ValueError(f"power must be at least 0, got {self.power}; 1 is the paper's")

    def __call__(self, network: nn.Module, draw: Draw) -> tuple[Tensor, Tensor]:
        """Noisy picture and target of a draw.

        Args:
            network: network in training.
            draw: what was drawn.

        Returns:
            x_t and ε, corrected, (B, C, H, W) each.

        Raises:
            ValueError: a network that predicts anything but noise.
        """
        if draw.predicted != "noise":
            raise ValueError(f"DREAM corrects predictions of noise, got a network that predicts {draw.predicted!r}")
        noisy, noise = ordinary_pair(network, draw)
        with torch.no_grad():
            predicted = network(noisy, draw.t, draw.condition)
        return correct(noisy, noise, predicted, draw.kept, power=self.power)


def _loss(predicted: Tensor, clean: Tensor, noise: Tensor, t: Tensor, power: float) -> Tensor:
    """Loss of a network that predicts the same for whatever it sees."""
    return denoising_loss(
        lambda *_: predicted,  # type: ignore[arg-type]
        clean.detach(),
        cosine_schedule(10),
        t=t,
        noise=noise.detach(),
        pair=Dream(power),
        norm=F.mse_loss,
    )


def _inputs(seed: int, *, right: bool = False) -> dict[str, Any]:
    predicted, clean, noise = torch.randn(3, 2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    predicted = noise.clone() if right else predicted
    return {"predicted": predicted, "clean": clean, "noise": noise, "t": torch.tensor([2, 9]), "power": 1.0}


METHOD = Method(
    id=177,
    name="DREAM-Diffusion",
    kind="objective",
    summary="A diffusion model learns from inputs as wrong as its own predictions make them.",
    paper=Paper(
        "DREAM: Diffusion Rectification and Estimation-Adaptive Models", "J. Zhou et al.", 2024, "arXiv:2312.00210"
    ),
    cases={"constant": Objective(_loss, _inputs, learns=("predicted",), best=lambda seed: _inputs(seed, right=True))},
)
