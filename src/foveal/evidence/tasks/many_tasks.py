"""Many tasks for one transformer, for deltas that are added, merged or packed.

The network is the small transformer of `transfers`, which was trained on clean pictures of CIFAR-10 at 16×16. Tasks are
its own classes under six kinds of damage, and the three transfers: digits, cells and things. Each learns its parts and
a head of its own and is judged on other pictures; heads stay apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.adapt.learned import attached
from foveal.adapt.methods import Pictures
from foveal.adapt.tune import classifier
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import cifar10_half, transfers
from foveal.evidence.tasks.corruptions import CORRUPTIONS, corrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.adapt.delta import Delta

__all__ = ["DAMAGED", "body", "judged", "learned", "shown"]

DEGREE, LEARN, JUDGE, SHOTS, STEPS, BATCH = 4, 2000, 400, 16, 60, 32
DAMAGED = f"CIFAR-10 at 16×16, {LEARN} training and {JUDGE} test pictures under damage of degree {DEGREE}"


@cached(maxsize=12)
def shown(task: str, part: str) -> tuple[Tensor, Tensor]:
    """Pictures of a task.

    Args:
        task: one of `CORRUPTIONS` or of `transfers.TRANSFERS`.
        part: "train" or "test".

    Returns:
        Pictures, (n, 3, 16, 16); labels, (n,).
    """
    if task in transfers.TRANSFERS:
        return transfers.shots(task, SHOTS) if part == "train" else transfers.held(task)
    x, labels = cifar10_half.pictures(part, limit=LEARN if part == "train" else JUDGE)
    return corrupt(x.contiguous(), task, degree=DEGREE, seed=CORRUPTIONS.index(task)), labels


def learned(task: str, make: Callable[[Tensor], nn.Module], *, seed: int, lr: float = 3e-3) -> Delta:
    """Parts and a head for one task.

    Args:
        task: one of `CORRUPTIONS` or of `transfers.TRANSFERS`.
        make: function from a weight to its part.
        seed: seed of batches and new parameters.
        lr: peak learning rate.

    Returns:
        Change of the transformer.
    """
    return attached(
        transfers.base(),
        Pictures(*shown(task, "train"), flip=task in CORRUPTIONS),
        make,
        method=task,
        steps=2 if rehearsing() else STEPS,
        lr=lr,
        seed=seed,
        batch=BATCH,
        num_classes=transfers.TRANSFERS.get(task),
    )


def body(name: str) -> bool:
    """Whether a tensor is none of the head's.

    Args:
        name: name of a tensor.

    Returns:
        What `Delta.only` asks for.
    """
    return not name.startswith(f"{classifier(transfers.base())[0]}.")


@torch.inference_mode()
def judged(delta: Delta, own: Delta, task: str) -> tuple[float, float]:
    """A delta on one task, with the head that was learnt for that task.

    Args:
        delta: change of the transformer; a head in it is left out.
        own: delta of the task, for its head.
        task: one of `CORRUPTIONS` or of `transfers.TRANSFERS`.

    Returns:
        Mean cross-entropy in nats, and percent of the pictures that are classified correctly.
    """
    model = transfers.base()
    x, labels = shown(task, "test")
    undo = (delta.only(body) + own.only(lambda name: not body(name))).fold_(model)
    try:
        logits = model(x)
    finally:
        undo()
    return float(F.cross_entropy(logits, labels)), 100 * float((logits.argmax(-1) == labels).float().mean())
