"""Inception-v3's factorised convolutions: two small kernels one after the other in the place of a large one.

*Source*: C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016 (arXiv:1512.00567),
sections 3 (factorisation) and 7 (label smoothing). For x: (B, C, H, W), a kernel K₁: (M, C, ·, ·) and a second one
K₂: (N, M, ·, ·)

    y = relu(K₂ * relu(K₁ * x))                  3×3 and 3×3 for 5×5; 1×n and n×1 for n×n

takes 9 + 9 in place of 25 multiply-adds for a pair of channels (M = C = N), and n + n in place of n². Without the inner
relu both are one convolution, away from the border for 5×5 and everywhere for n×n, whose kernels are sums of products:
row K₁[m, c] times column K₂[o, m], summed over m. A block runs branches of one and of two such convolutions beside a
1×1 convolution and a pooled one, and concatenates them. Labels are smoothed over K classes:

    loss = -Σ_k q(k) log p(k),   q = (1 - ε) [k = label] + ε / K

*Differs from the paper*: `Inception` has four branches of equal width, where each block of the network has widths of
its own.

*Provenance*: written from the paper. The network (`inception_v3`, 299×299 pixels) is timm's, used as it is; it keeps a
5×5 kernel in its first three blocks. The abstract says 5 billion multiply-adds; they are 5.71 without the auxiliary
head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Inception",
    "composed_kernel",
    "factorised_conv",
    "factorised_conv_reference",
    "factors",
    "multiply_adds",
    "smoothed_cross_entropy",
]

Size = tuple[int, int]


def factorised_conv(x: Tensor, first: Tensor, second: Tensor, *, relu: bool = True) -> Tensor:
    """Two convolutions of stride 1 that keep height and width.

    Args:
        x: (B, C, H, W); the border is padded with zeros before each.
        first: K₁, (M, C, i, j) with odd i and j.
        second: K₂, (N, M, k, l) with odd k and l.
        relu: whether a ReLU stands between the two.

    Returns:
        (B, N, H, W), before the last ReLU.
    """
    y = torch.conv2d(x, first, padding=(first.shape[2] // 2, first.shape[3] // 2))
    return torch.conv2d(y.relu() if relu else y, second, padding=(second.shape[2] // 2, second.shape[3] // 2))


def factorised_conv_reference(x: Tensor, first: Tensor, second: Tensor, *, relu: bool = True) -> Tensor:
    """The same tap by tap.

    Args:
        x: (B, C, H, W).
        first: (M, C, i, j).
        second: (N, M, k, l).
        relu: whether a ReLU stands between the two.

    Returns:
        (B, N, H, W).
    """
    height, width = x.shape[2:]
    for number, kernel in enumerate((first, second)):
        x = x.clamp(min=0) if number and relu else x
        down, right = (side // 2 for side in kernel.shape[2:])
        padded, total = F.pad(x, [right, right, down, down]), torch.zeros(())
        for i in range(kernel.shape[2]):
            for j in range(kernel.shape[3]):
                seen = padded[..., i : i + height, j : j + width]
                total = total + torch.einsum("nc,bchw->bnhw", kernel[:, :, i, j], seen)
        x = total
    return x


def composed_kernel(first: Tensor, second: Tensor) -> Tensor:
    """The one kernel that two make without a ReLU between them.

    Args:
        first: K₁, (M, C, i, j).
        second: K₂, (N, M, k, l).

    Returns:
        (N, C, i + k - 1, j + l - 1).
    """
    # K₂ slides over K₁ as over a map whose batch is C; a convolution of torch's is a correlation, so K₂ is turned round
    down, right = second.shape[2] - 1, second.shape[3] - 1
    return torch.conv2d(first.transpose(0, 1), second.flip(2, 3), padding=(down, right)).transpose(0, 1)


def factors(kernel_size: int) -> tuple[Size, Size]:
    """The two kernels in the place of a square one, as the network has them.

    Args:
        kernel_size: n, odd and at least 3.

    Returns:
        3×3 twice for 5, else 1×n and n×1.

    Raises:
        ValueError: another kernel.
    """
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and at least 3, got {kernel_size}; take 3, 5 or 7")
    return ((3, 3), (3, 3)) if kernel_size == 5 else ((1, kernel_size), (kernel_size, 1))


def multiply_adds(channels: Sequence[int], kernels: Sequence[Size]) -> int:
    """Multiply-adds that convolutions one after the other take for a pixel.

    Args:
        channels: of the input and after each of them.
        kernels: height and width of each.

    Returns:
        Their number; the ratio of two chains is what a factorisation saves.

    Raises:
        ValueError: numbers of channels and of kernels that do not match.
    """
    if len(channels) != len(kernels) + 1:
        raise ValueError(f"{len(kernels)} kernels have {len(kernels) + 1} numbers of channels, got {len(channels)}")
    return sum(channels[i] * channels[i + 1] * height * width for i, (height, width) in enumerate(kernels))


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with labels that are sure by 1 - ε only.

    Args:
        logits: (B, K).
        labels: classes, (B,).
        smoothing: ε, in [0, 1]; the paper takes 0.1.

    Returns:
        Mean over the batch, a scalar.

    Raises:
        ValueError: ε beyond its range.
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be in [0, 1], got {smoothing}; the paper takes 0.1")
    likely = logits.log_softmax(1)
    of_labels = likely.gather(1, labels[:, None])[:, 0]
    return -((1 - smoothing) * of_labels + smoothing * likely.mean(1)).mean()


class Inception(nn.Module):
    """Branches of one and of two convolutions, of none and of a pooled map, (B, C, H, W) to (B, 4·D, H, W).

    Args:
        in_channels: C.
        dim: D, channels of each branch.
        kernel_size: n, side of the kernels that are factorised: 3, 5 or 7.
        factorised: whether they are; otherwise they are square.
    """

    def __init__(self, in_channels: int, dim: int, *, kernel_size: int = 7, factorised: bool = True) -> None:
        super().__init__()
        kernels = factors(kernel_size) if factorised else ((kernel_size, kernel_size),)

        def branch(convolutions: int) -> nn.Sequential:
            large = [ConvNormAct(dim, dim, kernel) for _ in range(convolutions) for kernel in kernels]  # type: ignore[arg-type]
            return nn.Sequential(ConvNormAct(in_channels, dim, 1), *large)

        pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvNormAct(in_channels, dim, 1))
        self.branches = nn.ModuleList([branch(0), branch(1), branch(2), pooled])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _inputs(seed: int, first: Size, second: Size) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, 3, 6, 8), "first": (4, 3, *first), "second": (5, 4, *second)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


METHOD = Method(
    id=132,
    name="Inception-v3",
    kind="operator",
    summary="Large kernels become two small ones: 3×3 twice for 5×5, a row and a column for n×n.",
    paper=Paper(
        "Rethinking the Inception Architecture for Computer Vision", "C. Szegedy et al.", 2016, "arXiv:1512.00567"
    ),
    cases={
        "five_by_five": Operator(factorised_conv, factorised_conv_reference, lambda seed: _inputs(seed, *factors(5))),
        "seven_by_seven": Operator(factorised_conv, factorised_conv_reference, lambda seed: _inputs(seed, *factors(7))),
    },
)
