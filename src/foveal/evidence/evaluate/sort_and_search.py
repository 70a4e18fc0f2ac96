"""Evidence for Sort & Search: 120 small networks by 2,000 pictures of CIFAR-10, half of them to rank, half new.

The networks differ in kind (perceptron, convolutions), width, depth, resolution, number of training pictures and steps,
so that they are right on 15 to 60 % of the pictures. The rivals get as many samples, drawn at random: for each sample
what the majority of them was ("right" or "wrong"), for the accuracy their mean.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evaluate.sort_and_search import Ranking, rank, thresholds, thresholds_reference
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import cifar10
from foveal.record import equal, kept

MODELS, SAMPLES, SHARE = 120, 2000, 0.05
DATA = (
    f"{MODELS} networks trained for seconds on CIFAR-10, {SAMPLES} test pictures, 5 % of them evaluated; random splits"
)


def _network(rng: np.random.Generator) -> tuple[nn.Module, int]:
    """A network and the side of the pictures that it reads."""
    side, dim, depth = int(rng.choice([8, 16])), int(rng.choice([8, 16, 32])), int(rng.integers(1, 4))
    if rng.random() < 0.4:
        sizes = [3 * side * side, *[4 * dim] * (depth - 1), 10]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers[:-1]), side
    blocks: list[nn.Module] = []
    for i in range(depth):
        blocks += [nn.Conv2d(3 if i == 0 else dim, dim, 3, 2 if i < 2 else 1, 1), nn.BatchNorm2d(dim), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * dim, 10)), side


def _small(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="area")


@cached(maxsize=1)
def matrix() -> np.ndarray:
    """Which network is right on which picture.

    Returns:
        (M, N) of 0 and 1.
    """
    (x, y), (test_x, test_y) = cifar10.pictures("train"), cifar10.pictures("test", limit=SAMPLES)
    if rehearsing():
        test_x, test_y = test_x.repeat(8, 1, 1, 1), test_y.repeat(8)
    rows = []
    for seed in range(6 if rehearsing() else MODELS):
        rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, side = _network(rng)
        count, steps = int(min(len(y), rng.choice([500, 2000, 10000]))), int(rng.choice([30, 100, 300]))
        data = (_small(x[:count], side), y[:count])
        network = cifar10.train_classifier(
            lambda network=network: network,  # type: ignore[misc]
            steps=steps,
            seed=seed,
            batch=32,
            data=data,
        )
        with torch.inference_mode():
            rows.append((network(_small(test_x, side)).argmax(1) == test_y).numpy().astype(int))
    return np.stack(rows)


def _split(seed: int) -> tuple[Ranking, np.ndarray, np.ndarray]:
    """A ranking by half of the networks, what the other half is right on, and samples drawn for each of these."""
    right, rng = matrix(), np.random.default_rng(seed)
    order = rng.permutation(len(right))
    half, count = len(right) // 2, max(2, round(SHARE * right.shape[1]))
    drawn = np.stack([rng.choice(right.shape[1], count, replace=False) for _ in order[half:]])
    return rank(right[order[:half]]), right[order[half:]], drawn


def _errors(seed: int) -> dict[str, float]:
    """Mean errors in percent, of samples and of accuracies, of the method and of plain sampling."""
    ranking, new, drawn = _split(seed)
    asked = ranking.samples(drawn.shape[1])
    predicted = np.stack([ranking.predict(row[asked]) for row in new])
    found = np.take_along_axis(new, drawn, 1)
    majority = np.repeat(found.mean(1, keepdims=True) > 0.5, new.shape[1], 1)
    np.put_along_axis(majority, drawn, found.astype(bool), 1)
    return {
        "samples": 100 * float((predicted != new).mean()),
        "majority": 100 * float((majority != new).mean()),
        "accuracy": 100 * float(np.abs(predicted.mean(1) - new.mean(1)).mean()),
        "sampling": 100 * float(np.abs(found.mean(1) - new.mean(1)).mean()),
    }


def _less(seed: int, *, ours: str, theirs: str) -> float:
    errors = _errors(seed)
    return errors[theirs] - errors[ours]


def _over_majority_of_ranked(seed: int) -> float:
    """What the new model's own answers add to the mean answer of the ranked ones, a sample at a time."""
    right, rng = matrix(), np.random.default_rng(seed)
    order = rng.permutation(len(right))
    half = len(right) // 2
    mean = right[order[:half]].mean(0) > 0.5
    return 100 * float((right[order[half:]] != mean).mean()) - _errors(seed)["samples"]


def _cuts(*, fast: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = [(thresholds if fast else thresholds_reference)(rng.integers(0, 2, (50, n))) for n in range(1, 30)]
    return np.concatenate(rows)


CLAIMS = (
    equal(
        "Thresholds by prefix sums are those by trying all, in matrices of up to 29 columns.",
        ours=partial(_cuts, fast=True),
        theirs=partial(_cuts, fast=False),
        tolerance=0.0,
        clause=1,
    ),
    kept(
        "With 5 % of the samples its error a sample is below that of the majority of as many random ones.",
        paper="",
        quality=partial(_less, ours="samples", theirs="majority"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "Its estimate of the accuracy is at least as near as the mean of as many random samples.",
        paper="low",
        quality=partial(_less, ours="accuracy", theirs="sampling"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "Its error a sample is below that of what the majority of the ranked models is on each sample.",
        paper="",
        quality=_over_majority_of_ranked,
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        beyond="the few answers of the new model count",
    ),
)
