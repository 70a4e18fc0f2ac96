"""DOT-Dmax: make restored pictures look natural by one linear map of a VAE's latents, from about a dozen pictures.

*Source*: T. Adrai, G. Ohayon, M. Elad and T. Michaeli, "Deep Optimal Transport: A Practical Algorithm for
Photo-realistic Image Restoration", NeurIPS 2023 (arXiv:2306.02342), sections 3 and 4. Of patches of latents, (n, D), of
restored pictures and of natural ones (which need not show the same), the means and covariances μ₁, Σ₁ and μ₂, Σ₂ give
the optimal transport between two Gaussians in closed form,

    T = Σ₁^-½ (Σ₁^½ Σ₂ Σ₁^½)^½ Σ₁^-½,   z' = μ₂ + T (z - μ₁),   z_α = (1 - α) z + α z'

and the error of z_α, where z is the mean of what may have been there, follows

    MSE(α) = MSE(0) + α² W₂²,   W₂² = |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁^½ Σ₂ Σ₁^½)^½)

so α, from 0 (as restored) to 1 (as natural as it gets), walks the perception-distortion curve.

*Differs from the paper*: the change decode(z_α) - decode(z) is added to the restored picture, so that what the VAE
cannot say stays and α = 0 changes nothing, where the paper decodes z_α with a VAE of hundreds of megabytes; patches do
not overlap; directions in which restored latents do not vary are left as they are, without the paper's added noise.

*Provenance*: written from the paper. Equals POT 0.9.7 (`bures_wasserstein_mapping`) to 3e-15 on a drawn
pair of 4×4 covariances, compared by hand and kept as figures in the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["VAE", "GaussianTransport", "LatentTransport", "optimal_map", "transport", "wasserstein"]

LEAST = 1e-9  # share of the largest eigenvalue below which a direction does not vary


def _root(matrix: Tensor, power: float) -> Tensor:
    """A power of a symmetric matrix, on the directions in which it is not 0."""
    values, vectors = torch.linalg.eigh(matrix)
    there = values > LEAST * values[-1]
    return vectors * torch.where(there, values.clamp_min(1e-300) ** power, 0) @ vectors.mT


def optimal_map(source: Tensor, target: Tensor) -> Tensor:
    """T, which turns one covariance into another and moves as little as possible.

    Args:
        source: Σ₁, (D, D), symmetric and positive.
        target: Σ₂, (D, D).

    Returns:
        T, (D, D), symmetric; T Σ₁ T = Σ₂ where Σ₁ has full rank.

    Raises:
        ValueError: no square matrices of one size.
    """
    if source.ndim != 2 or source.shape[0] != source.shape[1] or source.shape != target.shape:
        raise ValueError(
            f"covariances must be (D, D), of one size, got {tuple(source.shape)} and {tuple(target.shape)}"
        )
    root, inverse = _root(source, 0.5), _root(source, -0.5)
    return inverse @ _root(root @ target @ root, 0.5) @ inverse


@dataclass(frozen=True)
class GaussianTransport:
    """The map between two Gaussians that were fitted to rows of numbers.

    Args:
        source: μ₁, (D,).
        target: μ₂, (D,).
        matrix: T, (D, D).
        squared: W₂², the squared distance of the two, per row.
    """

    source: Tensor
    target: Tensor
    matrix: Tensor
    squared: float

    @classmethod
    def fit(cls, restored: Tensor, natural: Tensor) -> GaussianTransport:
        """Fit it, in float64.

        Args:
            restored: rows whose mean and covariance are mapped, (n, D).
            natural: rows whose mean and covariance are wanted, (m, D).

        Returns:
            The map.

        Raises:
            ValueError: rows of different lengths, or not more than D of them.
        """
        if restored.ndim != 2 or natural.ndim != 2 or restored.shape[1] != natural.shape[1]:
            raise ValueError(
                f"rows must be (n, D) and (m, D), of one length, got {tuple(restored.shape)}, {tuple(natural.shape)}"
            )
        if min(len(restored), len(natural)) <= restored.shape[1]:
            raise ValueError(
                f"covariances of {restored.shape[1]} numbers take more rows than that, got {len(restored)} and "
                f"{len(natural)}; take more pictures, or smaller patches"
            )
        (source, before), (target, after) = (
            (rows.mean(0), torch.cov(rows.T)) for rows in (restored.double(), natural.double())
        )
        squared = wasserstein(source, before, target, after)
        return cls(source, target, optimal_map(before, after), squared)

    def apply(self, rows: Tensor, alpha: float = 1.0) -> Tensor:
        """Move rows, the whole way or part of it.

        Args:
            rows: (n, D).
            alpha: α, 0 for no change, 1 for the whole way; beyond 1 exaggerates.

        Returns:
            (n, D).
        """
        moved = (rows - self.source.to(rows)) @ self.matrix.to(rows).T + self.target.to(rows)
        return torch.lerp(rows, moved, alpha)


def wasserstein(source: Tensor, before: Tensor, target: Tensor, after: Tensor) -> float:
    """Squared Wasserstein-2 distance of two Gaussians, in closed form.

    Args:
        source: μ₁, (D,).
        before: Σ₁, (D, D).
        target: μ₂, (D,).
        after: Σ₂, (D, D).

    Returns:
        W₂², at least 0.
    """
    root = _root(before, 0.5)
    cross = _root(root @ after @ root, 0.5).trace()
    return max(0.0, float((source - target).square().sum() + before.trace() + after.trace() - 2 * cross))


def transport(restored: Tensor, natural: Tensor, alpha: float = 1.0) -> Tensor:
    """Give rows the mean and covariance of others, moving them as little as possible.

    Args:
        restored: rows, (n, D).
        natural: rows as they should be distributed, (m, D).
        alpha: α, the share of the way, 0 for no change.

    Returns:
        (n, D).
    """
    return GaussianTransport.fit(restored, natural).apply(restored, alpha)


class VAE(nn.Module):
    """A small variational autoencoder of pictures: (B, 3, H, W) in [0, 1] to latents at a quarter of the side and back.

    Args:
        latent: channels of a latent.
        dim: channels inside.
        weight: weight of the divergence from a standard normal distribution, beside the squared error.
    """

    def __init__(self, latent: int = 16, dim: int = 48, *, weight: float = 1e-5) -> None:
        super().__init__()
        self.weight = weight
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, dim, 3, padding=1), nn.SiLU(), nn.Conv2d(dim, 2 * latent, 3, padding=1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, dim, 3, padding=1), nn.SiLU(), nn.Conv2d(dim, 48, 3, padding=1), nn.PixelShuffle(4)
        )

    def encode(self, x: Tensor) -> Tensor:
        """Means of the latents.

        Args:
            x: pictures, (B, 3, H, W) in [0, 1], sides multiples of 4.

        Returns:
            (B, latent, H / 4, W / 4).
        """
        mean, _ = self.encoder(x - 0.5).chunk(2, 1)
        return mean

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of latents.

        Args:
            z: (B, latent, h, w).

        Returns:
            (B, 3, 4·h, 4·w).
        """
        y: Tensor = self.decoder(z) + 0.5
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def loss(self, x: Tensor) -> Tensor:
        """Squared error of a drawn latent's picture, plus the weighted divergence.

        Args:
            x: pictures, (B, 3, H, W) in [0, 1].

        Returns:
            Scalar.
        """
        mean, logarithm = self.encoder(x - 0.5).chunk(2, 1)
        drawn = mean + torch.exp(0.5 * logarithm) * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + logarithm.exp() - 1 - logarithm).sum(1).mean()
        return F.mse_loss(self.decode(drawn), x) + self.weight * divergence


def _rows(z: Tensor, patch: int) -> Tensor:
    """Latents to rows of their patches, (B, C, h, w) to (B · h / p · w / p, C · p²)."""
    return F.unfold(z, patch, stride=patch).mT.flatten(0, 1)


@dataclass(frozen=True)
class LatentTransport:
    """The map of a VAE's latents, fitted to a dozen pictures and applied to any others.

    Args:
        vae: network with `encode` and `decode`, such as `VAE`.
        between: the map of latent patches.
        patch: p, side of a patch of latents.
    """

    vae: nn.Module
    between: GaussianTransport
    patch: int

    @classmethod
    @torch.no_grad()
    def fit(
        cls, vae: nn.Module, restored: Sequence[Tensor], natural: Sequence[Tensor], *, patch: int = 1
    ) -> LatentTransport:
        """Fit it.

        Args:
            vae: network with `encode` and `decode`.
            restored: about a dozen restored pictures, (B, 3, H, W) each; sides need not be the same.
            natural: about a dozen pictures as they should look, other ones or the same.
            patch: p, side of a patch of latents: D = channels · p².

        Returns:
            The map.

        Raises:
            ValueError: no pictures.
        """
        if not restored or not natural:
            raise ValueError(
                f"pictures of both kinds are needed, got {len(restored)} restored and {len(natural)} natural ones"
            )
        sources, targets = (
            torch.cat([_rows(vae.encode(x), patch) for x in pictures])  # type: ignore[operator]
            for pictures in (restored, natural)
        )
        return cls(vae, GaussianTransport.fit(sources, targets), patch)

    def latents(self, z: Tensor, alpha: float = 1.0) -> Tensor:
        """Move latents; rows and columns that fill no patch stay as they are.

        Args:
            z: (B, C, h, w).
            alpha: α, the share of the way.

        Returns:
            (B, C, h, w).
        """
        height, width = (size // self.patch * self.patch for size in z.shape[-2:])
        inner = z[..., :height, :width]
        moved = self.between.apply(_rows(inner, self.patch), alpha).unflatten(0, (len(z), -1)).mT
        folded = F.fold(moved, (height, width), self.patch, stride=self.patch)
        return torch.cat(
            [torch.cat([folded, z[..., :height, width:]], -1), z[..., height:, :]], -2
        )  # what fills no patch, at the right and below

    def __call__(self, x: Tensor, alpha: float = 1.0) -> Tensor:
        """Make restored pictures look natural.

        Args:
            x: restored pictures, (B, 3, H, W) in [0, 1], sides multiples of what the VAE halves.
            alpha: α, 0 returns x, 1 is as natural as it gets.

        Returns:
            (B, 3, H, W), not clipped.
        """
        z = self.vae.encode(x)  # type: ignore[operator]
        change: Tensor = self.vae.decode(self.latents(z, alpha)) - self.vae.decode(z)  # type: ignore[operator]
        return x + change


def _moved(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    restored, natural = torch.randn(2, 40, 3, generator=generator).double()
    return transport(restored, 2 * natural + 1)


METHOD = Method(
    id=91,
    name="DOT-Dmax",
    kind="procedure",
    summary="Makes restored pictures look natural by one linear map of latents, more or less as asked.",
    paper=Paper(
        "Deep Optimal Transport: A Practical Algorithm for Photo-realistic Image Restoration",
        "T. Adrai et al.",
        2023,
        "arXiv:2306.02342",
    ),
    cases={
        "rows": Procedure(
            run=_moved,
            empty=lambda: transport(torch.zeros(0, 3), torch.zeros(0, 3)),
            refuses="covariances of 3 numbers take more rows than that, got 0 and 0",
        )
    },
)
