"""One step of back-projection: reduce the enlarged picture, and add the enlarged difference from the small one.

*Source*: M. Irani, S. Peleg, "Improving resolution by image registration", CVGIP: Graphical Models and Image
Processing 53(3), 1991; with MATLAB's bicubic resizing, which uses R. Keys' kernel, as in `foveal.images.resize`.

    y' = y + enlarge(x - reduce(y))        x: small picture, y: the network's output for it

Implemented for one channel and in phases: the s×s output pixels of one input pixel are s² channels, so both resizes are
ordinary convolutions over 5×5 input pixels, which can be exported as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.images.resize import cubic

__all__ = ["REACH", "BackProjection", "back_projection", "bicubic_kernel", "reducing_kernel"]

REACH = 2  # radius of both kernels, in small pixels


def bicubic_kernel(scale: int, kernel_size: int = 5) -> Tensor:
    """Bicubic upsampling by `scale` as a convolution to s² phases.

    Args:
        scale: s.
        kernel_size: k, odd; 5 covers all taps of every phase.

    Returns:
        Weight, (s², k, k): phase i·s + j gives the pixel at row i, column j of the s×s block. Each phase sums to 1.
    """
    with torch.device("cpu"):  # real values are needed even if the network is built on the "meta" device
        offset = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
        phase = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
        taps = torch.from_numpy(cubic((phase[:, None] - offset).numpy()))  # (s, k)
        weight = torch.einsum("iy,jx->ijyx", taps, taps).reshape(scale * scale, kernel_size, kernel_size)
    return (weight / weight.sum((1, 2), keepdim=True)).float().to(torch.get_default_device())


def reducing_kernel(scale: int) -> Tensor:
    """Antialiased bicubic downsampling by `scale`, as a convolution from s² phases to one small picture.

    Args:
        scale: s, 2 to 4.

    Returns:
        Weight, (s², 5, 5), with the phases in the order of `bicubic_kernel`; it sums to 1.
    """
    with torch.device("cpu"):  # as above
        block = torch.arange(-REACH, REACH + 1, dtype=torch.float64)[:, None] * scale
        distance = (block + torch.arange(scale, dtype=torch.float64) - (scale - 1) / 2) / scale  # in small pixels
        taps = torch.from_numpy(cubic(distance.numpy()))  # (5, s)
        taps /= taps.sum()
        weight = torch.einsum("yi,xj->ijyx", taps, taps).reshape(scale * scale, len(block), len(block))
    return weight.float().to(torch.get_default_device())


def back_projection(made: Tensor, low: Tensor) -> Tensor:
    """The correction that one step adds. Both pictures are padded by replicating their borders.

    Args:
        made: the enlarged picture, in phases, (B, s², H, W).
        low: the small picture, (B, 1, H, W).

    Returns:
        (B, s², H, W).
    """
    scale, around = round(made.shape[1] ** 0.5), [REACH] * 4
    reduced = F.conv2d(F.pad(made, around, mode="replicate"), reducing_kernel(scale)[None].to(made))
    lacking = F.pad(low - reduced, around, mode="replicate")
    return F.conv2d(lacking, bicubic_kernel(scale)[:, None].to(made))


class BackProjection(nn.Module):
    """The step without padding, for detail that is added to a linear upsampler's output, as three plain convolutions.

    With u the upsampler, d the detail, and y the mixture of the small picture's colours that d refines, the residual is

        y - reduce(u y + d) = (1 - reduce u) y - reduce(d),

    so u is folded into the one kernel that reads the picture.

    Args:
        upsampler: u, kernel from one colour to its phases, (s², k, k), k odd.
        colours: share of each colour in y, (C,).
    """

    small: Tensor
    reduce: Tensor
    enlarge: Tensor

    def __init__(self, upsampler: Tensor, colours: Tensor) -> None:
        super().__init__()
        scale = round(len(upsampler) ** 0.5)
        reducing, enlarging = (kernel(scale).to(upsampler) for kernel in (reducing_kernel, bicubic_kernel))
        lacking = -F.conv_transpose2d(reducing[None], upsampler[:, None])  # (1, 1, k + 4, k + 4)
        lacking[..., lacking.shape[2] // 2, lacking.shape[3] // 2] += 1
        self.register_buffer("small", lacking * colours.to(upsampler).view(-1, 1, 1))
        self.register_buffer("reduce", -reducing[None])
        self.register_buffer("enlarge", enlarging[:, None])

    def forward(self, detail: Tensor, low: Tensor) -> Tensor:
        """The detail after the step.

        Args:
            detail: d, (B, s², H + 8, W + 8).
            low: the small picture, (B, C, H + 8 + 2·(k // 2), W + 8 + 2·(k // 2)).

        Returns:
            (B, s², H, W).
        """
        m = 2 * REACH
        lacking = F.conv2d(low, self.small) + F.conv2d(detail, self.reduce)
        return detail[..., m:-m, m:-m] + F.conv2d(lacking, self.enlarge)
