"""Evidence for VisualPrompting: blood cells for a small transformer of CIFAR-10, beside a linear probe.

The first three classes of the transformer stand for red and white cells and platelets. Prompt and probe learn from the
same pictures in as many steps; the second shift is each of six kinds of damage that neither has seen, and counts as
their mean.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from foveal.adapt.adapt import score
from foveal.adapt.methods import Pictures, labelled
from foveal.adapt.visual_prompting import BorderPrompt, Prompted, visual_prompting
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import transfers
from foveal.evidence.tasks.corruptions import CORRUPTIONS, corrupt
from foveal.record import bound, kept, params

TASK, SHOTS, STEPS, DEGREE = "cells", 100, 250, 3
PADDING = 2  # of 16 pixels, as 30 of 224
CLASSES = tuple(range(transfers.TRANSFERS[TASK]))
DATA = f"{SHOTS} cells of each of three classes, {STEPS} steps, held-out cells"
SHIFT = f"{DATA} under six kinds of damage of degree {DEGREE}"


def _steps() -> int:
    return 2 if rehearsing() else STEPS


def _scores(model: nn.Module) -> tuple[float, float]:
    """Accuracy on held-out cells, and its mean over kinds of damage."""
    x, labels = transfers.held(TASK)
    damaged = [score(model, corrupt(x, kind, degree=DEGREE), labels) for kind in CORRUPTIONS]
    return score(model, x, labels), sum(damaged) / len(damaged)


@cached(maxsize=8)
def _prompted(seed: int) -> tuple[float, float]:
    x, labels = transfers.shots(TASK, SHOTS, seed=seed)
    model = transfers.base()
    pictures = Pictures(x, labels)
    prompt = visual_prompting(model, pictures, padding=PADDING, classes=CLASSES, steps=_steps(), seed=seed)
    return _scores(Prompted(prompt, model, classes=CLASSES))


@cached(maxsize=8)
def _probed(seed: int) -> tuple[float, float]:
    x, labels = transfers.shots(TASK, SHOTS, seed=seed)
    model = transfers.base()
    words = {"what": "head", "lr": 1e-2, "num_classes": len(CLASSES)}
    undo = labelled(model, Pictures(x, labels), steps=_steps(), seed=seed, **words).fold_(model)  # type: ignore[arg-type]
    try:
        return _scores(model)
    finally:
        undo()


@cached(maxsize=2)
def _unprompted() -> float:
    return score(Prompted(nn.Identity(), transfers.base(), classes=CLASSES), *transfers.held(TASK))


def beside_probe(seed: int) -> float:
    """Accuracy with the prompt less that of the probe.

    Args:
        seed: seed of shots and batches.

    Returns:
        Points.
    """
    return _prompted(seed)[0] - _probed(seed)[0]


def gained(seed: int) -> float:
    """Accuracy with the prompt less that without.

    Args:
        seed: seed of shots and batches.

    Returns:
        Points.
    """
    return _prompted(seed)[0] - _unprompted()


def spared(seed: int) -> float:
    """What the probe loses under damage less what the prompt loses.

    Args:
        seed: seed of shots and batches.

    Returns:
        Points.
    """
    prompted, probed = _prompted(seed), _probed(seed)
    return (probed[0] - probed[1]) - (prompted[0] - prompted[1])


def changed() -> float:
    """Values of the frozen model that are different after learning a prompt.

    Returns:
        Number of values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        x = torch.randn(16, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    visual_prompting(model, Pictures(x, torch.arange(16) % 2), padding=1, steps=3)
    return sum(int((tensor != before[name]).sum()) for name, tensor in model.state_dict().items())


CLAIMS = (
    params(
        "A frame of 30 pixels around 224×224.",
        paper="69,840",
        model=partial(BorderPrompt, 224, padding=30),
        expect="69,840",
        clause=1,
    ),
    bound(
        "No value of the model changes, batch norm's statistics included.",
        paper="the model is frozen",
        value=changed,
        at_most=0,
        unit="values",
        clause=2,
    ),
    kept(
        "The prompt is at most 5 points below a linear probe.",
        paper="competitive with a linear probe (CLIP)",
        quality=beside_probe,
        at_least=-5.0,
        unit="points",
        data=DATA,
        needs=transfers.NEEDS,
        clause=3,
    ),
    kept(
        "It is at least 10 points above the model without it.",
        paper="above CLIP without a prompt",
        quality=gained,
        at_least=10.0,
        unit="points",
        data=DATA,
        needs=transfers.NEEDS,
        clause=3,
    ),
    kept(
        "It loses no more than the probe when the cells are damaged as well.",
        paper="robust to a shift between training and test",
        quality=spared,
        at_least=0.0,
        unit="points",
        data=SHIFT,
        needs=transfers.NEEDS,
        clause=4,
    ),
)
