"""SAM-DiffSR: the noise of each region of a picture gets a mean of its own while a diffusion model learns.

*Source*: C. Wang et al., "SAM-DiffSR: Structure-Modulated Diffusion Model for Image Super-Resolution",
arXiv:2402.17133, 2024. Each region of a label map, such as a segment of SAM or a superpixel, is given one number: the
sum over it of a map of ones, rotated as rotary embeddings (RoPE) rotate a sequence of H tokens of width W, over the
pixels of the map,

    r[y, x] = cos(y θ) ∓ sin(y θ),  θ = 10000^(-2⌊x / 2⌋ / W),  - where x is even, + where it is odd
    E[region] = Σ r over it / (H · W)                             labels: (B, H, W), E: (B, 1, H, W)

and the noise of a training step becomes ε + c_t E, which is put into x_t and predicted, with

    c_t = √(1 - ᾱ_t) β_t,   β_t = 1 - ᾱ_t / ᾱ_(t-1)

Sampling is what it was: no labels, no E.

*Differs from the paper*: any label map; the network of the evidence is conditioned on the small picture, not on
features of an RRDB. `share=False` divides by the pixels of the region in place of those of the map. Here labels are
embedded as they come: those of a training patch by their place in the patch, where the authors' code cuts E out of a
whole picture's.

*Provenance*: abstract, and the formulas by the authors' code (lose4578/SAM-DiffSR), written anew. Equals that code's
`merge_all_mask_to_one_RoPE` and `mask_coefficient`, run by hand, to 1e-7.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Objective
from foveal.record import Method, Paper
from foveal.train.diffusion import Draw, cosine_schedule, denoising_loss, ordinary_pair

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Modulated", "coefficient", "embedding", "rotated_ones"]


def rotated_ones(height: int, width: int) -> Tensor:
    """r: a map of ones, turned by the angles of its rows and columns.

    Args:
        height: H, the positions.
        width: W, the width of a token; an odd one lacks the last of its pair.

    Returns:
        (H, W), in [-√2, √2].
    """
    column = torch.arange(width, dtype=torch.float64)
    angle = torch.arange(height, dtype=torch.float64)[:, None] * 10000 ** (-2 * (column // 2) / width)
    return (angle.cos() + torch.where(column % 2 == 0, -1.0, 1.0) * angle.sin()).float()


def embedding(labels: Tensor, *, share: bool = True) -> Tensor:
    """E: the number of each pixel's region.

    Args:
        labels: region of each pixel, (B, H, W), integers from 0; equal ones need not touch.
        share: whether the sum over a region is taken over all pixels of the map; otherwise over those of the region.

    Returns:
        (B, 1, H, W).

    Raises:
        ValueError: labels of another shape, of another kind, or below 0.
    """
    if labels.ndim != 3 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, (B, H, W), got {labels.dtype}, {tuple(labels.shape)}")
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(f"labels must be at least 0, got {int(labels.min())}")
    batch, height, width = labels.shape
    flat = labels.flatten(1).long()
    ones = rotated_ones(height, width).to(labels.device).flatten().expand(batch, -1)
    count = int(flat.max()) + 1 if flat.numel() else 0
    # (B, regions)
    sums = ones.new_zeros(batch, count).scatter_add_(1, flat, ones)
    if share:
        means = sums / (height * width)
    else:
        means = sums / ones.new_zeros(batch, count).scatter_add_(1, flat, torch.ones_like(ones)).clamp_min(1)
    return means.gather(1, flat).view(batch, 1, height, width)


def coefficient(alpha_bar: Tensor) -> Tensor:
    """c: how much of E the noise gets, at each time.

    Args:
        alpha_bar: ᾱ, (T,).

    Returns:
        (T,).
    """
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return (1 - alpha_bar).sqrt() * (1 - alpha_bar / before)


@dataclass(frozen=True)
class Modulated:
    """`pair` of `foveal.train.diffusion.denoising_loss`: moves the noise of a draw.

    Args:
        embedded: E of the batch, (B, 1, H, W).
        coefficients: c, (T,).
    """

    embedded: Tensor
    coefficients: Tensor

    def __call__(self, network: nn.Module, draw: Draw) -> tuple[Tensor, Tensor]:
        """Noisy picture and target of a draw.

        Args:
            network: network in training, which is not asked here.
            draw: what was drawn.

        Returns:
            x_t and target, (B, C, H, W) each.
        """
        moved = self.coefficients.to(draw.noise)[draw.t][:, None, None, None] * self.embedded.to(draw.noise)
        return ordinary_pair(network, replace(draw, noise=draw.noise + moved))


def _loss(predicted: Tensor, clean: Tensor, noise: Tensor, labels: Tensor, t: Tensor) -> Tensor:
    """Loss of a network that predicts the same for whatever it sees."""
    alpha_bar = cosine_schedule(10)
    return denoising_loss(
        lambda *_: predicted,  # type: ignore[arg-type]
        clean.detach(),
        alpha_bar,
        t=t,
        noise=noise.detach(),
        pair=Modulated(embedding(labels), coefficient(alpha_bar)),
        norm=F.mse_loss,
    )


def _inputs(seed: int, *, right: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    predicted, clean, noise = torch.randn(3, 2, 3, 4, 5, generator=generator)
    labels, t = torch.randint(3, (2, 4, 5), generator=generator), torch.tensor([2, 9])
    if right:
        predicted = noise + coefficient(cosine_schedule(10))[t][:, None, None, None] * embedding(labels)
    return {"predicted": predicted, "clean": clean, "noise": noise, "labels": labels, "t": t}


METHOD = Method(
    id=15,
    name="SAM-DiffSR",
    kind="objective",
    summary="While a diffusion model learns, the noise of each region of a picture gets a mean of its own.",
    paper=Paper(
        "SAM-DiffSR: Structure-Modulated Diffusion Model for Image Super-Resolution",
        "C. Wang et al.",
        2024,
        "arXiv:2402.17133",
    ),
    cases={"constant": Objective(_loss, _inputs, learns=("predicted",), best=lambda seed: _inputs(seed, right=True))},
)
