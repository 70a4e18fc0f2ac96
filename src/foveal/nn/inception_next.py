"""InceptionNeXt's depthwise convolution: a small square, a row and a column for some channels, nothing for the others.

*Source*: W. Yu et al., "InceptionNeXt: When Inception Meets ConvNeXt", CVPR 2024 (arXiv:2303.16900), section 3.2 and
algorithm 1. For x: (B, C, H, W) and g = r·C channels per branch

    x₀, x₁, x₂, x₃ = split(x; C - 3g, g, g, g)
    y = concat(x₀, S * x₁, R * x₂, D * x₃)      S: (g, 3, 3), R: (g, 1, k) and D: (g, k, 1), depthwise

with r = 1/8 and k = 11 in place of ConvNeXt's 7×7 kernels. Large depthwise kernels take little arithmetic and much
time; the bands keep their reach.

*Differs from the paper*: `stand_in`, which puts it in the place of a trained convolution, is foveal's own.

*Provenance*: written from the paper, with timm's parameter names. The networks (InceptionNeXt-A … B) are timm's;
`use_inception_` puts the operator of this file into them, and logits stay the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.same_size import keeps_size
from foveal.record import Method, Paper

__all__ = [
    "InceptionDepthwise",
    "inception_depthwise",
    "inception_depthwise_reference",
    "stand_in",
    "use_inception_",
]

SMALLEST = 5  # side of a kernel below which a square, a row and a column have nothing to save


def inception_depthwise(
    x: Tensor,
    square: Tensor,
    row: Tensor,
    column: Tensor,
    *,
    biases: tuple[Tensor, Tensor, Tensor] | None = None,
    dilation: int = 1,
) -> Tensor:
    """Convolve the last channels by three kinds of kernels and pass on the others.

    Args:
        x: (B, C, H, W).
        square: kernels of the first branch, (g, 1, s, s) with odd s; borders are padded with zeros.
        row: kernels of the second, (g, 1, 1, k) with odd k.
        column: kernels of the third, (g, 1, k, 1).
        biases: of the three branches, (g,) each; None for none.
        dilation: distance between the pixels that meet neighbouring taps.

    Returns:
        (B, C, H, W).
    """
    kernels = (square, row, column)
    passed, *parts = x.split([x.shape[1] - sum(map(len, kernels)), *map(len, kernels)], 1)
    out = [passed]
    for part, kernel, bias in zip(parts, kernels, biases or (None, None, None), strict=True):
        padding = [dilation * (side // 2) for side in kernel.shape[2:]]
        out.append(torch.conv2d(part, kernel, bias, padding=padding, dilation=dilation, groups=len(kernel)))
    return torch.cat(out, 1)


def inception_depthwise_reference(
    x: Tensor, square: Tensor, row: Tensor, column: Tensor, *, dilation: int = 1
) -> Tensor:
    """The same as one depthwise convolution: all kernels are written into squares, and what passes gets a single 1.

    Args:
        x: (B, C, H, W).
        square: (g, 1, s, s).
        row: (g, 1, 1, k).
        column: (g, 1, k, 1).
        dilation: distance between the pixels that meet neighbouring taps.

    Returns:
        (B, C, H, W).
    """
    kernels = (square, row, column)
    channels, side = x.shape[1], max(max(kernel.shape[2:]) for kernel in kernels)
    passed = channels - sum(map(len, kernels))
    full = [nn.init.dirac_(x.new_empty(passed, 1, side, side), groups=max(passed, 1))] if passed else []
    for kernel in kernels:
        down, across = ((side - length) // 2 for length in kernel.shape[2:])
        full.append(nn.functional.pad(kernel, (across, across, down, down)))
    return torch.conv2d(x, torch.cat(full), padding=dilation * (side // 2), dilation=dilation, groups=channels)


class InceptionDepthwise(nn.Module):
    """(B, C, H, W) to the same shape.

    Args:
        dim: C, at least 1 / `branch_ratio`.
        square_kernel_size: s, odd.
        band_kernel_size: k, odd.
        branch_ratio: r, share of the channels of each of the three branches, at most 1/3.
        dilation: distance between the pixels that meet neighbouring taps.

    Raises:
        ValueError: an even kernel, a ratio above 1/3, or fewer channels than give a branch one.
    """

    def __init__(
        self,
        dim: int,
        *,
        square_kernel_size: int = 3,
        band_kernel_size: int = 11,
        branch_ratio: float = 1 / 8,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        for name, size in (("square_kernel_size", square_kernel_size), ("band_kernel_size", band_kernel_size)):
            if size % 2 == 0:
                raise ValueError(f"{name} must be odd, got {size}; take {size + 1}")
        part = int(dim * branch_ratio)
        if branch_ratio > 1 / 3 or not part:
            raise ValueError(
                f"branch_ratio must be in 1/{dim}…1/3 for {dim} channels, got {branch_ratio}; each branch takes that "
                "share of the channels, and at least one"
            )
        self.dilation = dilation
        conv = partial(nn.Conv2d, part, part, groups=part, dilation=dilation)
        self.dwconv_hw = conv(kernel_size=square_kernel_size)
        self.dwconv_w, self.dwconv_h = conv(kernel_size=(1, band_kernel_size)), conv(kernel_size=(band_kernel_size, 1))

    @property
    def branches(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
        """The square, the row and the column; they hold the weights."""
        return self.dwconv_hw, self.dwconv_w, self.dwconv_h

    def forward(self, x: Tensor) -> Tensor:
        square, row, column = (branch.weight for branch in self.branches)
        first, second, third = (branch.bias for branch in self.branches)
        biases = None if first is None or second is None or third is None else (first, second, third)
        return inception_depthwise(x, square, row, column, biases=biases, dilation=self.dilation)


def use_inception_(model: nn.Module) -> nn.Module:
    """Put the operator of this file in the place of timm's, with the same weights.

    Args:
        model: InceptionNeXt of timm, changed in place.

    Returns:
        The model.
    """
    for block in [module for module in model.modules() if hasattr(module, "token_mixer")]:
        theirs: Any = block.token_mixer
        dim = sum(theirs.split_indexes)
        ours = InceptionDepthwise(
            dim,
            square_kernel_size=theirs.dwconv_hw.kernel_size[0],
            band_kernel_size=theirs.dwconv_w.kernel_size[1],
            branch_ratio=(theirs.split_indexes[1] + 0.1) / dim,  # a tenth more, so that rounding down recovers it
            dilation=theirs.dwconv_hw.dilation[0],
        )
        ours.load_state_dict(theirs.state_dict())
        block.token_mixer = ours.train(theirs.training)
    return model


@torch.no_grad()
def stand_in(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:  # noqa: ARG001 - a stand-in's signature
    """Square, row, column and a factor in the place of a large depthwise kernel; equal to it on flat pictures.

    Row and column start as the sums of the kernel's columns and rows, so that they are also equal to it on pictures
    that change along them only. The square starts with each tap added to the nearest of its own, and channels that pass
    are multiplied by the sum of theirs.

    Args:
        layer: depthwise convolution of stride 1 with an odd square kernel of at least 5 that keeps height and width.
        shape: shape of its input, (B, C, H, W).

    Returns:
        The stand-in.

    Raises:
        ValueError: another layer.
    """
    if not isinstance(layer, nn.Conv2d) or not layer.groups == layer.in_channels == layer.out_channels:
        raise ValueError(f"inception stands in for a depthwise convolution, got {layer}")
    size = layer.kernel_size[0]
    if layer.kernel_size != (size, size) or size < SMALLEST or size % 2 == 0:
        raise ValueError(f"inception needs an odd square kernel of at least {SMALLEST}, got {layer.kernel_size}")
    if layer.dilation != (1, 1) or not keeps_size(layer):
        raise ValueError("inception keeps height and width: it needs stride 1, no dilation and full padding")
    operator = InceptionDepthwise(layer.in_channels, band_kernel_size=size)
    part, rest = len(operator.dwconv_hw.weight), size // 2 - 1
    kernels = layer.weight[-3 * part :].split(part)
    nearest = torch.zeros(3, size)  # which taps of the kernel each of three takes
    nearest[0, : rest + 1] = nearest[1, rest + 1] = nearest[2, rest + 2 :] = 1
    operator.dwconv_hw.weight.copy_(nearest @ kernels[0] @ nearest.mT)
    operator.dwconv_w.weight.copy_(kernels[1].sum(2, keepdim=True))
    operator.dwconv_h.weight.copy_(kernels[2].sum(3, keepdim=True))
    factor = nn.Conv2d(layer.in_channels, layer.in_channels, 1, groups=layer.in_channels, bias=layer.bias is not None)
    nn.init.ones_(factor.weight)
    factor.weight[: -3 * part].copy_(layer.weight[: -3 * part].sum((2, 3), keepdim=True))
    if layer.bias is not None and factor.bias is not None:
        factor.bias.copy_(layer.bias)
    for branch in operator.branches:
        if branch.bias is not None:
            nn.init.zeros_(branch.bias)
    return nn.Sequential(operator, factor)


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, 9, 5, 6), "square": (2, 1, 3, 3), "row": (2, 1, 1, 7), "column": (2, 1, 7, 1)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


METHOD = Method(
    id=345,
    name="InceptionNeXt",
    kind="operator",
    summary="A large depthwise kernel becomes a small square, a row and a column; most channels pass.",
    paper=Paper("InceptionNeXt: When Inception Meets ConvNeXt", "W. Yu et al.", 2024, "arXiv:2303.16900"),
    cases={"two_of_nine_each": Operator(inception_depthwise, inception_depthwise_reference, _inputs)},
)
