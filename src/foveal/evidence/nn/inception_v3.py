"""Evidence for Inception-v3: counts of timm's network, ratios of factorised kernels, label smoothing, the zoo trial."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import Tensor, nn

from foveal.evidence.tasks.zoo import Zoo, widths
from foveal.measure.cost import count_macs
from foveal.nn.inception_v3 import (
    Inception,
    composed_kernel,
    factorised_conv,
    factors,
    multiply_adds,
    smoothed_cross_entropy,
)
from foveal.record import equal, macs, params, smaller

inception_v3 = partial(timm.create_model, "inception_v3")  # without the auxiliary head


def _chain(channels: tuple[int, ...], kernels: tuple[tuple[int, int], ...]) -> nn.Sequential:
    return nn.Sequential(
        *(ConvNormAct(channels[i], channels[i + 1], kernel) for i, kernel in enumerate(kernels))  # type: ignore[arg-type]
    )


def _ratio(size: int) -> Tensor:
    """Counted multiply-adds of two factors over those of the square kernel, 64 channels."""
    counts = [
        count_macs(_chain((64,) * (len(kernels) + 1), kernels), (1, 64, 17, 17))
        for kernels in (factors(size), ((size, size),))
    ]
    return torch.tensor(counts[0] / counts[1])


def _of_timm(*, predicted: bool) -> Tensor:
    """What a factorised branch of timm's takes over a square kernel: (5, 17×17 blocks and 8×8 blocks)."""
    network: Any = inception_v3()
    found = []
    for name in ("b", "c", "d", "e"):
        block = getattr(network, f"Mixed_6{name}")
        branch = nn.Sequential(block.branch7x7_2, block.branch7x7_3)
        inner = block.branch7x7_1.conv.out_channels
        square = (inner, 192), ((7, 7),)
        factored = (inner, inner, 192), factors(7)
        if predicted:
            found.append(multiply_adds(*factored) / multiply_adds(*square))
        else:
            shape = (1, inner, 17, 17)
            found.append(count_macs(branch, shape) / count_macs(_chain(*square), shape))
    return torch.tensor(found)


def _losses(*, ours: bool, backward: bool = False) -> Tensor:
    torch.manual_seed(0)
    logits, labels = (4 * torch.randn(37, 11)).requires_grad_(), torch.randint(11, (37,))
    losses = [
        smoothed_cross_entropy(logits, labels, smoothing=eps)
        if ours
        else F.cross_entropy(logits, labels, label_smoothing=eps)
        for eps in (0.0, 0.1, 0.7, 1.0)
    ]
    if not backward:
        return torch.stack(losses).detach()
    return torch.cat([torch.autograd.grad(loss, logits)[0] for loss in losses])


def _linear(*, composed: bool) -> Tensor:
    """A row and a column without a ReLU between them, or their one kernel."""
    torch.manual_seed(0)
    x, first, second = torch.randn(2, 3, 9, 12), torch.randn(4, 3, 1, 7), torch.randn(5, 4, 7, 1)
    if composed:
        return torch.conv2d(x, composed_kernel(first, second), padding=3)
    return factorised_conv(x, first, second, relu=False)


class _Net(nn.Module):
    """Blocks at 16×16 pixels with kernels of 5 and 7, at 8×8 with kernels of 3, (B, 3, 32, 32) to (B, 10)."""

    def __init__(self, dim: int, *, factorised: bool) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 2 * dim, 3, 2)
        self.first = Inception(2 * dim, dim, kernel_size=5, factorised=factorised)
        self.second = nn.Sequential(*(Inception(4 * dim, dim, kernel_size=7, factorised=factorised) for _ in range(2)))
        # the grid is reduced by a convolution and by pooling, side by side, as in the paper
        self.down = ConvNormAct(4 * dim, 4 * dim, 3, 2)
        self.third = Inception(8 * dim, 2 * dim, kernel_size=3, factorised=factorised)
        self.head = nn.Linear(8 * dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.stem(x)))
        x = self.third(torch.cat([self.down(x), F.max_pool2d(x, 3, 2, 1)], 1))
        return self.head(x.mean((2, 3)))


def small() -> nn.Module:
    """The network of the trial.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    return _Net(32, factorised=True)


def unfactorised(dim: int) -> nn.Module:
    """Its twin with square kernels.

    Args:
        dim: channels of each branch at 16×16 pixels; the network has 32.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    return _Net(dim, factorised=False)


ZOO = Zoo(small, widths(unfactorised, range(18, 37)), "its unfactorised twin", minutes=1.5)

CLAIMS = (
    params("timm's Inception-v3.", paper="under 25 M", model=inception_v3, expect="23.83 M", clause=1),
    macs(
        "timm's Inception-v3 at 299×299, where the abstract says 5 billion.",
        paper="5 billion",
        model=inception_v3,
        shape=(1, 3, 299, 299),
        expect="5.71 G",
        clause=1,
    ),
    *(
        equal(
            f"Counted multiply-adds of {text} are {ratio} of those of {size}×{size}.",
            paper=paper,
            ours=partial(_ratio, size),
            theirs=partial(torch.tensor, value),
            tolerance=1e-6,
            clause=2,
        )
        for size, text, ratio, value, paper in (
            (5, "3×3 and 3×3", "18/25", 18 / 25, "28 % saved"),
            (3, "1×3 and 3×1", "2/3", 2 / 3, "33 % saved"),
            (7, "1×7 and 7×1", "2/7", 2 / 7, "2/n"),
        )
    ),
    equal(
        "In timm's blocks of 17×17 pixels, whose channels change, the ratio is the predicted one, too.",
        ours=partial(_of_timm, predicted=False),
        theirs=partial(_of_timm, predicted=True),
        tolerance=1e-6,
        clause=2,
    ),
    equal(
        "The loss with smoothed labels is torch's.",
        ours=partial(_losses, ours=True),
        theirs=partial(_losses, ours=False),
        tolerance=1e-6,
        clause=3,
    ),
    equal(
        "So are its gradients.",
        ours=partial(_losses, ours=True, backward=True),
        theirs=partial(_losses, ours=False, backward=True),
        tolerance=1e-6,
        clause=3,
    ),
    *ZOO.claims(clause=4),
    equal(
        "Without a ReLU between them, a row and a column are one 7×7 convolution, borders included.",
        ours=partial(_linear, composed=False),
        theirs=partial(_linear, composed=True),
        beyond="what is factorised",
    ),
    smaller(
        "The network of the trial takes little more than half the multiply-adds of its twin of equal width.",
        paper="cheaper at equal width",
        ours=lambda: float(count_macs(small(), (1, 3, 32, 32))),
        theirs=lambda: float(count_macs(unfactorised(32), (1, 3, 32, 32))),
        at_least=1.9,
        beyond="cost of a network",
    ),
)
