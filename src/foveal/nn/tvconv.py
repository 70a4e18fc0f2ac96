"""TVConv: a depthwise convolution whose kernel differs from place to place but not from picture to picture.

*Source*: J. Chen et al., "TVConv: Efficient Translation Variant Convolution for Layout-aware Visual Processing",
CVPR 2022 (arXiv:2203.10489), section 3. Learned affinity maps A, a few channels at every place, pass through a small
network B that gives each place its kernels:

    W = B(A),  A: (c_A, H, W), W: (C, k², H, W)
    y(c, p) = Σ_q W(c, q, p) · x(c, p + q)                          q: the k² places of the window

B does not see the picture: it runs once after training, and what remains are k² multiply-adds per channel and place, as
many as of a depthwise convolution. B is two layers of 3×3 convolution, layer norm and ReLU, and a 3×3 convolution to
k²·C channels.

*Differs from the paper*: in B the border is repeated, where the code of the authors pads with zeros, and the layer norm
has one weight per channel, not one per channel and place; so constant maps give the same kernel everywhere. The last
convolution has a bias, k²·C numbers: with its weight at 0 the bias is a depthwise kernel, from which
`stand_in` starts. Windows are not unfolded; the sum runs over the taps.

*Provenance*: written from the formula; with zeros padded and no bias, outputs and gradients equal those of the authors'
code to 3e-7 of the largest, cached or not.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = ["CachedTVConv", "TVConv", "cache_kernels_", "stand_in", "variant_conv", "variant_conv_reference"]


def variant_conv(x: Tensor, kernels: Tensor, *, stride: int = 1) -> Tensor:
    """Convolve each channel with a kernel of its own at each place.

    Args:
        x: (B, C, H, W).
        kernels: (C, k², H', W') with odd k; the border is padded with zeros.
        stride: stride of the window.

    Returns:
        (B, C, H', W').
    """
    _, taps, height, width = kernels.shape
    size = round(taps**0.5)
    padded = F.pad(x, [size // 2] * 4)
    out = x.new_zeros(())
    # tap by tap: no window is copied, as unfolding would do k² times
    for tap in range(taps):
        i, j = divmod(tap, size)
        seen = padded[:, :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        out = torch.addcmul(out, kernels[:, tap], seen)
    return out


def variant_conv_reference(x: Tensor, kernels: Tensor, *, stride: int = 1) -> Tensor:
    """The same, one place after the other.

    Args:
        x: (B, C, H, W).
        kernels: (C, k², H', W').
        stride: stride of the window.

    Returns:
        (B, C, H', W').
    """
    size = round(kernels.shape[1] ** 0.5)
    padded = F.pad(x, [size // 2] * 4)
    places = [
        [
            torch.einsum(
                "bcij,cij->bc",
                padded[:, :, stride * i : stride * i + size, stride * j : stride * j + size],
                kernels[:, :, i, j].unflatten(1, (size, size)),
            )
            for j in range(kernels.shape[3])
        ]
        for i in range(kernels.shape[2])
    ]
    return torch.stack([torch.stack(row, -1) for row in places], -2)


def _check(x: Tensor, size: tuple[int, int], stride: int) -> None:
    wanted = tuple(-(-side // stride) for side in x.shape[-2:])
    if wanted != size:
        raise ValueError(
            f"this layer's kernels are for {size[0]}×{size[1]} places, got a picture of {x.shape[-2]}×{x.shape[-1]} at "
            f"stride {stride}; build it for that size"
        )


class TVConv(nn.Module):
    """(B, C, stride·H, stride·W) to (B, C, H, W), for pictures of one size.

    Args:
        dim: C.
        size: (H, W), height and width of the output.
        kernel_size: k, odd.
        stride: stride of the window.
        affinity: c_A, number of affinity maps.
        hidden: channels within B.
        depth: layers of B before the last convolution.
        bias: whether each channel has a bias.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self,
        dim: int,
        size: tuple[int, int],
        *,
        kernel_size: int = 3,
        stride: int = 1,
        affinity: int = 4,
        hidden: int = 16,
        depth: int = 2,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        self.dim, self.size, self.stride = dim, size, stride
        self.affinity = nn.Parameter(torch.ones(1, affinity, *size))
        layers: list[nn.Module] = []
        widths = [affinity] + [hidden] * depth
        for before, after in pairwise(widths):
            convolution = nn.Conv2d(before, after, 3, padding=1, padding_mode="replicate", bias=False)
            layers += [convolution, nn.GroupNorm(1, after), nn.ReLU()]
        last = nn.Conv2d(widths[-1], dim * kernel_size**2, 3, padding=1, padding_mode="replicate")
        self.generate = nn.Sequential(*layers, last)
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def kernels(self) -> Tensor:
        """Kernels of all places, W = B(A).

        Returns:
            (C, k², H, W).
        """
        generated: Tensor = self.generate(self.affinity)
        return generated.view(self.dim, -1, *self.size)

    def forward(self, x: Tensor) -> Tensor:
        _check(x, self.size, self.stride)
        out = variant_conv(x, self.kernels(), stride=self.stride)
        return out if self.bias is None else out + self.bias[:, None, None]


class CachedTVConv(nn.Module):
    """A TVConv whose kernels are computed: (B, C, stride·H, stride·W) to (B, C, H, W).

    Args:
        layer: trained layer; it is not changed.
    """

    kernels: Tensor
    bias: Tensor | None

    def __init__(self, layer: TVConv) -> None:
        super().__init__()
        self.size, self.stride = layer.size, layer.stride
        self.register_buffer("kernels", layer.kernels().detach().clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        _check(x, self.size, self.stride)
        out = variant_conv(x, self.kernels, stride=self.stride)
        return out if self.bias is None else out + self.bias[:, None, None]


@torch.no_grad()
def cache_kernels_(model: nn.Module) -> nn.Module:
    """Compute the kernels of every TVConv below a network once, in place.

    Args:
        model: trained network that holds such layers.

    Returns:
        The network.

    Raises:
        ValueError: no such layer.
    """
    found = [(name, layer) for name, layer in model.named_modules() if name and isinstance(layer, TVConv)]
    if not found:
        raise ValueError(f"cache_kernels_ takes a network that holds a TVConv, got {type(model).__name__} without one")
    for name, layer in found:
        model.set_submodule(name, CachedTVConv(layer))
    return model


@torch.no_grad()
def stand_in(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A TVConv in the place of a depthwise convolution; it starts with that kernel at every place.

    Args:
        layer: depthwise convolution that pads half a kernel of zeros.
        shape: shape of its input, (B, C, H, W).

    Returns:
        The stand-in, for inputs of this height and width.

    Raises:
        ValueError: another layer.
    """
    if not isinstance(layer, nn.Conv2d) or not layer.groups == layer.in_channels == layer.out_channels:
        raise ValueError(f"tvconv stands in for a depthwise convolution, got {layer}")
    (k, k2), (stride, stride2) = layer.kernel_size, layer.stride
    plain = layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    if k != k2 or k % 2 == 0 or stride != stride2 or layer.padding not in ((k // 2, k // 2), "same") or not plain:
        raise ValueError(f"tvconv needs a square, odd kernel, padded by half of it with zeros, got {layer}")
    size = -(-shape[-2] // stride), -(-shape[-1] // stride)
    made = TVConv(layer.in_channels, size, kernel_size=k, stride=stride, bias=layer.bias is not None)
    last: Any = made.generate[-1]
    last.weight.zero_()
    last.bias.copy_(layer.weight.flatten())
    if made.bias is not None and layer.bias is not None:
        made.bias.copy_(layer.bias)
    return made.to(layer.weight)


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, kernels = (torch.randn(shape, generator=generator) for shape in ((2, 3, 5, 7), (3, 9, 3, 4)))
    return {"x": x, "kernels": kernels}


METHOD = Method(
    id=48,
    name="TVConv",
    kind="operator",
    summary="A depthwise convolution whose kernel differs from place to place but not from picture to picture.",
    paper=Paper(
        "TVConv: Efficient Translation Variant Convolution for Layout-aware Visual Processing",
        "J. Chen et al.",
        2022,
        "arXiv:2203.10489",
    ),
    cases={
        "at_stride_two": Operator(partial(variant_conv, stride=2), partial(variant_conv_reference, stride=2), _inputs)
    },
)
