"""Evidence for DeepGPUCNN: an epoch of MNIST, and depth at equal parameters, one picture a step on two cores."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import STEPS, cached, rehearsing
from foveal.evidence.tasks import cifar10, mnist
from foveal.nn.deep_gpu_cnn import DeepGPUCNN, SparseMaps, train_online
from foveal.record import bound, equal, kept

NETWORK = "20M4-MP2-60M5-MP3-150N"
# Equal parameters to 1 %: three convolutions, two, one; neurons fill up.
DEEP, MIDDLE, SHALLOW = "16M3-MP2-24M4-MP2-48M3-60N", "16M4-MP2-24M4-MP3-163N", "9M5-MP4-129N"
RATE, LIMIT = 0.01, 30_000  # of the networks of different depth: pictures of their epoch
DATA = "an epoch of MNIST, 60,000 digits one by one; 10,000 test digits"
LESS = f"an epoch of the first {LIMIT} digits of MNIST, one by one; 10,000 test digits; paired"


def _pictures(part: str) -> tuple[Tensor, Tensor]:
    """Digits in [-1, 1]."""
    shown, labels = mnist.digits(part)
    return torch.from_numpy(shown).float().div(127.5).sub(1)[:, None], torch.from_numpy(labels)


@cached(maxsize=12)
def trained(notation: str, seed: int, limit: int | None = None) -> nn.Module:
    """A network after an epoch.

    Args:
        notation: its layers.
        seed: seed of weights, connections and order.
        limit: number of digits; None for all.

    Returns:
        The network in eval mode.
    """
    x, labels = _pictures("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DeepGPUCNN(notation, seed=seed)
    steps = STEPS if rehearsing() else None
    train_online(network, x[:limit], labels[:limit], lr=RATE, seed=seed, steps=steps)
    return network


def right(notation: str, seed: int, limit: int | None = None) -> float:
    """Accuracy on the test digits, percent."""
    return cifar10.accuracy(trained(notation, seed, limit), _pictures("test"))


def _above(seed: int, *, than: str) -> float:
    return right(DEEP, seed, LIMIT) - right(than, seed, LIMIT)


def _size(notation: str) -> int:
    return DeepGPUCNN(notation).connected()


def _sides() -> Tensor:
    """Side of each layer's maps by the paper's formula for 29 pixels: a skipping filter, pooling, a filter."""
    network, x, sides = DeepGPUCNN("3M5S1-MP2-4M3-5N", img_size=29), torch.zeros(1, 1, 29, 29), []
    for module in network:
        x = module(x)
        if isinstance(module, SparseMaps | nn.MaxPool2d):
            sides.append(float(x.shape[-1]))
    return torch.tensor(sides)


CLAIMS = (
    kept(
        f"After one epoch of MNIST {NETWORK} reads at least 97.5 % of the test digits.",
        paper="2.42 % errors after one epoch",
        quality=partial(right, NETWORK),
        at_least=97.5,
        unit="%",
        data=DATA,
        needs=mnist.NEEDS,
        clause=1,
    ),
    *(
        kept(
            f"{DEEP} is above {than}, which has {words}.",
            paper="deep nets perform better than more shallow ones",
            quality=partial(_above, than=than),
            at_least=0.0,
            unit="points",
            data=LESS,
            needs=mnist.NEEDS,
            clause=2,
        )
        for than, words in ((MIDDLE, "two convolutions"), (SHALLOW, "one"))
    ),
    *(
        bound(
            f"For that it has no more parameters than {than}, and at most one percent less.",
            paper="",
            value=lambda than=than: _size(DEEP) / _size(than),  # type: ignore[misc]
            at_least=0.99,
            at_most=1.0,
            clause=2,
        )
        for than in (MIDDLE, SHALLOW)
    ),
    equal(
        "Sides of maps follow (M - K) / (S + 1) + 1.",
        ours=_sides,
        theirs=lambda: torch.tensor([(29 - 5) / 2 + 1, 6.0, 4.0]),
        beyond="skipping factors",
    ),
)
