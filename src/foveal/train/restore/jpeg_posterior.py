"""JPEG by posterior sampling: pictures that the file may have come from, each a little different, drawn by a network.

*Source*: S. Man et al., "High-Perceptual Quality JPEG Decoding via Posterior Sampling", NTIRE workshop of CVPR 2023
(arXiv:2211.11827). A generator G takes what the file says, y, and noise z; its picture is put into the bins of the
file's coefficients (`foveal.nn.jpeg_bins`), so that coding it again gives the same file:

    x̂(z) = projected_y( decoded(y) + G(decoded(y), steps(y), z) ),   z: (B, Z, H/2, W/2)

It is trained against a conditional critic D, whose logits on (x̂, decoded(y)) are those of patches, and by a penalty on
the first moment, which keeps the mean of K samples at the truth and leaves their variance free:

    L_G = |mean_k x̂(z_k) - x|² + λ softplus(-D(x̂, y)),   L_D = softplus(D(x̂, y)) + softplus(-D(x, y))

*Differs from the paper*: luminance; a small network at half the side; the critic's layers are spectrally normalised in
place of a penalty on its gradient; both are trained at once, by gradients of the same samples.

*Provenance*: written from the paper's description; there is no code of the authors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from foveal.cases import Objective
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from foveal.nn.jpeg_bins import JpegBins

__all__ = ["Critic", "JpegDecoder", "PosteriorTraining", "first_moment", "samples"]


def first_moment(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of the mean of samples.

    Args:
        drawn: samples, (K, B, C, H, W).
        wanted: the truth, (B, C, H, W).

    Returns:
        Mean over pictures and pixels.
    """
    return (drawn.mean(0) - wanted.detach()).square().mean()


class JpegDecoder(nn.Module):
    """G with its projection: the bins of a file and noise to a picture of the same file, (B, 1, H, W).

    Args:
        dim: channels of the features, at half the side.
        depth: residual blocks.
        noise: Z; 0 for a decoder that always returns the same.
    """

    def __init__(self, dim: int = 32, depth: int = 4, *, noise: int = 4) -> None:
        super().__init__()
        self.noise = noise
        self.head = nn.Conv2d(4 + 1 + noise, dim, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1))
            for _ in range(depth)
        )
        self.tail = nn.Conv2d(dim, 4, 3, padding=1)
        for parameter in self.tail.parameters():  # at the start, the middles of the bins
            nn.init.zeros_(parameter)

    def forward(self, bins: JpegBins, z: Tensor | None = None) -> Tensor:
        decoded = bins.decoded
        shuffled = F.pixel_unshuffle(decoded, 2)
        level = bins.steps.log().mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 1, *shuffled.shape[-2:])
        seen = [shuffled, level] if z is None else [shuffled, level, z]
        y = self.head(torch.cat(seen, 1))
        for block in self.blocks:
            y = y + block(y)
        return bins.projected(decoded + F.pixel_shuffle(self.tail(y), 2))


class Critic(nn.Module):
    """D: a picture and what was decoded, (B, 1, H, W) each, to logits of patches, (B, 1, H / 4, W / 4).

    Args:
        dim: channels of its first layer.
    """

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(8, dim, 3, padding=1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(dim, 2 * dim, 4, 2, 1)), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * dim, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor, decoded: Tensor) -> Tensor:
        # what the decoder left out, as large as 1, beside what it says
        seen = torch.cat([10 * (x - decoded), decoded - 0.5], 1)
        logits: Tensor = self.layers(F.pixel_unshuffle(seen, 2))
        return logits


def samples(decoder: JpegDecoder, bins: JpegBins, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw pictures of a file.

    Args:
        decoder: the network.
        bins: of B files.
        count: K.
        generator: source of the noise.

    Returns:
        (K, B, 1, H, W).
    """
    batch, _, rows, columns = bins.indices.shape[:4]
    shape = (count, batch, decoder.noise, 4 * rows, 4 * columns)
    noise = torch.randn(shape, generator=generator, dtype=bins.steps.dtype).to(bins.steps.device)
    return torch.stack([decoder(bins, z) for z in noise])


class PosteriorTraining(nn.Module):
    """Decoder and critic, whose `loss` trains both: gradients of each one's part reach that one only.

    Args:
        decoder: G, with noise.
        critic: D.
        weight: λ.
        count: K, at least 2.

    Raises:
        ValueError: a decoder without noise, or fewer than two samples.
    """

    def __init__(self, decoder: JpegDecoder, critic: Critic, *, weight: float = 1e-3, count: int = 2) -> None:
        super().__init__()
        if decoder.noise < 1 or count < 2:
            raise ValueError(
                f"the first moment takes a decoder with noise and at least 2 samples, got {decoder.noise} and {count}"
            )
        self.decoder, self.critic, self.weight, self.count = decoder, critic, weight, count

    def loss(self, bins: JpegBins, wanted: Tensor) -> Tensor:
        """L_G + L_D.

        Args:
            bins: of B files.
            wanted: their pictures, (B, 1, H, W).

        Returns:
            Scalar.
        """
        drawn = samples(self.decoder, bins, self.count)
        decoded = bins.decoded
        flat, beside = drawn.flatten(0, 1), decoded.repeat(self.count, 1, 1, 1)
        fixed = {name: value.detach() for name, value in self.critic.named_parameters()}
        fooled = F.softplus(-functional_call(self.critic, fixed, (flat, beside))).mean()
        told = F.softplus(self.critic(flat.detach(), beside)).mean() + F.softplus(-self.critic(wanted, decoded)).mean()
        return first_moment(drawn, wanted) + self.weight * fooled + told


def _inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "drawn": torch.rand(3, 2, 1, 4, 5, generator=generator),
        "wanted": torch.rand(2, 1, 4, 5, generator=generator),
    }


def _best(seed: int) -> dict[str, Any]:
    """Samples that differ, with the truth for their mean."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(3, 2, 1, 4, 5, generator=generator)
    return {"drawn": drawn, "wanted": drawn.mean(0)}


METHOD = Method(
    id=270,
    name="JPEG-Posterior",
    kind="objective",
    summary="A JPEG decoder that draws pictures, each of which gives the same file when coded again.",
    paper=Paper(
        "High-Perceptual Quality JPEG Decoding via Posterior Sampling",
        "S. Man et al.",
        2023,
        "arXiv:2211.11827",
    ),
    cases={"first_moment": Objective(first_moment, _inputs, learns=("drawn",), best=_best)},
)
