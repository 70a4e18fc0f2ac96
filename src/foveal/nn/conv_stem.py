"""How a picture becomes a map and a map a smaller one in MLLA and the networks that took its layout."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ConvStem", "halving"]


def _conv(inputs: int, outputs: int, kernel_size: int = 1, stride: int = 1, *, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if act else []))


class ConvStem(nn.Module):
    """Five convolutions with a shortcut around two, (B, in_channels, H, W) to (B, dim, ⌈H/4⌉, ⌈W/4⌉).

    Args:
        in_channels: of the picture.
        dim: channels of the map, even.
    """

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.first = _conv(in_channels, half, 3, 2)
        self.middle = nn.Sequential(_conv(half, half, 3), _conv(half, half, 3, act=False))
        self.last = nn.Sequential(_conv(half, 4 * dim, 3, 2), _conv(4 * dim, dim, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.middle(x))


def halving(in_channels: int, dim: int) -> nn.Sequential:
    """An inverted bottleneck with stride 2 in its depthwise convolution.

    Args:
        in_channels: C.
        dim: of the result; the bottleneck is four times as wide.

    Returns:
        (B, C, H, W) to (B, dim, ⌈H/2⌉, ⌈W/2⌉).
    """
    wide = 4 * dim
    return nn.Sequential(
        nn.Conv2d(in_channels, wide, 1),
        nn.ReLU(),
        nn.Conv2d(wide, wide, 3, 2, 1, groups=wide),
        nn.ReLU(),
        nn.Conv2d(wide, dim, 1),
        nn.BatchNorm2d(dim),
    )
