"""WaveMix: a backbone that mixes pixels by Haar wavelet transforms, at one resolution from the first block to the last.

*Source*: P. Jeevan et al., "WaveMix: A Resource-efficient Neural Network for Image Analysis", 2022 (arXiv:2205.14375).
For a map x: (B, C, H, W) and L levels, a block is

    u = W x                                         (B, C/4, H, W)
    w_l = [LL_l, LH_l, HL_l, HH_l] of u             (B, C, H/2^l, W/2^l), the wavelet transform of level l = 1 … L
    z_l = mlp_l [w_l, z_{l+1}]                      (B, C or C/2, H/2^{l-1}, W/2^{l-1})
    y = x + z_1

with mlp = norm ∘ transposed convolution of stride 2 ∘ V₂ ∘ dropout ∘ gelu ∘ V₁, hidden in 2·C channels. z_1 has C
channels, the others C/2, and nothing stands in the place of z_{L+1}. The transform halves height and width without a
parameter and without loss, so that the costly part of a block runs on a quarter of the pixels or less; L levels reach
2^L pixels at once. One level of the Haar transform of the pixels a b / c d is

    LL = (a+b+c+d)/2,  LH = (a+b-c-d)/2,  HL = (a-b+c-d)/2,  HH = (a-b-c+d)/2

*Differs from the paper*: maps whose sides are no multiple of 2^L are filled up with zeros and cut again.

*Provenance*: written from the paper's abstract; that levels are joined from the coarsest up, the stems and the sizes
were looked up in the authors' package, whose logits it equals to 3e-7 under shared weights at one to four levels.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "WaveBlock",
    "WaveMix",
    "from_authors",
    "haar",
    "haar_reference",
    "inverse_haar",
    "wavemix_192_16",
    "wavemix_256_12_places",
    "wavemix_256_16",
    "wavemix_lite_192_16",
]


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """One level of the orthonormal Haar transform; what `inverse_haar` undoes.

    Args:
        x: (B, C, H, W) with even H and W.

    Returns:
        Low frequencies, (B, C, H/2, W/2); details, (B, C, 3, H/2, W/2): LH of rows, HL of columns and HH of diagonals.

    Raises:
        ValueError: an odd side.
    """
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"haar needs an even height and width, got {x.shape[2]}×{x.shape[3]}; pad the map")
    upper, lower = x[..., ::2, :], x[..., 1::2, :]
    total, change = (upper + lower) / 2, (upper - lower) / 2
    low, columns = total[..., ::2] + total[..., 1::2], total[..., ::2] - total[..., 1::2]
    rows, diagonals = change[..., ::2] + change[..., 1::2], change[..., ::2] - change[..., 1::2]
    return low, torch.stack([rows, columns, diagonals], 2)


def inverse_haar(low: Tensor, details: Tensor) -> Tensor:
    """The map from its Haar transform.

    Args:
        low: (B, C, h, w).
        details: (B, C, 3, h, w).

    Returns:
        (B, C, 2·h, 2·w).
    """
    rows, columns, diagonals = details.unbind(2)
    total = torch.stack([low + columns, low - columns], -1).flatten(-2)
    change = torch.stack([rows + diagonals, rows - diagonals], -1).flatten(-2)
    return torch.stack([total + change, total - change], -2).flatten(-3, -2) / 2


def haar_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same by four filters.

    Args:
        x: (B, C, H, W) with even H and W.

    Returns:
        (B, C, H/2, W/2) and (B, C, 3, H/2, W/2).
    """
    signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
    filters = torch.tensor(signs).to(x).view(4, 1, 2, 2) / 2
    bands = F.conv2d(x.flatten(0, 1)[:, None], filters, stride=2).unflatten(0, x.shape[:2])
    return bands[:, :, 0], bands[:, :, 1:]


def _mixer(dim: int, out: int, width: int, hidden: int, dropout: float) -> nn.Sequential:
    """The perceptron of one level, (B, dim, h, w) to (B, out, 2·h, 2·w)."""
    return nn.Sequential(
        nn.Conv2d(dim, hidden, 1),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Conv2d(hidden, width, 1),
        nn.ConvTranspose2d(width, out, 4, stride=2, padding=1),
        nn.BatchNorm2d(out),
    )


class WaveBlock(nn.Module):
    """x + mixed(x): (B, C, H, W) to the same, of any height and width.

    Args:
        dim: C, a multiple of 4.
        levels: L, at least 1.
        mlp_ratio: hidden channels of the perceptrons over C.
        dropout: dropout after the hidden layer, while training.
        drop_path: probability of leaving x as it is, while training.

    Raises:
        ValueError: channels that four bands cannot share, or no level.
    """

    def __init__(
        self, dim: int, *, levels: int = 3, mlp_ratio: float = 2.0, dropout: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4, one part for each band, got {dim}; take {dim + -dim % 4}")
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        self.levels, self.drop_path = levels, DropPath(drop_path)
        self.reduction = nn.Conv2d(dim, dim // 4, 1)
        self.mixers = nn.ModuleList(
            _mixer(
                dim + (dim // 2 if level < levels else 0),
                dim if level == 1 else dim // 2,
                dim,
                round(dim * mlp_ratio),
                dropout,
            )
            for level in range(1, levels + 1)
        )

    def mixed(self, x: Tensor) -> Tensor:
        """What is added to the map.

        Args:
            x: (B, C, H, W), H and W multiples of 2^L.

        Returns:
            (B, C, H, W).
        """
        low, bands = self.reduction(x), []
        for _ in range(self.levels):
            low, details = haar(low)
            bands.append(torch.cat([low, details.flatten(1, 2)], 1))
        out = self.mixers[-1](bands.pop())
        for mixer in list(self.mixers)[-2::-1]:
            out = mixer(torch.cat([bands.pop(), out], 1))
        return out

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        down, right = -height % 2**self.levels, -width % 2**self.levels
        if not (down or right):
            return x + self.drop_path(self.mixed(x))
        return x + self.drop_path(self.mixed(F.pad(x, (0, right, 0, down)))[..., :height, :width])


def _stem(in_channels: int, dim: int, patch_size: int, *, strided: bool) -> nn.Sequential:
    """(B, in_channels, H, W) to (B, dim, H / patch_size, W / patch_size)."""
    if strided:
        step = math.isqrt(patch_size)
        return nn.Sequential(nn.Conv2d(in_channels, dim // 2, 3, step, 1), nn.Conv2d(dim // 2, dim, 3, step, 1))
    return nn.Sequential(
        nn.Conv2d(in_channels, dim // 4, 3, padding=1),
        nn.Conv2d(dim // 4, dim // 2, 3, padding=1),
        nn.Conv2d(dim // 2, dim, patch_size, patch_size),
        nn.GELU(),
        nn.BatchNorm2d(dim),
    )


class WaveMix(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), of any height and width from `patch_size` on.

    Args:
        dim: C, a multiple of 4.
        depth: number of blocks.
        levels: L; 1 is WaveMix-Lite.
        patch_size: pixels a side that one pixel of the map stands for.
        strided: whether the stem is two strided 3×3 convolutions; else two of stride 1 and one of patches.
        mlp_ratio: hidden channels of the perceptrons over C.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        dropout: dropout in each block's perceptrons, while training.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.

    Raises:
        ValueError: channels that four bands cannot share, no level, or a strided stem whose patch is no square.
    """

    def __init__(
        self,
        dim: int = 192,
        depth: int = 16,
        *,
        levels: int = 3,
        patch_size: int = 4,
        strided: bool = False,
        mlp_ratio: float = 2.0,
        in_channels: int = 3,
        num_classes: int = 1000,
        dropout: float = 0.5,
        drop_path: float = 0.0,
    ) -> None:
        if strided and math.isqrt(patch_size) ** 2 != patch_size:
            raise ValueError(f"a strided stem has two equal strides, so patch_size is 1, 4 or 9, got {patch_size}")
        drops = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        blocks = [WaveBlock(dim, levels=levels, mlp_ratio=mlp_ratio, dropout=dropout, drop_path=drop) for drop in drops]
        super().__init__(
            _stem(in_channels, dim, patch_size, strided=strided),
            blocks,
            [dim] * depth,
            [patch_size] * depth,
            num_classes=num_classes,
            in_channels=in_channels,
        )


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    Args:
        state_dict: name → tensor, of `wavemix.classification.WaveMix`.

    Returns:
        State dict of `WaveMix`.
    """
    return renamed(
        state_dict,
        [
            (r"^conv\.", "stem."),
            (r"^pool\.2\.", "head."),
            (r"^layers\.", "stages."),
            (r"\.feedforward(\d?)\.", lambda at: f".mixers.{int(at[1] or 1) - 1}."),
        ],
    )


wavemix_256_12_places = partial(WaveMix, dim=256, depth=12, levels=2, patch_size=8)  # the one of Places-365: 28.6 M
wavemix_192_16 = WaveMix  # WaveMix-192/16, three levels: 28 M parameters
wavemix_256_16 = partial(WaveMix, dim=256)  # WaveMix-256/16, three levels: 49 M
wavemix_lite_192_16 = partial(WaveMix, levels=1)  # WaveMix-Lite-192/16: 12 M

_TINY = {"dim": 8, "depth": 2, "num_classes": 3}

METHOD = Method(
    id=67,
    name="WaveMix",
    kind="model",
    summary="Pixels are mixed by Haar wavelet transforms of several levels, at one resolution throughout.",
    paper=Paper(
        "WaveMix: A Resource-efficient Neural Network for Image Analysis", "P. Jeevan et al.", 2022, "arXiv:2205.14375"
    ),
    models={
        "wavemix_192_16": wavemix_192_16,
        "wavemix_256_12_places": wavemix_256_12_places,
        "wavemix_256_16": wavemix_256_16,
        "wavemix_lite_192_16": wavemix_lite_192_16,
    },
    cases={
        "wavemix_192_16": {**_TINY, "levels": 2, "in_channels": 1},
        "wavemix_256_12_places": {**_TINY, "levels": 2},
        "wavemix_256_16": {**_TINY, "strided": True},
        "wavemix_lite_192_16": _TINY,
    },
)
