"""A small conditional U-Net: what predicts in the diffusion models of this house.

*Source*: J. Ho, A. Jain and P. Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (arXiv:2006.11239),
appendix B; W. Shi et al., arXiv:1609.05158, for the shuffle. Residual blocks at halving sides, each told the time:

    block(x, e) = skip(x) + conv(silu(norm(conv(silu(norm x))) · (1 + a) + b)),  (a, b) = linear(silu e)
    e = mlp(γ(t)),  γ(t) = (cos(t ωᵢ), sin(t ωᵢ)),  ωᵢ = 10000^(-i / half)

The picture that it is conditioned on is enlarged bicubically where it is smaller and put beside the noisy one.

*Differs from the paper*: no attention and no dropout; time scales as well as shifts; a skip around all of it if wanted;
r×r pixels are shuffled to channels at the entrance and back at the exit, so that the widest maps have 1 / r² of the
pixels.

*Provenance*: written from the papers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResidualBlock", "UNet", "sinusoids", "upsampled"]


def sinusoids(t: Tensor, dim: int) -> Tensor:
    """γ(t).

    Args:
        t: times, (B,), integers or not.
        dim: even.

    Returns:
        (B, dim): cosines, then sines.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def upsampled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture at a larger size, by the bicubic kernel of MATLAB and Pillow.

    Args:
        x: (B, C, h, w).
        size: H and W, at least h and w.

    Returns:
        (B, C, H, W); x itself where the size is its own.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    # antialias chooses the kernel (a = -0.5 in place of -0.75); enlarging, it does not blur
    return F.interpolate(x, size, mode="bicubic", antialias=True)


class ResidualBlock(nn.Module):
    """(B, C, H, W) to (B, C', H, W), told the time.

    Args:
        in_channels: C, a multiple of `groups`.
        out_channels: C', a multiple of `groups`.
        embedding: width of e.
        groups: groups of each norm.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding: int, *, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, in_channels), nn.GroupNorm(groups, out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(embedding, 2 * out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        # (B, C', 1, 1) each
        scale, shift = self.time(F.silu(embedded))[:, :, None, None].chunk(2, 1)
        z = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(z))


class UNet(nn.Module):
    """Noisy picture, time and condition to a picture like the noisy one; starts as zero, or as the noisy one.

    Args:
        in_channels: channels of the noisy picture, C.
        condition: channels of the picture that it is conditioned on, 0 for none.
        dim: channels at the first level, a multiple of `groups`.
        multiples: channels of each level over `dim`; each level has half the side of the one before.
        depth: residual blocks of a level, on either way.
        patch: r, the side of the squares that are shuffled to channels.
        groups: groups of each norm.
        skip: whether the noisy picture is added at the end, which suits a network that predicts noise: most of what it
            predicts is there already.

    Raises:
        ValueError: channels that the groups do not divide.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        condition: int = 3,
        dim: int = 32,
        multiples: tuple[int, ...] = (1, 2),
        depth: int = 1,
        patch: int = 2,
        groups: int = 4,
        skip: bool = False,
    ) -> None:
        super().__init__()
        if dim % groups or dim % 2:
            raise ValueError(f"dim must be even and a multiple of groups = {groups}, got {dim}")
        widths = [dim * m for m in multiples]
        self.dim, self.depth, self.patch, self.skip = dim, depth, patch, skip
        self.multiple = patch * 2 ** (len(widths) - 1)
        embedding = 4 * dim
        self.time = nn.Sequential(nn.Linear(dim, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.stem = nn.Conv2d((in_channels + condition) * patch**2, dim, 3, padding=1)

        def block(width: int, to: int) -> ResidualBlock:
            return ResidualBlock(width, to, embedding, groups=groups)

        # one list over all levels, depth blocks of each
        self.down, self.up, self.halving, self.doubling = (nn.ModuleList() for _ in range(4))
        before = dim
        for level, width in enumerate(widths):
            self.down.extend([block(before if i == 0 else width, width) for i in range(depth)])
            if level < len(widths) - 1:
                self.halving.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
            before = width
        self.middle = block(before, before)
        for level, width in reversed(list(enumerate(widths))):
            self.up.extend([block((before if i == 0 else width) + width, width) for i in range(depth)])
            if level:
                self.doubling.append(nn.Conv2d(width, width, 3, padding=1))
            before = width
        self.norm, self.head = nn.GroupNorm(groups, dim), nn.Conv2d(dim, in_channels * patch**2, 3, padding=1)
        for p in self.head.parameters():
            nn.init.zeros_(p)

    def forward(self, noisy: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """What it predicts of a noisy picture.

        Args:
            noisy: (B, C, H, W); H and W must be multiples of `self.multiple`.
            t: times, (B,).
            condition: picture, (B, C', h, w), with h ≤ H and w ≤ W; None if there is none.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: sides that cannot be halved so often.
        """
        height, width = noisy.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"H and W must be multiples of {self.multiple}, got {height} and {width}; pad with "
                "foveal.nn.windows.to_multiple"
            )
        given = noisy if condition is None else torch.cat([noisy, upsampled(condition, (height, width))], 1)
        embedded = self.time(sinusoids(t, self.dim).to(noisy.dtype))
        x, kept = self.stem(F.pixel_unshuffle(given, self.patch)), []
        for i, block in enumerate(self.down, 1):
            x = block(x, embedded)
            kept.append(x)
            if i % self.depth == 0 and i < len(self.down):
                x = self.halving[i // self.depth - 1](x)
        x = self.middle(x, embedded)
        for i, block in enumerate(self.up, 1):
            x = block(torch.cat([x, kept.pop()], 1), embedded)
            if i % self.depth == 0 and i < len(self.up):
                x = self.doubling[i // self.depth - 1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        out = F.pixel_shuffle(self.head(F.silu(self.norm(x))), self.patch)
        return noisy + out if self.skip else out
