"""A small vector-quantised auto-encoder of pictures, whose encoder measures how alike two pictures are.

*Source*: the VQGAN of P. Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021
(arXiv:2012.09841), section 3.1, at a fraction of its size and without attention, perceptual loss or adversary. With
the encoder's latent vectors z and the nearest codes e of a codebook, sg stopping gradients:

    L = |x − D(z + sg(e − z))| + |sg(z) − e|² + β |z − sg(e)|²

A code that is hardly ever the nearest is replaced by a latent vector of the batch, since all vectors would else come to
share one code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.shrink.quantize.fake import straight_through

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["VQAutoEncoder", "VQEncoder"]


class _Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the shortcut a 1×1 convolution where the width changes."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, dim), nn.Conv2d(dim, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, out), nn.Conv2d(out, out, 3, padding=1)
        self.short = nn.Identity() if dim == out else nn.Conv2d(dim, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.short(x) + self.conv2(F.silu(self.norm2(y)))


class VQEncoder(nn.Module):
    """Pictures, (B, 3, H, W) in [0, 1], to features of several scales, latent vectors and distances to the codes.

    Args:
        dims: channels of each scale, multiples of 4; each scale has half the height and width of the one before.
        codes: number of codes.
        code_dim: entries of a code, D.
    """

    def __init__(self, dims: Sequence[int] = (8, 8, 16, 16, 32), *, codes: int = 1024, code_dim: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dims[0], 3, padding=1)
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in zip((dims[0], *dims[:-1]), dims, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(dim, dim, 3, 2, 1) for dim in dims[:-1])
        self.last = nn.Conv2d(dims[-1], code_dim, 1)
        self.codebook = nn.Parameter(torch.randn(codes, code_dim))

    def features(self, x: Tensor) -> list[Tensor]:
        """Features of each scale, the finest first.

        Args:
            x: pictures, (B, 3, H, W).

        Returns:
            Features, (B, C_i, ⌈H/2^i⌉, ⌈W/2^i⌉).
        """
        y, found = self.stem(2 * x - 1), []
        for index, block in enumerate(self.blocks):
            found.append(block(y))
            if index < len(self.down):
                y = self.down[index](found[-1])
        return found

    def latent(self, features: Tensor) -> Tensor:
        """Latent vectors from the coarsest features.

        Args:
            features: last of the features, (B, C, h, w).

        Returns:
            Latent vectors, (B·h·w, D).
        """
        return self.last(features).permute(0, 2, 3, 1).flatten(0, 2)

    def distances(self, latent: Tensor) -> Tensor:
        """Squared distance of each latent vector to each code.

        Args:
            latent: latent vectors, (n, D).

        Returns:
            Distances, (n, codes).
        """
        cross = latent @ self.codebook.T
        return latent.square().sum(1, keepdim=True) - 2 * cross + self.codebook.square().sum(1)


class VQAutoEncoder(nn.Module):
    """The encoder in training: pictures to the loss L above.

    Args:
        encoder: encoder to train.
        dims: channels of each scale, as of the encoder.
        commitment: β.
    """

    used: Tensor

    def __init__(
        self, encoder: VQEncoder, dims: Sequence[int] = (8, 8, 16, 16, 32), *, commitment: float = 0.25
    ) -> None:
        super().__init__()
        self.encoder, self.commitment = encoder, commitment
        back = dims[::-1]
        self.first = nn.Conv2d(encoder.codebook.shape[1], back[0], 3, padding=1)
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in zip((back[0], *back[:-1]), back, strict=True))
        self.to_picture = nn.Conv2d(back[-1], 3, 3, padding=1)
        self.register_buffer("used", torch.zeros(len(encoder.codebook)))

    @torch.no_grad()
    def _revive(self, latent: Tensor) -> None:
        """Replace codes that no recent batch used, about 160, by latent vectors, (n, D), of this one."""
        dead = self.used < 0.002
        drawn = torch.randint(len(latent), (int(dead.sum()),), device=latent.device)
        self.encoder.codebook[dead] = latent[drawn]
        now = torch.bincount(self.encoder.distances(latent).argmin(1), minlength=len(dead)) > 0
        self.used.copy_(torch.lerp(self.used, now.to(self.used), 0.01))

    def decoded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, take the nearest codes, decode.

        Args:
            x: pictures, (B, 3, H, W), H and W multiples of the coarsest scale.

        Returns:
            Decoded pictures, latent vectors, (n, D), and their codes, (n, D). In training mode unused codes are
            replaced first.
        """
        coarse = self.encoder.features(x)[-1]
        latent = self.encoder.latent(coarse)
        if self.training:
            self._revive(latent.detach())
        code = self.encoder.codebook[self.encoder.distances(latent).argmin(1)]
        shape = len(x), coarse.shape[2], coarse.shape[3], -1
        y = self.first(straight_through(latent, code).view(shape).permute(0, 3, 1, 2))
        for index, block in enumerate(self.blocks):
            y = block(F.interpolate(y, scale_factor=2.0) if index else y)
        return (self.to_picture(y) + 1) / 2, latent, code

    def forward(self, x: Tensor) -> Tensor:
        picture, latent, code = self.decoded(x)
        book, commitment = F.mse_loss(code, latent.detach()), F.mse_loss(latent, code.detach())
        return F.l1_loss(picture, x) + book + self.commitment * commitment
