"""Gaussian diffusion: noise schedules, the training loss with a hook for methods, and two samplers.

*Source*: J. Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (arXiv:2006.11239), sections 2 and 3;
J. Song et al., "Denoising Diffusion Implicit Models", ICLR 2021 (arXiv:2010.02502), equation 12; A. Nichol and
P. Dhariwal, arXiv:2102.09672, section 3.2 (cosine); T. Salimans and J. Ho, arXiv:2202.00512, appendix D (v). With ᾱ,
(T,), falling from almost 1 to almost 0, a picture x₀ and noise ε, both (B, C, H, W),

    x_t = √ᾱ_t x₀ + √(1 - ᾱ_t) ε,      predicted: ε ("noise"), x₀ ("clean"), or v = √ᾱ_t ε - √(1 - ᾱ_t) x₀ ("v")

What is predicted gives x₀ and ε of a noisy picture. A sampler takes x_t to x_s, s < t, with fresh noise z:

    DDIM    √ᾱ_s x₀ + √(1 - ᾱ_s) ε
    DDPM    (√ᾱ_s (1 - a) x₀ + √a (1 - ᾱ_s) x_t + √((1 - a) (1 - ᾱ_s) (1 - ᾱ_t)) z) / (1 - ᾱ_t),  a = ᾱ_t / ᾱ_s

*Differs from the papers*: nothing. Samplers take any number of steps, evenly spaced, also DDPM's.

*Provenance*: written from the papers. Noisy pictures, targets and both samplers equal diffusers 0.42.1
(`DDPMScheduler`, `DDIMScheduler`), see the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "PREDICTED",
    "Draw",
    "Pair",
    "cosine_schedule",
    "ddim_step",
    "ddpm_step",
    "denoising_loss",
    "estimates",
    "known",
    "linear_schedule",
    "ordinary_pair",
    "q_sample",
    "sample",
    "target",
    "times",
]

PREDICTED = ("noise", "clean", "v")


def linear_schedule(steps: int = 1000, *, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """ᾱ of variances β that rise linearly.

    Args:
        steps: T.
        first: β of the first step.
        last: β of the last.

    Returns:
        ᾱ, (T,), float32.
    """
    return (1 - torch.linspace(first, last, steps, dtype=torch.float64)).cumprod(0).float()


def cosine_schedule(steps: int = 1000, *, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """ᾱ that follows the square of a cosine.

    Args:
        steps: T.
        offset: what keeps β from being tiny at the beginning.
        largest: upper bound of β.

    Returns:
        ᾱ, (T,), float32.
    """
    share = (torch.arange(steps + 1, dtype=torch.float64) / steps + offset) / (1 + offset)
    kept = (share * math.pi / 2).cos().square()
    return (1 - (1 - kept[1:] / kept[:-1]).clamp(max=largest)).cumprod(0).float()


def _roots(kept: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1 - ᾱ), (B, 1, 1, 1) each."""
    return kept.sqrt()[:, None, None, None], (1 - kept).sqrt()[:, None, None, None]


def q_sample(clean: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """The noisy picture.

    Args:
        clean: x₀, (B, C, H, W).
        noise: ε, (B, C, H, W).
        kept: ᾱ_t of each, (B,).

    Returns:
        x_t, (B, C, H, W).
    """
    signal, spread = _roots(kept)
    return signal * clean + spread * noise


def known(predicted: str) -> str:
    """Check the word for what a network predicts.

    Args:
        predicted: "noise", "clean" or "v".

    Returns:
        The same.

    Raises:
        ValueError: anything else.
    """
    if predicted not in PREDICTED:
        raise ValueError(f"predicted must be one of {', '.join(PREDICTED)}, got {predicted!r}")
    return predicted


def target(clean: Tensor, noise: Tensor, kept: Tensor, predicted: str = "noise") -> Tensor:
    """What a network has to predict.

    Args:
        clean: x₀, (B, C, H, W).
        noise: ε, (B, C, H, W).
        kept: ᾱ_t of each, (B,).
        predicted: "noise", "clean" or "v".

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: anything else.
    """
    if known(predicted) == "v":
        signal, spread = _roots(kept)
        return signal * noise - spread * clean
    return noise if predicted == "noise" else clean


def estimates(
    out: Tensor, noisy: Tensor, kept: Tensor, predicted: str = "noise", *, clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """x₀ and ε by what a network predicted.

    Args:
        out: what it predicted, (B, C, H, W).
        noisy: x_t, (B, C, H, W).
        kept: ᾱ_t of each, (B,).
        predicted: "noise", "clean" or "v".
        clip: largest absolute value of x₀; ε then follows from it. None for no limit.

    Returns:
        x₀ and ε, (B, C, H, W) each; together they make x_t.

    Raises:
        ValueError: another word for what was predicted.
    """
    signal, spread = _roots(kept)
    if known(predicted) == "noise":
        clean, noise = (noisy - spread * out) / signal, out
    elif predicted == "clean":
        clean, noise = out, (noisy - signal * out) / spread
    else:
        clean, noise = signal * noisy - spread * out, signal * out + spread * noisy
    if clip is None:
        return clean, noise
    clean = clean.clamp(-clip, clip)
    return clean, (noisy - signal * clean) / spread


@dataclass(frozen=True)
class Draw:
    """What one training step drew.

    Args:
        clean: x₀, (B, C, H, W).
        noise: ε, (B, C, H, W).
        t: times, (B,), integers from 0.
        kept: ᾱ_t of each, (B,).
        condition: what the network is conditioned on besides.
        predicted: what it predicts.
    """

    clean: Tensor
    noise: Tensor
    t: Tensor
    kept: Tensor
    condition: Any = None
    predicted: str = "noise"


Pair = Callable[[nn.Module, Draw], tuple[Tensor, Tensor]]  # noisy picture and target of a draw


def ordinary_pair(network: nn.Module, draw: Draw) -> tuple[Tensor, Tensor]:
    """The noisy picture and the target; a method that changes either has a function like this one.

    Args:
        network: the network in training, which is not asked here.
        draw: what was drawn.

    Returns:
        x_t and target, (B, C, H, W) each.
    """
    del network
    return (
        q_sample(draw.clean, draw.noise, draw.kept),
        target(draw.clean, draw.noise, draw.kept, draw.predicted),
    )


def denoising_loss(
    network: nn.Module,
    clean: Tensor,
    alpha_bar: Tensor,
    *,
    condition: Any = None,
    predicted: str = "noise",
    t: Tensor | None = None,
    noise: Tensor | None = None,
    pair: Pair = ordinary_pair,
    norm: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
) -> Tensor:
    """Loss of a network on a batch.

    Args:
        network: function of noisy pictures, times and condition.
        clean: x₀, (B, C, H, W).
        alpha_bar: ᾱ, (T,).
        condition: third argument of the network.
        predicted: "noise", "clean" or "v".
        t: times, (B,); None draws them.
        noise: ε, (B, C, H, W); None draws it.
        pair: what makes noisy picture and target of a draw; here a method may change noise, or pair.
        norm: function of prediction and target.

    Returns:
        Scalar.
    """
    if t is None:
        t = torch.randint(len(alpha_bar), (len(clean),), device=clean.device)
    if noise is None:
        noise = torch.randn_like(clean)
    kept = alpha_bar.to(clean)[t]
    noisy, wanted = pair(network, Draw(clean, noise, t, kept, condition, known(predicted)))
    return norm(network(noisy, t, condition), wanted)


def times(total: int, steps: int) -> list[int]:
    """Times at which a sampler asks the network, evenly spaced from the noisiest to the cleanest.

    Args:
        total: T.
        steps: their number, 1 to T.

    Returns:
        Falling integers, from T - 1 to 0.

    Raises:
        ValueError: more steps than there are times, or none.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps must be in 1…{total}, the times of the schedule, got {steps}")
    return [round((total - 1) * (1 - i / max(1, steps - 1))) for i in range(steps)]


def ddim_step(clean: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """From x_t to x_s without fresh noise.

    Args:
        clean: estimate of x₀, (B, C, H, W).
        noise: estimate of ε, (B, C, H, W).
        kept: ᾱ_s, (B,).

    Returns:
        x_s, (B, C, H, W).
    """
    return q_sample(clean, noise, kept)


def ddpm_step(clean: Tensor, noisy: Tensor, fresh: Tensor, kept: Tensor, then: Tensor) -> Tensor:
    """From x_t to x_s, by a draw from the Gaussian that x_s follows given x_t and x₀.

    Args:
        clean: estimate of x₀, (B, C, H, W).
        noisy: x_t, (B, C, H, W).
        fresh: z, (B, C, H, W); where ᾱ_s is 1 it has no weight.
        kept: ᾱ_t, (B,).
        then: ᾱ_s, (B,).

    Returns:
        x_s, (B, C, H, W).
    """
    ratio, left, gone = kept / then, 1 - then, 1 - kept
    of_clean, of_noisy = then.sqrt() * (1 - ratio) / gone, ratio.sqrt() * left / gone
    spread = ((1 - ratio) * left / gone).sqrt()
    of_clean, of_noisy, spread = (x[:, None, None, None] for x in (of_clean, of_noisy, spread))
    return of_clean * clean + of_noisy * noisy + spread * fresh


@torch.no_grad()
def sample(
    network: nn.Module,
    noise: Tensor,
    alpha_bar: Tensor,
    *,
    steps: int,
    condition: Any = None,
    predicted: str = "noise",
    sampler: str = "ddim",
    clip: float | None = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw pictures.

    Args:
        network: function of noisy pictures, times and condition.
        noise: what to start from, (B, C, H, W), of standard normal numbers.
        alpha_bar: ᾱ, (T,).
        steps: how often the network is asked.
        condition: third argument of the network.
        predicted: what the network predicts.
        sampler: "ddim", or "ddpm", which draws fresh noise at every step.
        clip: largest absolute value of x₀; None for no limit.
        generator: source of the fresh noise.

    Returns:
        x₀, (B, C, H, W).

    Raises:
        ValueError: an unknown sampler.
    """
    if sampler not in ("ddim", "ddpm"):
        raise ValueError(f"sampler must be ddim or ddpm, got {sampler!r}")
    x, asked = noise, times(len(alpha_bar), steps)
    curve = torch.cat([alpha_bar, alpha_bar.new_ones(1)]).to(x)
    for t, s in zip(asked, [*asked[1:], len(alpha_bar)], strict=True):
        at = torch.full((len(x),), t, device=x.device)
        kept, then = curve[at], curve[s].expand(len(x))
        clean, left = estimates(network(x, at, condition), x, kept, predicted, clip=clip)
        if sampler == "ddim":
            x = ddim_step(clean, left, then)
        else:
            fresh = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = ddpm_step(clean, x, fresh, kept, then)
    return x
