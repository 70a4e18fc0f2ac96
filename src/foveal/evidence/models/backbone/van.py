"""Evidence for VAN: counts, the reach and the time of its gate, and the zoo trial against attention in windows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveal.evidence.tasks.zoo import MixerNet, Zoo, widths
from foveal.evidence.timing import call
from foveal.models.backbone.van import LKA, LargeKernelAttention, lka_kernel, van_b0, van_b1, van_b2, van_b3
from foveal.nn.windows import WindowAttention
from foveal.record import bound, equal, faster, macs, params, smaller


class _DenseGate(nn.Module):
    """The gate with one 21×21 kernel per channel, (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise, self.pointwise = nn.Conv2d(dim, dim, 21, padding=10, groups=dim), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.pointwise(self.depthwise(x))


class _Windows(nn.Module):
    """The twin's operator: attention of two heads in windows of 4×4, (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = WindowAttention(dim, 2, (4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def windows(dim: int) -> MixerNet:
    """The twin: the second block of each stage shifts its windows.

    Args:
        dim: channels of the first stage, even.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network: Any = MixerNet(_Windows, dim)
    for stage in (network.stage1, network.stage2):
        stage[1].mixer.attention.shift = (2, 2)
    twin: MixerNet = network
    return twin


def _response() -> Tensor:
    """Where the gate of each pixel reads the picture: the gradient of the middle one of 31×31, in double precision."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, 31, 31, dtype=torch.float64, requires_grad=True)
    gate = LKA(8).double().gate(x)
    (gradient,) = torch.autograd.grad(gate[..., 15, 15].sum(), x)
    return gradient.abs().sum((0, 1))


def _spans() -> float:
    """Rows and columns from the first to the last that is not 0, by rows times columns."""
    rows, columns = (_response().sum(axis).nonzero().flatten() for axis in (1, 0))
    return float((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))


def _filled() -> float:
    return float((_response() > 0).sum())


def _gate(*, one_kernel: bool) -> Tensor:
    torch.manual_seed(0)
    gate, x = LKA(6), torch.randn(2, 6, 29, 31)
    kernels = [gate.small.weight.detach(), gate.large.weight.detach()]
    if one_kernel:
        return torch.conv2d(x, lka_kernel(*kernels), groups=6)
    return torch.conv2d(torch.conv2d(x, kernels[0], groups=6), kernels[1], dilation=3, groups=6)


ZOO = Zoo(
    partial(MixerNet, LargeKernelAttention, 40), widths(windows, range(36, 73, 2)), "the twin with windows", minutes=1.5
)

CLAIMS = (
    params("VAN-B0.", paper="4.1 M", model=van_b0, expect="4.1 M", clause=1),
    *(
        params(f"VAN-{name}.", paper=size, model=model, expect=size, beyond="sizes of the paper's networks")
        for name, model, size in (("B1", van_b1, "13.9 M"), ("B2", van_b2, "26.6 M"), ("B3", van_b3, "44.8 M"))
    ),
    *(
        macs(
            f"VAN-{name} at 224×224.",
            paper=cost,
            model=model,
            shape=(1, 3, 224, 224),
            expect=cost,
            beyond="cost of the paper's networks",
        )
        for name, model, cost in (
            ("B0", van_b0, "0.9 G"),
            ("B1", van_b1, "2.5 G"),
            ("B2", van_b2, "5.0 G"),
            ("B3", van_b3, "9.0 G"),
        )
    ),
    bound(
        "The gate of a pixel reads a square of exactly 23 pixels a side.",
        paper="5 + 3·6",
        value=_spans,
        at_least=23.0**2,
        at_most=23.0**2,
        unit="pixels in its bounding box",
        clause=2,
    ),
    bound(
        "No pixel of that square is left out.",
        paper="a small kernel fills the gaps of the dilated one",
        value=_filled,
        at_least=23.0**2,
        at_most=23.0**2,
        unit="pixels that it reads",
        clause=2,
    ),
    equal(
        "Away from the borders the two depthwise convolutions are one with a 23×23 kernel.",
        ours=lambda: _gate(one_kernel=False),
        theirs=lambda: _gate(one_kernel=True),
        beyond="a large kernel taken apart",
    ),
    smaller(
        "Its depthwise kernels have 74 weights per channel, a 21×21 one has 441.",
        paper="74 and 441",
        ours=lambda: float(LKA(1).small.weight.numel() + LKA(1).large.weight.numel()),
        theirs=lambda: float(_DenseGate(1).depthwise.weight.numel()),
        at_least=441 / 74,
        beyond="a sixth of the weights",
    ),
    faster(
        "The gate takes at most half the time of one with a dense 21×21 kernel, 64 channels of 56×56.",
        paper="less work",
        ours=call(partial(LKA, 64), 1, 64, 56, 56),
        theirs=call(partial(_DenseGate, 64), 1, 64, 56, 56),
        at_least=2.0,
        clause=3,
    ),
    *ZOO.claims(clause=4),
)
