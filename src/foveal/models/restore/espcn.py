"""ESPCN: convolutions at low resolution, then a sub-pixel rearrangement of channels into the large picture.

*Source*: W. Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
Neural Network", CVPR 2016 (arXiv:1609.05158), section 3 and equations 1 to 4; the transposed convolution it equals is
in the authors' note "Is the deconvolution layer the same as a convolutional layer?" (arXiv:1609.07009).

*Differs from the paper*: takes RGB by default (`in_channels=1` is the paper's luminance); the paper trains for days
with the squared error, our claims train for a minute with the absolute error.

*Provenance*: written from the paper; there is no authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

__all__ = ["ESPCN", "transposed_kernel"]


def transposed_kernel(weight: Tensor, *, scale: int) -> Tensor:
    """Rearrange a sub-pixel convolution's weight into that of the equivalent transposed convolution.

    Pixel s·y + i of the large picture depends on the low-resolution rows y + a - p. A transposed convolution of stride
    s and padding s·p adds row y + a - p there with its tap i + s·(k - 1 - a); columns likewise.

    Args:
        weight: weight of a same-padded k×k convolution followed by a pixel shuffle, (C'·s², C, k, k), k odd.
        scale: s.

    Returns:
        Weight for `conv_transpose2d` with stride s and padding s·(k // 2), (C, C', s·k, s·k).
    """
    out_channels, in_channels, k, _ = weight.shape
    phases = weight.view(out_channels // scale**2, scale, scale, in_channels, k, k).flip(4, 5)
    # (C', i, j, C, a, b) to (C, C', a, i, b, j)
    return phases.permute(3, 0, 4, 1, 5, 2).reshape(in_channels, -1, scale * k, scale * k)


class ESPCN(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s, at least 1.
        in_channels: C, number of input and output channels, 3 for RGB or 1 for luminance.

    Raises:
        ValueError: if the scale is below 1.
    """

    def __init__(self, scale: int = 3, *, in_channels: int = 3) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        self.scale = scale
        self.first = nn.Conv2d(in_channels, 64, 5, padding=2)
        self.second = nn.Conv2d(64, 32, 3, padding=1)
        self.last = nn.Conv2d(32, in_channels * scale**2, 3, padding=1)

    @property
    def margin(self) -> int:
        """Radius of the receptive field in input pixels."""
        return 4

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.second(x))
        # (B, C·s², H, W) to (B, C, s·H, s·W)
        return F.pixel_shuffle(self.last(x), self.scale)


METHOD = Method(
    id=63,
    name="ESPCN",
    kind="model",
    summary="Three convolutions on the small picture, then a pixel shuffle makes it large.",
    paper=Paper(
        "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network",
        "W. Shi et al.",
        2016,
        "arXiv:1609.05158",
    ),
    models={"espcn": ESPCN},
    cases={"espcn": {"scale": 2, "in_channels": 1}},
)
