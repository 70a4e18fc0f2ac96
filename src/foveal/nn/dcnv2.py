"""DCNv2: deformable convolution whose taps are moved and also weighted, by what a side convolution sees.

*Source*: X. Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019 (arXiv:1811.11168),
sections 3.1 and 3.2. A side convolution of the same kernel, stride and dilation predicts 3K numbers for a place p and
each of G groups of channels, 2K offsets Δ and, through a sigmoid, K factors m in (0, 1):

    Δ, m = side(x), Δ: (B, 2·G·K, H', W'), m: (B, G·K, H', W')
    y(p) = Σ_k w_k · x(p·s − pad + k·d + Δ_k(p)) · m_k(p)                K = kh·kw taps

The side convolution starts at zero: Δ = 0 and m = 1/2, half of an ordinary convolution. It learns at 0.1 of the
network's rate (`learning_rates`). Every 3×3 convolution of a network's last stages is replaced (`dcnv2_`), in the paper
those of conv3 to conv5 of a ResNet.

*Differs from the paper*: modulated RoI pooling (equation 2) and the mimicking of R-CNN's features (section 3.3), which
need a detector, are left out.

*Provenance*: written from the paper; the convolution itself is `foveal.ops.deform_conv`, which reads the picture as
torchvision's operator does, to 2e-7 of the largest output or gradient. The order of the 3K channels, all offsets before
all factors, is that of the authors' layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.ops.deform_conv import deform_conv2d
from foveal.record import Method, Paper

__all__ = ["DCNv2", "dcnv2_", "learning_rates", "modulated_conv", "modulated_conv_reference"]


def modulated_conv(
    x: Tensor,
    side: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Deformable convolution with moved and weighted taps.

    Args:
        x: input, (B, C, H, W).
        side: what the side convolution predicts, (B, 3·G·K, H', W'): 2·G·K offsets in pixels, vertical before
            horizontal for each tap, then G·K factors before their sigmoid.
        weight: weight, (O, C/groups, kh, kw).
        bias: bias, (O,), or None.
        stride: step of the kernel, in pixels.
        padding: width of the border of zeros, in pixels.
        dilation: distance of the taps, in pixels.
        backend: "auto", or one of the names of `foveal.ops.deform_conv.explain`.

    Returns:
        Output, (B, O, H', W').

    Raises:
        ValueError: channels of `side` that are not three for each tap.
    """
    count = weight.shape[-2] * weight.shape[-1]
    if side.shape[1] % (3 * count):
        raise ValueError(
            f"side must hold 3·{count} channels for each group, two offsets and a factor for each tap, got "
            f"{side.shape[1]}"
        )
    offset, factor = side.split([side.shape[1] // 3 * 2, side.shape[1] // 3], 1)
    words: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "backend": backend}
    return deform_conv2d(x, offset, weight, bias, mask=factor.sigmoid(), **words)


def modulated_conv_reference(
    x: Tensor, side: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """The same as a sum over the pixels of the picture: each has the share max(0, 1 − |Δy|)·max(0, 1 − |Δx|) of a read.

    Args:
        x: input, (B, C, H, W).
        side: (B, 3·K, H', W'), one group.
        weight: weight, (O, C, kh, kw).
        bias: bias, (O,), or None.
        stride: step of the kernel, in pixels.
        padding: width of the border of zeros, in pixels.

    Returns:
        Output, (B, O, H', W').
    """
    height, width = x.shape[-2:]
    down, across = side.shape[-2:]
    tall, wide = weight.shape[-2:]
    y = x.new_zeros(())
    for k in range(tall * wide):
        row = torch.arange(down).to(x)[:, None] * stride - padding + k // wide + side[:, 2 * k]
        column = torch.arange(across).to(x) * stride - padding + k % wide + side[:, 2 * k + 1]
        # (B, H', W', H) and (B, H', W', W)
        of_rows = (1 - (row[..., None] - torch.arange(height).to(x)).abs()).clamp(min=0)
        of_columns = (1 - (column[..., None] - torch.arange(width).to(x)).abs()).clamp(min=0)
        read = torch.einsum("bchw,bijh,bijw->bcij", x, of_rows, of_columns)
        read = read * torch.sigmoid(side[:, 2 * tall * wide + k])[:, None]
        y = y + torch.einsum("oc,bcij->boij", weight[:, :, k // wide, k % wide], read)
    return y if bias is None else y + bias[:, None, None]


class DCNv2(nn.Module):
    """Modulated deformable convolution: (B, C, H, W) to (B, C', H', W').

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: side of the kernel, odd.
        stride: step of the kernel, in pixels.
        dilation: distance of the taps, in pixels; the border of zeros keeps the size at stride 1.
        groups: groups of the weight.
        offset_groups: G, groups of channels with offsets and factors of their own.
        bias: whether the layer has one.

    Raises:
        ValueError: an even kernel, or groups of offsets that do not divide C.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        offset_groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        if in_channels % offset_groups:
            raise ValueError(f"offset_groups must divide the {in_channels} channels, got {offset_groups}")
        self.stride, self.padding, self.dilation = stride, kernel_size // 2 * dilation, dilation
        words: dict[str, Any] = {"stride": stride, "padding": self.padding, "dilation": dilation}
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, groups=groups, bias=bias, **words)
        self.side = nn.Conv2d(in_channels, 3 * offset_groups * kernel_size**2, kernel_size, **words)
        for parameter in self.side.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return modulated_conv(
            x,
            self.side(x),
            self.conv.weight,
            self.conv.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )


def learning_rates(model: nn.Module, lr: float, *, factor: float = 0.1) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser, in which side convolutions learn more slowly.

    Args:
        model: network that holds DCNv2 layers.
        lr: learning rate of the network.
        factor: learning rate of the side convolutions, as a share of it.

    Returns:
        Two groups: all other parameters, and those of the side convolutions.

    Raises:
        ValueError: no such layer.
    """
    slow = [p for layer in model.modules() if isinstance(layer, DCNv2) for p in layer.side.parameters()]
    if not slow:
        raise ValueError(f"learning_rates takes a network that holds a DCNv2, got {type(model).__name__} without one")
    others = [p for p in model.parameters() if not any(p is side for side in slow)]
    return [{"params": others, "lr": lr}, {"params": slow, "lr": factor * lr}]


def _fits(layer: nn.Module) -> bool:
    """Whether a layer is a 3×3 convolution that a DCNv2 can replace."""
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (3, 3) or layer.padding_mode != "zeros":
        return False
    return (
        layer.stride in ((1, 1), (2, 2)) and layer.dilation[0] == layer.dilation[1] and layer.padding == layer.dilation
    )


def dcnv2_(model: nn.Module, stages: tuple[str, ...], *, offset_groups: int = 1) -> nn.Module:
    """Put a DCNv2 in the place of every 3×3 convolution of some stages; it keeps its weights.

    Args:
        model: network, changed in place.
        stages: names of its modules, such as ("layer2", "layer3", "layer4") of a ResNet, the paper's choice.
        offset_groups: G; it must divide the channels of each.

    Returns:
        The network.

    Raises:
        ValueError: a stage without such a convolution.
    """
    inside = {id(m) for layer in model.modules() if isinstance(layer, DCNv2) for m in layer.modules()}
    for stage in stages:
        found = [
            (f"{stage}.{name}" if name else stage, layer)
            for name, layer in model.get_submodule(stage).named_modules()
            if _fits(layer) and id(layer) not in inside
        ]
        if not found:
            raise ValueError(f"dcnv2_ replaces 3×3 convolutions padded to keep their size, {stage!r} holds none")
        for name, layer in found:
            made = DCNv2(
                layer.in_channels,
                layer.out_channels,
                stride=layer.stride[0],
                dilation=layer.dilation[0],
                groups=layer.groups,
                offset_groups=offset_groups,
                bias=layer.bias is not None,
            ).to(layer.weight)
            made.conv = layer
            model.set_submodule(name, made.train(layer.training))
    return model


def _inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, 3, 5, 7), "side": (2, 27, 3, 4), "weight": (4, 3, 3, 3), "bias": (4,)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**drawn, "stride": 2, "padding": 1}


METHOD = Method(
    id=249,
    name="DCNv2",
    kind="operator",
    summary="Deformable convolution whose taps are moved and weighted by what a side convolution predicts.",
    paper=Paper("Deformable ConvNets v2: More Deformable, Better Results", "X. Zhu et al.", 2019, "arXiv:1811.11168"),
    cases={"at_stride_two": Operator(modulated_conv, modulated_conv_reference, _inputs)},
)
