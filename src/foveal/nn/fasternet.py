"""FasterNet's partial convolution: a quarter of the channels is convolved, the rest passes untouched.

*Source*: J. Chen et al., "Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks", CVPR 2023
(arXiv:2303.03667), sections 3.2 and 3.3. With c_p = C / n_div channels,

    PConv(x) = [W ∗ x_{:c_p}, x_{c_p:}],  W: (c_p, c_p, k, k)

takes H·W·k²·c_p² multiply-adds, 1/16 of the convolution's at n_div = 4, and reads and writes a quarter of the memory.
A pointwise convolution after it carries what it found to all channels: together they see a T-shaped part of a dense
kernel, one pixel of all channels and the whole window of a quarter.

*Differs from the paper*: `stand_in`, which puts the two in the place of a trained convolution, is foveal's own.

*Provenance*: written from the paper. The networks (FasterNet-T0 … L) are timm's, used as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.same_size import keeps_size
from foveal.record import Method, Paper

__all__ = ["PConv", "partial_conv", "partial_conv_reference", "stand_in"]


def partial_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve the first channels and pass on the others.

    Args:
        x: (B, C, H, W).
        weight: (c_p, c_p, k, k) with c_p ≤ C and odd k; the border is padded with zeros.

    Returns:
        (B, C, H, W).
    """
    first = torch.conv2d(x[:, : len(weight)], weight, padding=weight.shape[-1] // 2)
    return torch.cat([first, x[:, len(weight) :]], 1)


def partial_conv_reference(x: Tensor, weight: Tensor) -> Tensor:
    """The same as one dense convolution: the identity for the channels that pass.

    Args:
        x: (B, C, H, W).
        weight: (c_p, c_p, k, k).

    Returns:
        (B, C, H, W).
    """
    part, size = len(weight), weight.shape[-1]
    rest = nn.init.dirac_(x.new_empty(x.shape[1], x.shape[1], size, size))[:, part:]
    full = torch.cat([torch.cat([weight, weight.new_zeros(x.shape[1] - part, part, size, size)]), rest], 1)
    return torch.conv2d(x, full, padding=size // 2)


class PConv(nn.Module):
    """(B, C, H, W) to the same shape.

    Args:
        dim: C.
        n_div: share of the channels that is convolved is 1 / n_div.
        kernel_size: k, odd.

    Raises:
        ValueError: more parts than channels, or an even kernel.
    """

    def __init__(self, dim: int, *, n_div: int = 4, kernel_size: int = 3) -> None:
        super().__init__()
        if not 1 <= n_div <= dim:
            raise ValueError(f"n_div must be in 1…{dim} for {dim} channels, got {n_div}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        part = dim // n_div
        self.weight = nn.Parameter(nn.Conv2d(part, part, kernel_size, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return partial_conv(x, self.weight)


@torch.no_grad()
def stand_in(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:  # noqa: ARG001 - a stand-in's signature
    """A partial and a pointwise convolution in the place of a dense one; equal to it on flat pictures.

    The partial convolution starts as the identity and the pointwise one as the sum of the dense kernel's taps.

    Args:
        layer: dense convolution of stride 1 that keeps height and width.
        shape: shape of its input, (B, C, H, W).

    Returns:
        The stand-in.

    Raises:
        ValueError: another layer.
    """
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.kernel_size[0] != layer.kernel_size[1]:
        raise ValueError(f"pconv stands in for a dense convolution with a square kernel, got {layer}")
    if layer.kernel_size[0] % 2 == 0 or not keeps_size(layer):
        raise ValueError("pconv keeps height and width: it needs stride 1, an odd kernel and full padding")
    partial = PConv(layer.in_channels, kernel_size=layer.kernel_size[0])
    nn.init.dirac_(partial.weight)
    pointwise = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None)
    pointwise.weight.copy_(layer.weight.sum((2, 3), keepdim=True))
    if layer.bias is not None and pointwise.bias is not None:
        pointwise.bias.copy_(layer.bias)
    return nn.Sequential(partial, pointwise)


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((2, 7, 5, 6), (3, 3, 3, 3)))
    return {"x": x, "weight": weight}


METHOD = Method(
    id=126,
    name="FasterNet",
    kind="operator",
    summary="A quarter of the channels is convolved, the rest passes untouched.",
    paper=Paper(
        "Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks", "J. Chen et al.", 2023, "arXiv:2303.03667"
    ),
    cases={"three_of_seven": Operator(partial_conv, partial_conv_reference, _inputs)},
)
