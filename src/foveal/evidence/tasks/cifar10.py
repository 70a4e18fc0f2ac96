"""CIFAR-10 in minutes: ten classes of 32×32 pictures; accuracy in percent on the first 2,000 test pictures.

The pictures are JPEG-compressed (see the data's README), so figures can be compared with each other but not with a
paper's. The floor is chance, 10 %.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.measure import benchmarks
from foveal.record import kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.record import Claim

__all__ = ["NEEDS", "accuracy", "better", "pictures", "train_classifier", "trained"]

NEEDS = ("minutes", "cifar10_train", "cifar10_test")
FLOOR = 10.0  # percent, by chance


@cached(maxsize=4)
def pictures(part: str, *, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The pictures of CIFAR-10 from the benchmark data.

    Args:
        part: "train" or "test".
        limit: number of pictures to take from the start (they are shuffled); None takes all.

    Returns:
        Pictures, (n, 3, 32, 32), normalised with the usual mean and deviation of the set; labels, (n,) int64.

    Raises:
        DataError: the data is not on this machine.
    """
    if rehearsing():
        generator = torch.Generator().manual_seed(0)
        return torch.randn(20, 3, 32, 32, generator=generator), torch.arange(20) % 10
    with np.load(benchmarks.find(f"cifar10_{part}")) as data:
        ends, packed, labels = data["offsets"], data["jpeg"], data["labels"]
    count = len(labels) if limit is None else min(limit, len(labels))
    found = np.empty((count, 32, 32, 3), np.uint8)
    for i in range(count):
        found[i] = np.asarray(Image.open(io.BytesIO(packed[ends[i] : ends[i + 1]].tobytes())).convert("RGB"))
    mean, deviation = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    x = (torch.from_numpy(found).float() / 255 - mean) / deviation
    return x.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels[:count].astype(np.int64))


def train_classifier(
    build: Callable[[], nn.Module],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    batch: int = 64,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    data: tuple[Tensor, Tensor] | None = None,
    flip: bool = True,
) -> nn.Module:
    """Build a network under a seed and train it: AdamW, cross-entropy, half a cosine.

    Args:
        build: builder of the network, (B, …) to (B, classes).
        steps: number of steps.
        seconds: duration of the training instead of `steps`; the result then depends on the machine.
        seed: seed of weights and batches.
        batch: batch size, B.
        lr: peak learning rate.
        weight_decay: weight decay of parameters with two or more axes.
        data: inputs and labels; None takes CIFAR-10's training pictures.
        flip: whether half of the inputs are flipped along their last axis.

    Returns:
        The network in eval mode.
    """
    inputs, labels = pictures("train") if data is None else data

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from torch's seeded generator
        rows = torch.randint(len(labels), (batch,))
        x = inputs[rows]
        if flip:
            x = torch.where(torch.rand(batch).view(-1, *[1] * (x.ndim - 1)) < 0.5, x.flip(-1), x)
        return x, labels[rows]

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(pair[0]), pair[1])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        return short_run(
            model,
            batches,
            loss,
            steps=steps,
            seconds=seconds,
            lr=lr,
            weight_decay=weight_decay,
            betas=(0.9, 0.98),
            clip=1.0,
        )


@cached(maxsize=4)
def trained(build: Callable[[], nn.Module], *, steps: int, seed: int) -> nn.Module:
    """A network trained on CIFAR-10; claims about one network share it.

    Args:
        build: builder of the network, (B, 3, 32, 32) to (B, 10).
        steps: number of steps of 64 pictures.
        seed: seed of weights and batches.

    Returns:
        The network in eval mode; do not modify it.
    """
    return train_classifier(build, steps=steps, seed=seed)


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor] | None = None, *, batch: int = 100) -> float:
    """Share of inputs that the network classifies correctly.

    Args:
        model: network, (B, …) to (B, classes).
        data: inputs and labels; None takes the first 2,000 of CIFAR-10's test pictures.
        batch: batch size, B.

    Returns:
        Accuracy, percent.
    """
    inputs, labels = pictures("test", limit=2000) if data is None else data
    with torch.inference_mode():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(inputs.split(batch), labels.split(batch), strict=True)
        )
    return 100 * right / len(labels)


def better(
    build: Callable[[], nn.Module],
    says: str,
    *,
    than: Callable[[], nn.Module],
    steps: int,
    paper: str,
    by: float = 0.0,
    **words: Any,
) -> Claim:
    """`kept`: the paired difference of two networks under the same seeds, batches and steps.

    Args:
        build: builder of the network.
        says: promise, one sentence.
        than: builder of the rival.
        steps: number of training steps of each.
        paper: the paper's value.
        by: lower bound on the difference, percentage points; negative for "at most this much worse".
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        ours, theirs = (accuracy(trained(b, steps=steps, seed=seed)) for b in (build, than))
        return ours - theirs

    data = f"{steps} steps on CIFAR-10, the first 2,000 test pictures"
    return kept(says, paper=paper, quality=difference, at_least=by, unit="points", data=data, needs=NEEDS, **words)
