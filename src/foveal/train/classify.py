"""A small trainer of classifiers for claims: minutes, not hours, and the same result for the same seed.

As `foveal.train.brief` for super-resolution: it answers "is this network better than that one after as many steps on
the same pictures?", and nothing else.
"""

from __future__ import annotations

import io
import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from foveal.measure import benchmarks
from foveal.train.brief import STEPS
from foveal.train.loop import fast_denormals, learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["accuracy", "cifar10", "train_classifier"]


@lru_cache(maxsize=4)
def cifar10(part: str, *, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The pictures of CIFAR-10 from the benchmark data.

    Args:
        part: "train" or "test".
        limit: how many, from the start (they are shuffled); None takes all.

    Returns:
        Pictures, (n, 3, 32, 32), zero mean and unit variance over the set's usual figures; labels, (n,) int64.

    Raises:
        DataError: the data is not on this machine.
    """
    with np.load(benchmarks.find(f"cifar10_{part}")) as data:
        ends, packed, labels = data["offsets"], data["jpeg"], data["labels"]
    count = len(labels) if limit is None else min(limit, len(labels))
    pictures = np.empty((count, 32, 32, 3), np.uint8)
    for i in range(count):
        pictures[i] = np.asarray(Image.open(io.BytesIO(packed[ends[i] : ends[i + 1]].tobytes())).convert("RGB"))
    mean, deviation = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    x = (torch.from_numpy(pictures).float() / 255 - mean) / deviation
    return x.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels[:count].astype(np.int64))


@fast_denormals()
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
        build: makes the network, (B, …) to (B, classes).
        steps: how many; the environment variable FOVEAL_BRIEF_STEPS overrides it.
        seconds: train for so long instead; the result then depends on the machine.
        seed: of weights and batches.
        batch: B.
        lr: peak step size.
        weight_decay: on weights of two and more axes.
        data: inputs and labels; None takes CIFAR-10's training pictures.
        flip: whether half of the inputs are mirrored along their last axis.

    Returns:
        The network in eval mode.

    Raises:
        ValueError: not exactly one of `steps` and `seconds`.
    """
    if (steps is None) == (seconds is None):
        raise ValueError(f"give exactly one of steps and seconds, got {steps} and {seconds}")
    if steps is not None:
        steps = int(os.environ.get(STEPS, steps))
    inputs, labels = cifar10("train") if data is None else data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().train()
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        rest = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
        begun, step, share = time.perf_counter(), 0, 0.0
        while share < 1:
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 20) * learning_rate(round(share * 10_000), 10_000, 0)
            rows = torch.randint(len(labels), (batch,))
            x = inputs[rows]
            if flip:
                x = torch.where(torch.rand(batch).view(-1, *[1] * (x.ndim - 1)) < 0.5, x.flip(-1), x)
            loss = F.cross_entropy(model(x), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            share = step / steps if steps is not None else (time.perf_counter() - begun) / (seconds or 1.0)
    return model.eval()


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor] | None = None, *, batch: int = 100) -> float:
    """Share of inputs whose class the network names.

    Args:
        model: (B, …) to (B, classes).
        data: inputs and labels; None takes the first 2,000 of CIFAR-10's test pictures.
        batch: B.

    Returns:
        Percent.
    """
    inputs, labels = cifar10("test", limit=2000) if data is None else data
    with torch.inference_mode():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(inputs.split(batch), labels.split(batch), strict=True)
        )
    return 100 * right / len(labels)
