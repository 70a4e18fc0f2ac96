"""Evidence for AdAdaGrad: its statistics, and three ways to spend the same pictures on a small CNN.

Batches of 32, batches that grow from 32 to 512, and batches of 512 see equally many pictures with AdaGrad at one rate.
How often the test comes was chosen with one seed on 2,000 training pictures that are not trained on.
"""

from __future__ import annotations

from functools import partial
from statistics import mean, stdev

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import STEPS, cached, rehearsing
from foveal.evidence.tasks.cifar10 import NEEDS, accuracy, pictures
from foveal.record import bound, equal, kept
from foveal.train.adadagrad import (
    AdAdaGrad,
    AdaGradNorm,
    inner_product_test,
    norm_test,
    per_sample_gradients,
)

PICTURES, EPOCHS = 4000, 20
SMALL, LARGE = 32, 512
RATE, ETA, EVERY = 0.01, 0.9, 70
SEEDS = 3
WAYS = {"small": (SMALL, SMALL), "growing": (SMALL, LARGE), "large": (LARGE, LARGE)}  # first and largest batch
DATA = f"{EPOCHS} epochs of {PICTURES:,} pictures of CIFAR-10, the first 2,000 test pictures; paired"
ALLOWED = 0.5  # η of the statistics
POINTS, TOY, LENGTH = 200, 4, 800  # terms of the sum that is minimised without pictures, first batch, steps


def network() -> nn.Module:
    """A CNN with group norms, so that pictures do not depend on each other: (B, 3, 32, 32) to (B, 10).

    Returns:
        The network, with drawn weights.
    """
    layers: list[nn.Module] = []
    for dim, out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(dim, out, 3, 2, 1, bias=False), nn.GroupNorm(4, out), nn.ReLU()]
        layers += [nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.GroupNorm(4, out), nn.ReLU()] if dim > 3 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@cached(maxsize=16)
def _reached(way: str, seed: int) -> tuple[float, int]:
    """Accuracy of the network trained in a way, percent, and its number of steps."""
    x, labels = pictures("train", limit=PICTURES)
    budget = EPOCHS * len(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network().train()
        first, largest = WAYS[way]
        optimizer = torch.optim.Adagrad(model.parameters(), RATE)
        ours = AdAdaGrad(model, F.cross_entropy, optimizer, batch=first, largest=largest, eta=ETA, every=EVERY)
        while budget > 0 and not (rehearsing() and ours.steps == STEPS):
            rows, flipped = torch.randint(len(x), (ours.batch,)), torch.rand(ours.batch, 1, 1, 1) < 0.5
            budget -= ours.batch
            ours.step(torch.where(flipped, x[rows].flip(-1), x[rows]), labels[rows])
    return accuracy(model.eval()), ours.steps


def _above(rival: str, seed: int) -> float:
    return _reached("growing", seed)[0] - _reached(rival, seed)[0]


def _fewer(seed: int) -> float:
    """Steps of the small batch over those of the growing one."""
    return _reached("small", seed)[1] / _reached("growing", seed)[1]


def _above_within_noise() -> float:
    """Mean of the accuracy over the small batch's, plus one standard deviation of that one's seeds."""
    return mean(_above("small", seed) for seed in range(SEEDS)) + stdev(
        _reached("small", seed)[0] for seed in range(SEEDS)
    )


def _drawn() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network(), torch.randn(24, 3, 32, 32), torch.arange(24) % 10


def _one_by_one() -> Tensor:
    """Gradients of each picture by a backward pass of its own, (B, P), in float64."""
    model, x, labels = _drawn()
    model, found = model.double(), []
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1].double()), labels[i : i + 1])
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(found)


def _brute(test: str) -> Tensor:
    """What the tests compute, by loops over pictures."""
    g = _one_by_one()
    whole, number = g.sum(0) / len(g), len(g)
    if test == "variance":
        return torch.stack([(row - whole) ** 2 for row in g]).sum(0) / (number - 1)
    if test == "norm":
        spread = torch.stack([(row - whole).square().sum() for row in g])
        return spread.sum()[None] / (number - 1) / (ALLOWED**2 * whole.square().sum())
    along = torch.stack([torch.dot(row, whole) for row in g])
    centre = torch.dot(whole, whole)
    return (along - centre).square().sum()[None] / (number - 1) / (ALLOWED**2 * centre**2)


def _ours(test: str) -> Tensor:
    g = per_sample_gradients(_drawn()[0], F.cross_entropy, *_drawn()[1:])
    if test == "variance":
        return g.var(0)
    if test == "norm":
        return torch.tensor([norm_test(g.var(0), g.mean(0), eta=ALLOWED)])
    return torch.tensor([inner_product_test(g, g.mean(0), eta=ALLOWED)])


def _parts_off(size: int = 4, *, draws: int = 200) -> float:
    """How far the variance by micro-batches is from that of pictures, mean over draws from one set, percent."""
    g = _one_by_one()
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(draws):
        rows = torch.randint(len(g), (8, size), generator=generator)
        found.append(float(size * g[rows].mean(1).var(0).sum()))
    true = float(g.var(0, correction=0).sum())
    return 100 * abs(mean(found) / true - 1)


def slope(*, grows: bool) -> float:
    """Exponent of the mean squared gradient against the number of steps, on a sum that is smooth and not convex.

    Args:
        grows: whether the batch grows.

    Returns:
        Slope of a line through logarithms, mean over the seeds.
    """
    counts = [LENGTH // 8, LENGTH // 4, LENGTH // 2, LENGTH]
    found = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(POINTS, 5, generator=generator, dtype=torch.float64)
        model = _Toy()
        optimizer = AdaGradNorm(model.parameters(), 1.0)
        ours = AdAdaGrad(
            model, _bounded, optimizer, batch=TOY, largest=POINTS * 20 if grows else TOY, eta=0.5, parts=2, samples=0
        )
        gradients = []
        for _ in range(LENGTH):
            whole = torch.autograd.grad(_bounded(model(centres), centres), model.weight)[0]
            gradients.append(float(whole.square().sum()))
            rows = torch.randint(POINTS, (ours.batch,), generator=generator)
            ours.step(centres[rows], centres[rows])
        means = [mean(gradients[:count]) for count in counts]
        found.append(float(np.polyfit(np.log(counts), np.log(means), 1)[0]))
    return mean(found)


class _Toy(nn.Module):
    """Distances of one point, which is learnt, from given ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((5,), 3.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.weight


def _bounded(distances: Tensor, _: Tensor) -> Tensor:
    squares = distances.square().sum(1)
    return (squares / (10 + squares)).mean()


CLAIMS = (
    *(
        equal(
            f"{said} equals the brute force over single pictures.",
            ours=partial(_ours, test),
            theirs=partial(_brute, test),
            tolerance=1e-5,
            clause=1,
        )
        for test, said in {
            "variance": "The variance of per-sample gradients, of each coordinate,",
            "norm": "The batch that the norm test asks for",
            "inner product": "The batch that the inner product test asks for",
        }.items()
    ),
    kept(
        f"Growing batches take at most half the steps of batches of {SMALL}.",
        paper="fewer steps",
        quality=_fewer,
        at_least=2.0,
        unit="times fewer",
        data=DATA,
        needs=NEEDS,
        clause=2,
    ),
    bound(
        f"Their accuracy is not below that of batches of {SMALL}, minus one standard deviation of its seeds.",
        paper="the same generalisation",
        value=_above_within_noise,
        at_least=0.0,
        unit="points above",
        needs=NEEDS,
        clause=2,
    ),
    kept(
        f"Their accuracy is above that of batches of {LARGE}.",
        paper="better than large batches",
        quality=partial(_above, "large"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=NEEDS,
        clause=3,
    ),
    bound(
        "The variance by micro-batches has the mean of that by pictures, within 5 %.",
        paper="per-sample variance",
        value=_parts_off,
        at_most=5.0,
        unit="% off",
        beyond="test statistic is right",
    ),
    bound(
        "On a smooth sum that is not convex, AdaGrad-Norm's mean squared gradient of K steps falls about as 1 / K.",
        paper="O(1 / K)",
        value=partial(slope, grows=True),
        at_most=-0.9,
        unit="exponent",
        beyond="AdaGradNorm converges with high probability",
    ),
)
