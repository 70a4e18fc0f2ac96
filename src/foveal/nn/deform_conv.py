"""A layer of deformable convolution, which predicts its own offsets, in place of a convolution of the same size."""

from __future__ import annotations

from torch import Tensor, nn

from foveal.ops.deform_conv import deform_conv2d

__all__ = ["DeformConv2d"]


class DeformConv2d(nn.Module):
    """Deformable convolution with predicted offsets: (B, C, H, W) to (B, C', H', W'), see `foveal.ops.deform_conv`.

    Offsets start as zeros, where the layer is an ordinary convolution. A depthwise layer mixes channels by a 1×1
    convolution before.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: side of the kernel, odd.
        stride: step of the kernel, in pixels.
        depthwise: whether each channel has its own kernel.
        square: whether taps only move apart, all at one rate.
        reach: furthest that a tap may move along an axis, in pixels; None for any distance.
        whole: whether offsets are rounded to pixels.
        bias: whether the layer has one.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        depthwise: bool = False,
        square: bool = False,
        reach: int | None = None,
        whole: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        self.stride, self.padding = stride, kernel_size // 2
        self.square, self.reach, self.whole = square, reach, whole
        self.mix = nn.Conv2d(in_channels, out_channels, 1, bias=False) if depthwise else nn.Identity()
        dim, groups = (out_channels, out_channels) if depthwise else (in_channels, 1)
        self.conv = nn.Conv2d(dim, out_channels, kernel_size, stride, self.padding, groups=groups, bias=bias)
        side = 1 if depthwise else 3  # of the kernel that predicts, as in the authors' depthwise and square layers
        self.offset = nn.Conv2d(dim, 1 if square else 2 * kernel_size**2, side, stride, side // 2)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x)
        return deform_conv2d(
            x,
            self.offset(x),
            self.conv.weight,
            self.conv.bias,
            stride=self.stride,
            padding=self.padding,
            square=self.square,
            reach=self.reach,
            whole=self.whole,
        )
