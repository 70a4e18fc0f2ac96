"""AFC: a ConvNeXt without aliasing, whose logits do not change when the picture moves by fractions of a pixel.

*Source*: H. Michaeli et al., "Alias-Free Convnets: Fractional Shift Invariance via Polynomial Activations", CVPR 2023
(arXiv:2303.08085). Pictures are periodic, and every map x: (B, C, H, W) stands for the band-limited signal that it
samples. ConvNeXt's parts become operations on that signal:

    strided convolution     convolution of stride 1 with circular padding, then all frequencies that the coarser grid
                            cannot hold, its Nyquist frequency included, are removed and the rest is sampled on it
    activation              down(p(up x)),  p(x) = s₂ (c₀ + c₁ s₁ x + c₂ (s₁ x)²), with c per channel and s learnt
    layer norm              (x - mean over C) / √(var + ε), with one variance over C, H and W
    head                    mean over all pixels, norm, linear

up doubles the resolution; a polynomial of degree 2 doubles the bandwidth, so that nothing folds, and down removes what
is new. The stem adds γ s₂ (c₀ + c₁ z + c₂ z·low z), z = s₁ x, before it samples every fourth pixel: low keeps three
quarters of the band, and what folds then lies above the quarter that stays.

*Differs from the paper*: maps are resampled by cropping or padding their spectra, which equals its low-pass filters
where sides can be halved and stays free of aliasing where they cannot.

*Provenance*: written from the paper's abstract; the parts, the stem's activation, the starts of c, s and γ and the
paddings were looked up in the authors' code, whose logits it equals to 7e-7 under shared weights at 128×128.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from foveal.nn.pooled_norm import PooledNormPyramid
from foveal.nn.renamed import renamed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "AFC",
    "AliasFreeNorm",
    "Polynomial",
    "afc_base",
    "afc_small",
    "afc_tiny",
    "from_authors",
    "from_timm",
    "low_pass",
    "resample",
    "resample_reference",
    "shift",
]

START = (0.0169394634313126, 0.5, 0.3078363963999393)  # c₀, c₁ and c₂, near to GELU
SCALE = 7.0  # s₁ and s₂ at the start
STEM, KEPT = 4, 0.75  # stride of the stem, and share of the band that its second factor has


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The same band-limited signal on another grid; frequencies that either grid cannot hold are removed.

    Args:
        x: (B, C, H, W), periodic.
        size: (h, w).

    Returns:
        (B, C, h, w).
    """
    rows, columns = ((min(old, new) - 1) // 2 for old, new in zip(x.shape[2:], size, strict=True))
    spectrum = torch.fft.rfft2(x, norm="forward")[..., : columns + 1]
    gap = spectrum.new_zeros(*spectrum.shape[:2], size[0] - 2 * rows - 1, columns + 1)
    parts = [spectrum[..., : rows + 1, :], gap, spectrum[..., x.shape[2] - rows :, :]]
    return torch.fft.irfft2(torch.cat(parts, 2), s=size, norm="forward")


def low_pass(x: Tensor, share: float) -> Tensor:
    """Remove the frequencies from a share of the Nyquist frequency on.

    Args:
        x: (B, C, H, W), periodic.
        share: of the band that stays, in (0, 1].

    Returns:
        (B, C, H, W).
    """
    height, width = x.shape[2:]
    down = torch.arange(height, device=x.device)
    down, across = torch.minimum(down, height - down), torch.arange(width // 2 + 1, device=x.device)
    kept = (2 * down < share * height)[:, None] & (2 * across < share * width)
    return torch.fft.irfft2(torch.fft.rfft2(x) * kept, s=(height, width))


def resample_reference(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The same wave by wave, by its definition.

    Args:
        x: (B, C, H, W), periodic.
        size: (h, w).

    Returns:
        (B, C, h, w).
    """
    for axis, new in ((2, size[0]), (3, size[1])):
        old = x.shape[axis]
        grids = [torch.arange(side, dtype=torch.float64) / side for side in (new, old)]
        offsets = grids[0][:, None] - grids[1]
        # the sum of all waves that both grids hold
        top = (min(old, new) - 1) // 2
        kernel = 1 + 2 * sum((2 * math.pi * k * offsets).cos() for k in range(1, top + 1)) + torch.zeros(new, old)
        x = torch.tensordot(kernel.to(x) / old, x.movedim(axis, 0), 1).movedim(0, axis)
    return x


def shift(x: Tensor, offset: tuple[float, float]) -> Tensor:
    """Move periodic pictures by any number of pixels; whole numbers give `torch.roll`.

    Args:
        x: (B, C, H, W).
        offset: pixels down and to the right.

    Returns:
        (B, C, H, W).
    """
    height, width = x.shape[2:]
    phases = []
    for waves, side, pixels in (
        ((torch.arange(height) + height // 2) % height - height // 2, height, offset[0]),
        (torch.arange(width // 2 + 1), width, offset[1]),
    ):
        angle = (-2 * math.pi * pixels / side) * waves.to(x)
        # a cosine at the Nyquist frequency has no sine beside it
        phases.append(torch.complex(angle.cos(), angle.sin() * (2 * waves.abs() != side).to(x)))
    return torch.fft.irfft2(torch.fft.rfft2(x) * phases[0][:, None] * phases[1], s=(height, width))


def _wrap(x: Tensor, before: int, after: int) -> Tensor:
    """Circular padding of both sides, also by more than a whole period."""
    for axis in (2, 3):
        side = x.shape[axis]
        x = x.index_select(axis, torch.arange(-before, side + after, device=x.device) % side)
    return x


class AliasFreeNorm(nn.Module):
    """(B, C, H, W) to the same: each pixel's mean is removed, the whole map has one deviation.

    Args:
        dim: C.
        eps: ε, what is added to the variance.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean((1, 2, 3), keepdim=True) + self.eps).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Polynomial(nn.Module):
    """s₂ (c₀ + c₁ z + c₂ z·z') with z = s₁ x: (..., C) to the same, channels last.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.coef = nn.Parameter(torch.tensor(START).repeat(dim, 1))
        self.in_scale, self.out_scale = (nn.Parameter(torch.tensor([SCALE])) for _ in range(2))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Apply it.

        Args:
            x: (..., C).
            other: z' over s₁, (..., C); None for x itself.

        Returns:
            (..., C).
        """
        x = self.in_scale * x
        other = x if other is None else self.in_scale * other
        constant, linear, square = self.coef.unbind(1)
        return self.out_scale * (constant + linear * x + square * x * other)


class _Mlp(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), Polynomial(4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        x = resample(x, (2 * size[0], 2 * size[1])).permute(0, 2, 3, 1)
        return resample(self.fc2(self.act(self.fc1(x))).permute(0, 3, 1, 2), size)


class _Block(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, drop_path: float, ls_init_value: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, groups=dim)
        self.norm, self.mlp = AliasFreeNorm(dim), _Mlp(dim)
        self.gamma = nn.Parameter(torch.full((dim,), ls_init_value))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out = self.mlp(self.norm(self.conv_dw(_wrap(x, 3, 3))))
        return x + self.drop_path(self.gamma[:, None, None] * out)


class _Stem(nn.Module):
    """(B, in_channels, H, W) to (B, dim, ⌈H / 4⌉, ⌈W / 4⌉)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv, self.act, self.norm = nn.Conv2d(in_channels, dim, STEM), Polynomial(dim), AliasFreeNorm(dim)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        size = (-(-x.shape[2] // STEM), -(-x.shape[3] // STEM))
        x = self.conv(_wrap(x, 1, 2))
        last = self.act(x.movedim(1, -1), low_pass(x, KEPT).movedim(1, -1)).movedim(-1, 1)
        return self.norm(resample(x + self.gamma * last, size))


class _Downsample(nn.Module):
    """(B, dim, H, W) to (B, out, ⌈H / 2⌉, ⌈W / 2⌉)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm, self.conv = AliasFreeNorm(dim), nn.Conv2d(dim, out, 2)

    def forward(self, x: Tensor) -> Tensor:
        size = (-(-x.shape[2] // 2), -(-x.shape[3] // 2))
        return resample(self.conv(_wrap(self.norm(x), 0, 1)), size)


class AFC(PooledNormPyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dims: channels of each stage.
        depths: number of blocks of each stage.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.
        ls_init_value: start of each block's scale, γ.

    Raises:
        ValueError: if `dims` and `depths` differ in length.
    """

    def __init__(
        self,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
        ls_init_value: float = 1e-6,
    ) -> None:
        if len(dims) != len(depths):
            raise ValueError(f"dims and depths must have the same length, got {len(dims)} and {len(depths)}")
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            if i:
                parts["downsample"] = _Downsample(dims[i - 1], dim)
            parts["blocks"] = nn.Sequential(*(_Block(dim, next(drops), ls_init_value) for _ in range(depth)))
            stages.append(nn.Sequential(parts))
        super().__init__(
            _Stem(in_channels, dims[0]),
            stages,
            dims,
            [STEM * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
        )
        self.head_norm = nn.LayerNorm(dims[-1], eps=1e-6)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of timm's ConvNeXt to foveal's parameter names; the polynomials' are not among them.

    Args:
        state_dict: name → tensor, of `convnext_tiny`, `convnext_small` or `convnext_base`.

    Returns:
        State dict of `AFC`, but for the activations and the scale of the stem's.
    """
    return renamed(
        state_dict,
        [
            (r"^stem\.0\.", "stem.conv."),
            (r"^stem\.1\.", "stem.norm."),
            (r"\.downsample\.0\.", ".downsample.norm."),
            (r"\.downsample\.1\.", ".downsample.conv."),
            (r"^head\.norm\.", "head_norm."),
            (r"^head\.fc\.", "head."),
        ],
    )


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    Args:
        state_dict: name → tensor, of their `convnext_afc_tiny` with the options of the paper's network.

    Returns:
        State dict of `AFC`.
    """
    found = renamed(
        {name: value for name, value in state_dict.items() if not name.endswith(".rect")},
        [
            (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.dwconv\.1\.", ".conv_dw."),
            (r"\.pwconv(\d)\.", r".fc\1."),
            (r"^downsample_layers\.0\.0\.1\.", "stem.conv."),
            (r"^downsample_layers\.0\.1\.residual\.0\.", "stem.act."),
            (r"^downsample_layers\.0\.1\.gamma", "stem.gamma"),
            (r"^downsample_layers\.0\.3\.", "stem.norm."),
            (r"^downsample_layers\.(\d)\.0\.", r"stages.\1.downsample.norm."),
            (r"^downsample_layers\.(\d)\.1\.1\.", r"stages.\1.downsample.conv."),
            (r"^norm\.", "head_norm."),
        ],
    )
    return {name: value.flatten(1) if name.endswith(".coef") else value for name, value in found.items()}


afc_tiny = AFC  # of ConvNeXt-T: 28.7 M parameters
afc_small = partial(AFC, depths=(3, 3, 27, 3))  # of ConvNeXt-S: 50.4 M
afc_base = partial(AFC, dims=(128, 256, 512, 1024), depths=(3, 3, 27, 3))  # of ConvNeXt-B: 88.8 M

_TINY = {"dims": (4, 8), "depths": (1, 1), "num_classes": 3}

METHOD = Method(
    id=117,
    name="AFC",
    kind="model",
    summary="A ConvNeXt without aliasing: logits stay when the picture moves by fractions of a pixel.",
    paper=Paper(
        "Alias-Free Convnets: Fractional Shift Invariance via Polynomial Activations",
        "H. Michaeli et al.",
        2023,
        "arXiv:2303.08085",
    ),
    models={"afc_tiny": afc_tiny, "afc_small": afc_small, "afc_base": afc_base},
    cases={"afc_tiny": {**_TINY, "in_channels": 1, "drop_path": 0.1}, "afc_small": _TINY, "afc_base": _TINY},
)
