"""IAT: light put right by a few thousand multiplications a pixel and ten numbers a picture.

*Source*: Z. Cui et al., "You Only Need 90K Parameters to Adapt Light: A Light Weight Transformer for Image Enhancement
and Exposure Correction", BMVC 2022 (arXiv:2205.14871), section 3. A local branch sees pixels, a global branch queries:

    out = clamp( W · clamp(x ⊙ mul + add) ) ^ γ
    mul, add = local(x)        (B, 3, H, W) each: three blocks each of depthwise and pointwise convolutions, C = 16
    γ, W = global(x)           1 and 3×3: ten learnt queries attend once over a map of a quarter of the side, C = 64

Blocks are a transformer's with convolutions for attention, and for normalisation a matrix over channels with a scale
and a shift (the paper's "light normalisation").

*Differs from the paper*: the global branch sees the picture averaged to 96×96 whatever its size, so that a large
picture can be cut into tiles that agree (`control`, `collapse`); γ is held in [0.1, 4].

*Provenance*: sizes and initialisation from the authors' code (cuiziteng/Illumination-Adaptive-Transformer): its count
of parameters, and with its weights on a picture of 96×96 its output to 4e-6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["IAT", "LightNorm", "corrected"]

VIEW = 96  # side of the average that the global branch sees, pixels
GAMMA = (0.1, 4.0)
LEAST = 1e-6  # base of the power


def corrected(x: Tensor, matrix: Tensor, gamma: Tensor) -> Tensor:
    """Colours through a matrix and a power: clamp(W x)^γ.

    Args:
        x: (B, 3, H, W).
        matrix: W, (B, 3, 3).
        gamma: γ, (B, 1).

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    mixed = torch.einsum("boc,bchw->bohw", matrix, x)
    return mixed.clamp(LEAST, 1.0) ** gamma[..., None, None]


class LightNorm(nn.Module):
    """The paper's light normalisation, (B, C, H, W) to the same: a matrix over channels, a scale and a shift.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.color = nn.Parameter(torch.eye(dim))
        self.alpha, self.beta = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.color * self.alpha[:, None])[..., None, None], self.beta)


class _Block(nn.Module):
    """Position by a depthwise convolution, then mixing of places and of channels, each as a small correction."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = LightNorm(dim), LightNorm(dim)
        self.mix = nn.Sequential(
            nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 5, padding=2, groups=dim), nn.Conv2d(dim, dim, 1)
        )
        self.mlp = nn.Sequential(nn.Conv2d(dim, dim * ratio, 1), nn.GELU(), nn.Conv2d(dim * ratio, dim, 1))
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim, 1, 1), 1e-4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        x = x + self.gamma1 * self.mix(self.norm1(x))
        return x + self.gamma2 * self.mlp(self.norm2(x))


class _Local(nn.Module):
    """(B, 3, H, W) to the factors and summands of each value, (B, 3, H, W) each."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, dim, 3, padding=1)
        self.mul, self.add = (nn.Sequential(*(_Block(dim) for _ in range(depth))) for _ in range(2))
        self.mul_end, self.add_end = (nn.Conv2d(dim, 3, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.leaky_relu(self.head(x), 0.2)
        return F.relu(self.mul_end(self.mul(h) + h)), torch.tanh(self.add_end(self.add(h) + h))


class _Queries(nn.Module):
    """Ten learnt queries that attend over all places, (B, N, C) to (B, 10, C)."""

    def __init__(self, dim: int, heads: int, number: int = 10) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.ones(1, number, dim))
        self.key, self.value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query.expand(len(x), -1, -1), self.key(x), self.value(x))
        )
        out: Tensor = self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return out


class _Global(nn.Module):
    """(B, 3, H, W) to γ (B, 1) and W (B, 3, 3)."""

    def __init__(self, dim: int = 64, heads: int = 4) -> None:
        super().__init__()
        half = dim // 2
        self.embed = nn.Sequential(
            nn.Conv2d(3, half, 3, 2, 1), nn.BatchNorm2d(half), nn.GELU(),
            nn.Conv2d(half, dim, 3, 2, 1), nn.BatchNorm2d(dim),
        )  # fmt: skip
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = _Queries(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.gamma, self.color = nn.Linear(dim, 1), nn.Linear(dim, 1)
        self.gamma_base, self.color_base = nn.Parameter(torch.ones(1)), nn.Parameter(torch.eye(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(x)
        x = (x + self.position(x)).flatten(2).mT
        x = self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        gamma = self.gamma(x[:, 0]) + self.gamma_base
        return gamma.clamp(*GAMMA), self.color(x[:, 1:]).view(-1, 3, 3) + self.color_base


class IAT(nn.Module):
    """Illumination-adaptive transformer, (B, 3, H, W) to the same; RGB in [0, 1].

    Args:
        scale: 1; it does not enlarge.
        dim: C of the local branch.
        depth: blocks of each of its two ways.

    Raises:
        ValueError: another scale.
    """

    controls = ("matrix", "gamma")  # constants of `collapse` that `control` sets, in its order

    def __init__(self, scale: int = 1, *, dim: int = 16, depth: int = 3) -> None:
        super().__init__()
        if scale != 1:
            raise ValueError(f"IAT puts light right at the same size, scale 1, got {scale}")
        self.scale = scale
        self.local, self.whole = _Local(dim, depth), _Global()
        self.margin = 2 + 3 * depth
        self.apply(_start)
        # At the start of a training the picture stays as it is: factors 1, summands 0, γ 1, no cast.
        nn.init.zeros_(self.whole.attn.value.weight)

    @property
    def linear(self) -> Sequence[str]:
        """Matrices and filters that Adam trains: Muon is for the pointwise convolutions."""
        return [n for n, p in self.named_parameters() if "whole" in n or p.ndim != 4 or p.shape[1] == 1]

    def view(self, x: Tensor) -> Tensor:
        """What the global branch sees.

        Args:
            x: (B, 3, H, W).

        Returns:
            (B, 3, 96, 96), means.
        """
        return F.adaptive_avg_pool2d(x, VIEW)

    def control(self, view: Tensor) -> Tensor:
        """The numbers of a picture.

        Args:
            view: (B, 3, 96, 96), see `view`.

        Returns:
            (B, 10): the matrix row by row, and γ.
        """
        gamma, matrix = self.whole(view)
        return torch.cat([matrix.flatten(1), gamma], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Put light right.

        Args:
            x: (B, 3, H, W).

        Returns:
            (B, 3, H, W) in [0, 1].
        """
        mul, add = self.local(x)
        numbers = self.control(self.view(x))
        return corrected(x * mul + add, numbers[:, :9].view(-1, 3, 3), numbers[:, 9:])

    def collapse(self) -> nn.Module:
        """The local branch with the ten numbers as constants, which `control` knows for a picture.

        Returns:
            A module, (B, 3, H, W) to the same.
        """
        return _Fixed(self.local)


class _Fixed(nn.Module):
    """IAT with one matrix and one γ for all pictures."""

    def __init__(self, local: _Local) -> None:
        super().__init__()
        self.local = local
        self.matrix = nn.Parameter(torch.eye(3)[..., None, None])
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        mul, add = self.local(x)
        return F.conv2d(x * mul + add, self.matrix).clamp(LEAST, 1.0) ** self.gamma


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Conv2d):
        fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan) ** 0.5)
        nn.init.zeros_(cast("Tensor", module.bias))


METHOD = Method(
    id=194,
    name="IAT",
    kind="model",
    summary="Light put right by factors and summands of each pixel, and a matrix and γ that ten queries find.",
    paper=Paper(
        "You Only Need 90K Parameters to Adapt Light: A Light Weight Transformer for Image Enhancement and Exposure "
        "Correction",
        "Z. Cui et al.",
        2022,
        "arXiv:2205.14871",
    ),
    models={"iat": IAT},
    cases={"iat": {"dim": 4, "depth": 1}},
)
