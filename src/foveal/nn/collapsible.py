"""A convolution trained as two and run as one.

Source: K. Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022
(arXiv:2103.09404), section 3: a k×k convolution to many channels followed by a 1×1 convolution back, with nothing
between them, is one k×k convolution; if it is multiplied out before the forward pass, training also has that cost.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CollapsibleConv2d", "identity_kernel"]


def identity_kernel(channels: int, kernel_size: int, *, like: Tensor | None = None) -> Tensor:
    """The identity as a convolution kernel.

    Args:
        channels: C, number of input and output channels.
        kernel_size: k, odd.
        like: tensor whose dtype and device to use.

    Returns:
        Weight, (C, C, k, k): 1 at the centre of each channel's own plane.
    """
    weight = torch.zeros(channels, channels, kernel_size, kernel_size)
    weight[range(channels), range(channels), kernel_size // 2, kernel_size // 2] = 1
    return weight if like is None else weight.to(like)


class CollapsibleConv2d(nn.Module):
    """k×k convolution, (B, C, H, W) to (B, C', H, W), whose weight is the product of two.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: k, odd.
        expand: number of channels between the two convolutions, p in the paper (256 there); 0 trains the k×k kernel
            itself, which suits optimisers that treat a kernel as a whole (Muon).
        residual: whether to add the input to the output, folded into the kernel; needs C = C'.
        bias: whether each output channel has a bias.
        padding: number of zeros added on each side; None keeps H and W.

    Raises:
        ValueError: an even kernel, or `residual` with C different from C'.
    """

    identity: Tensor | None
    narrow: nn.Parameter  # None if `expand` is 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        expand: int = 256,
        residual: bool = False,
        bias: bool = True,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if residual and in_channels != out_channels:
            raise ValueError(f"residual needs equal channels, got {in_channels} in and {out_channels} out")
        self.padding = kernel_size // 2 if padding is None else padding
        # (p, C, k, k) and (C', p), or (C', C, k, k) alone
        self.widen = nn.Parameter(torch.empty(expand or out_channels, in_channels, kernel_size, kernel_size))
        self.register_parameter("narrow", nn.Parameter(torch.empty(out_channels, expand)) if expand else None)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        # The variances of the two kernels multiply to that of a He-initialised k×k convolution.
        gain, fan_in = 2**0.5 * (0.3 if residual else 1.0), in_channels * kernel_size**2
        nn.init.normal_(self.widen, std=fan_in**-0.5 * (1 if expand else gain))
        if self.narrow is not None:
            nn.init.normal_(self.narrow, std=expand**-0.5 * gain)
        self.register_buffer(
            "identity", identity_kernel(in_channels, kernel_size) if residual else None, persistent=False
        )

    @property
    def drawn(self) -> nn.Parameter:
        """The randomly initialised parameter, which sets the scale of the collapsed kernel."""
        return self.widen if self.narrow is None else self.narrow

    def weight(self) -> Tensor:
        """The collapsed kernel, (C', C, k, k)."""
        weight: Tensor = self.widen
        if self.narrow is not None:
            weight = (self.narrow @ weight.flatten(1)).view(-1, *weight.shape[1:])
        return weight if self.identity is None else weight + self.identity

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias, padding=self.padding)

    def expanded(self, x: Tensor) -> Tensor:
        """The same map without collapsing, as two convolutions and the added input; `forward` must equal it.

        Args:
            x: features, (B, C, H, W).

        Returns:
            (B, C', H, W), or smaller if `padding` does not keep H and W.
        """
        narrow = torch.eye(len(self.widen)).to(x) if self.narrow is None else self.narrow
        out = F.conv2d(F.conv2d(x, self.widen, padding=self.padding), narrow[..., None, None], self.bias)
        if self.identity is None:
            return out
        cut = self.widen.shape[-1] // 2 - self.padding
        if cut < 0:
            return out + F.pad(x, (-cut, -cut, -cut, -cut))
        return out + x[..., cut : x.shape[-2] - cut, cut : x.shape[-1] - cut]

    @torch.no_grad()
    def collapse(self) -> nn.Conv2d:
        """The same map as one plain convolution."""
        weight = self.weight()
        out_channels, in_channels, kernel_size, _ = weight.shape
        bias = self.bias is not None
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=self.padding, bias=bias).to(weight)
        conv.weight.copy_(weight)
        if self.bias is not None:
            assert conv.bias is not None
            conv.bias.copy_(self.bias)
        return conv
