"""Evidence for RD-Prune: brute force, additivity, and uniform, ERK and LAMP at the same sparsity.

One ResNet-32 is trained once, on CIFAR-10 at 16×16; a seed draws the calibration pictures and the batches of the
fine-tuning, which are the same for every rule.
"""

from __future__ import annotations

import copy
import itertools
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals import small
from foveal.evidence.rivals.small import CifarResNet, resnet32
from foveal.evidence.rivals.sparsity import erk, lamp, uniform
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.evidence.trained_once import trained_once
from foveal.record import bound, equal, kept
from foveal.shrink.prune.masks import fine_mask, mask_
from foveal.shrink.prune.rd_prune import SHARES, distortions, prunable, shares

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, FURTHER = 800, 60  # training of the whole network, fine-tuning of each pruned one
ONE_SHOT, TUNED = (0.8, 0.9, 0.95), (0.8, 0.95)  # sparsities
CALIBRATION = 64  # pictures
RULES: dict[str, Callable[..., dict[str, Tensor]]] = {"uniform": uniform, "ERK": erk, "LAMP": lamp}
DATA = f"CIFAR-10 at 16×16, ResNet-32 of {STEPS} steps, the first 2,000 test pictures"


@cached(maxsize=2)
def _pictures(part: str) -> tuple[Tensor, Tensor]:
    inputs, labels = cifar10.pictures(part, limit=2000 if part == "test" else None)
    return F.avg_pool2d(inputs, 2), labels


@cached(maxsize=1)
def _whole() -> nn.Module:
    build = partial(CifarResNet, 8, width=4) if rehearsing() else resnet32
    return trained_once(
        build,
        lambda: cifar10.train_classifier(build, steps=STEPS, data=_pictures("train"), seed=0),
        modules=[cifar10.__name__, small.__name__],
        key=f"resnet32 on 16×16, steps {STEPS} seed 0",
    )


@cached(maxsize=5)
def _distortions(seed: int) -> np.ndarray:
    inputs = _pictures("train")[0]
    rows = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    return distortions(_whole(), inputs[rows])


def _masks(rule: str, sparsity: float, seed: int) -> dict[str, Tensor]:
    weights = prunable(_whole())
    if rule in RULES:
        return RULES[rule](weights, 1 - sparsity)
    found = shares(_distortions(seed), [w.numel() for w in weights.values()], sparsity=sparsity)
    return {n: fine_mask(w.detach().abs(), share) for (n, w), share in zip(weights.items(), found, strict=True)}


@cached(maxsize=200)
def _one_shot(rule: str, sparsity: float, seed: int) -> float:
    return cifar10.accuracy(mask_(copy.deepcopy(_whole()), _masks(rule, sparsity, seed)), _pictures("test"))


@cached(maxsize=200)
def _fine_tuned(rule: str, sparsity: float, seed: int) -> float:
    model = mask_(copy.deepcopy(_whole()), _masks(rule, sparsity, seed))
    inputs, labels = _pictures("train")
    draw = torch.Generator().manual_seed(seed)

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from the seeded generator
        rows = torch.randint(len(labels), (32,), generator=draw)
        return inputs[rows], labels[rows]

    def loss(network: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(pair[0]), pair[1])

    short_run(model, batches, loss, steps=FURTHER, lr=1e-3, clip=1.0)
    return cifar10.accuracy(model, _pictures("test"))


def _above(seed: int, *, fine_tuned: bool) -> float:
    """Accuracy minus that of the best rival, mean over the sparsities, points."""
    differences = []
    for sparsity in TUNED if fine_tuned else ONE_SHOT:
        if fine_tuned:
            ours, *theirs = (_fine_tuned(rule, sparsity, seed) for rule in ("RD-Prune", *RULES))
        else:
            ours = _one_shot("RD-Prune", sparsity, seed)
            theirs = [_one_shot(rule, sparsity, 0) for rule in RULES]  # no rival sees data
        differences.append(ours - max(theirs))
    return sum(differences) / len(differences)


def _additivity() -> float:
    """Correlation of joint and summed distortion over random shares, from light to heavy pruning."""
    model, table, draw = _whole(), _distortions(0), np.random.default_rng(0)
    inputs = _pictures("train")[0][:CALIBRATION]
    weights, joint, summed = prunable(model), [], []
    with torch.no_grad():
        original = model(inputs)
        for _ in range(40):
            picks = draw.integers(0, draw.integers(1, len(SHARES)) + 1, len(weights)).clip(max=len(SHARES) - 1)
            masks = {
                n: fine_mask(w.detach().abs(), SHARES[pick])
                for (n, w), pick in zip(weights.items(), picks, strict=True)
            }
            joint.append(float((mask_(copy.deepcopy(model), masks)(inputs) - original).square().mean()))
            summed.append(float(table[range(len(weights)), picks].sum()))
    return float(np.corrcoef(joint, summed)[0, 1])


def _four_layers(*, brute: bool) -> np.ndarray:
    """Least total distortion of four layers at five sparsities."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
        model, inputs = nn.Sequential(*layers, nn.Linear(16, 10)).eval(), torch.rand(8, 3, 8, 8)
    choices = SHARES[::2]
    table, sizes = distortions(model, inputs, choices=choices), [w.numel() for w in prunable(model).values()]

    def least(sparsity: float) -> float:
        if not brute:
            found = shares(table, sizes, sparsity=sparsity, choices=choices)
            return sum(float(table[i, choices.index(share)]) for i, share in enumerate(found))
        budget = round((1 - sparsity) * sum(sizes))
        return min(
            sum(float(table[i, pick]) for i, pick in enumerate(picks))
            for picks in itertools.product(range(len(choices)), repeat=len(sizes))
            if sum(round(choices[pick] * size) for pick, size in zip(picks, sizes, strict=True)) <= budget
        )

    return np.array([least(sparsity) for sparsity in (0.3, 0.5, 0.7, 0.8, 0.9)])


CLAIMS = (
    equal(
        "Dynamic programming finds the least distortion of four layers, as brute force over all shares does.",
        ours=partial(_four_layers, brute=False),
        theirs=partial(_four_layers, brute=True),
        tolerance=1e-9,
        clause=1,
    ),
    bound(
        "Pruning all layers together distorts the output as the sum of what each layer's pruning does: correlation.",
        paper="approximately additive",
        value=_additivity,
        at_least=0.9,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "One-shot, mean over 80, 90 and 95% sparsity: more accurate than the best of uniform, ERK and LAMP.",
        paper="above other rules",
        quality=partial(_above, fine_tuned=False),
        at_least=0.0,
        unit="points",
        seeds=5,
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        f"The same at 80 and 95% sparsity after {FURTHER} steps of fine-tuning each.",
        paper="1.0 points on CIFAR-10 with ResNet-32",
        quality=partial(_above, fine_tuned=True),
        at_least=0.0,
        unit="points",
        seeds=5,
        data=f"{DATA}; {FURTHER} further steps of 32, the same batches",
        needs=cifar10.NEEDS,
        clause=3,
    ),
)
