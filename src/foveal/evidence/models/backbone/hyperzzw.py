"""Evidence for HyperZ·Z·W: the loop over samples, and Terminator on digits read pixel by pixel.

The rival is a residual convolutional network for sequences with as many parameters: a stem and three blocks of two
convolutions with nine taps, the second and third of stride 2. Both see the same batches in the same order (see
`foveal.evidence.tasks.pixel_sequences` for the data).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.evidence.tasks.pixel_sequences import LENGTH, NEEDS, sequences
from foveal.measure.cost import count_parameters
from foveal.models.backbone.hyperzzw import Terminator, hyperzzw_global, hyperzzw_local, hyperzzw_reference
from foveal.record import bound, equal, kept

STEPS, WINDOW = 300, 20
WIDTH, TAPS = 18, 9


class _Residual(nn.Module):
    """norm, gelu and a convolution twice, and a shortcut: (B, C, L) to (B, C', L / stride)."""

    def __init__(self, dim: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm1d(dim), nn.BatchNorm1d(out_channels)
        self.conv1 = nn.Conv1d(dim, out_channels, TAPS, stride, TAPS // 2)
        self.conv2 = nn.Conv1d(out_channels, out_channels, TAPS, padding=TAPS // 2)
        self.shortcut = nn.Conv1d(dim, out_channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.gelu(self.norm2(self.conv1(F.gelu(self.norm1(x))))))
        return self.shortcut(x) + out


class ResidualNet(nn.Module):
    """The rival: (B, 1, L) to (B, 10).

    Args:
        dim: channels of the first stage.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, dim, TAPS, padding=TAPS // 2)
        self.stages = nn.Sequential(_Residual(dim, dim, 1), _Residual(dim, 2 * dim, 2), _Residual(2 * dim, 2 * dim, 2))
        self.norm, self.head = nn.BatchNorm1d(2 * dim), nn.Linear(2 * dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: sequences, (B, 1, L).

        Returns:
            Logits, (B, 10).
        """
        return self.head(F.gelu(self.norm(self.stages(self.stem(x)))).mean(2))


OURS = partial(
    Terminator, (8, 3, 2), data_dim=1, grid_size=LENGTH, groups=8, hidden=16, omega_0=3.0, in_channels=1, num_classes=10
)
RIVAL = partial(ResidualNet, WIDTH)


@cached(maxsize=8)
def _trained(build: Any, seed: int) -> tuple[nn.Module, list[float]]:
    """The network and its losses, step by step."""
    inputs, labels = sequences("train")
    losses: list[float] = []

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from torch's seeded generator
        rows = torch.randint(len(labels), (64,), generator=draw)
        return inputs[rows], labels[rows]

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        value = F.cross_entropy(model(pair[0]), pair[1])
        losses.append(value.item())
        return value

    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return short_run(build(), batches, loss, steps=STEPS, lr=5e-3, betas=(0.9, 0.98), clip=1.0), losses


@cached(maxsize=8)
def _accuracy(build: Any, seed: int) -> float:
    return cifar10.accuracy(_trained(build, seed)[0], sequences("test"), batch=500)


def highest_rise(losses: list[float]) -> float:
    """How far the mean loss of some steps is above the lowest such mean before.

    Args:
        losses: of each step.

    Returns:
        The largest rise between windows of 20 steps; infinite if a loss is not finite.
    """
    if not all(map(math.isfinite, losses)):
        return math.inf
    means = [sum(losses[i : i + WINDOW]) / len(losses[i : i + WINDOW]) for i in range(0, len(losses), WINDOW)]
    return max(mean - min(means[: i + 1]) for i, mean in enumerate(means))


def _steadiness(seed: int) -> float:
    return -highest_rise(_trained(OURS, seed)[1])


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _operator(sizes: tuple[int, ...], taps: tuple[int, ...], *, around: bool, loop: bool) -> Tensor:
    given = _drawn(2, *taps), _drawn(3, 2, *taps, seed=1), _drawn(3, 2, *sizes, seed=2)
    if loop:
        return hyperzzw_reference(*given, around=around)
    return (hyperzzw_global if around else hyperzzw_local)(*given)


WORDS: dict[str, Any] = {
    "data": f"MNIST at 14×14 as sequences of 196, {STEPS} steps of 64, 10,000 test digits",
    "needs": NEEDS,
}
CLAIMS = (
    *(
        equal(
            f"The {'global' if around else 'local'} operator on {what} is a loop over samples with their kernels.",
            ours=partial(_operator, sizes, taps, around=around, loop=False),
            theirs=partial(_operator, sizes, taps, around=around, loop=True),
            tolerance=1e-4,
            clause=1,
        )
        for around, what, sizes, taps in (
            (True, "sequences", (11,), (11,)),
            (True, "pictures", (4, 3), (4, 3)),
            (False, "sequences", (10,), (5,)),
            (False, "pictures", (4, 5), (3, 3)),
        )
    ),
    kept(
        "While Terminator trains, no twenty steps have a mean loss of 0.3 above the lowest before.",
        paper="stable without residuals",
        quality=_steadiness,
        at_least=-0.3,
        unit="nats",
        clause=2,
        **WORDS,
    ),
    kept(
        "It gets nine of ten digits right.",
        paper="superior on pixel-level benchmarks, sequences among them",
        quality=lambda seed: _accuracy(OURS, seed),
        at_least=90.0,
        unit="%",
        clause=2,
        **WORDS,
    ),
    kept(
        "It is not below a residual network with as many parameters, after the same steps.",
        paper="superior with fewer parameters",
        quality=lambda seed: _accuracy(OURS, seed) - _accuracy(RIVAL, seed),
        at_least=0.0,
        unit="points",
        clause=3,
        **WORDS,
    ),
    bound(
        "Their parameters are equal in number to 5 %.",
        paper="parameter-matched",
        value=lambda: count_parameters(OURS()) / count_parameters(RIVAL()),
        at_least=0.95,
        at_most=1.05,
        clause=3,
    ),
)
