"""Six tasks of one kind for deltas that are added, merged or packed: CIFAR-10 at 16×16 under six kinds of damage.

The network is the small transformer of `transfers`, which was trained on clean pictures. Each task learns its parts and
a head of its own from damaged training pictures and is judged on damaged test pictures; heads stay apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.adapt.attached import attached
from foveal.adapt.methods import Pictures
from foveal.adapt.tune import classifier
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import cifar10, cifar10_half, transfers
from foveal.evidence.tasks.corruptions import CORRUPTIONS, corrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.adapt.delta import Delta

__all__ = ["DATA", "NEEDS", "body", "judged", "learned", "shown"]

NEEDS = cifar10.NEEDS
DEGREE, LEARN, JUDGE, STEPS, BATCH = 4, 2000, 400, 60, 32
DATA = f"CIFAR-10 at 16×16, {LEARN} training and {JUDGE} test pictures under damage of degree {DEGREE}"


@cached(maxsize=12)
def shown(kind: str, part: str) -> tuple[Tensor, Tensor]:
    """Damaged pictures.

    Args:
        kind: one of `CORRUPTIONS`.
        part: "train" or "test".

    Returns:
        Pictures, (n, 3, 16, 16); labels, (n,).
    """
    x, labels = cifar10_half.pictures(part, limit=LEARN if part == "train" else JUDGE)
    return corrupt(x.contiguous(), kind, degree=DEGREE, seed=CORRUPTIONS.index(kind)), labels


def learned(kind: str, make: Callable[[Tensor], nn.Module], *, seed: int, lr: float = 3e-3) -> Delta:
    """Parts and a head for one kind of damage.

    Args:
        kind: one of `CORRUPTIONS`.
        make: function from a weight to its part.
        seed: seed of batches and new parameters.
        lr: peak learning rate.

    Returns:
        Change of the transformer.
    """
    steps = 2 if rehearsing() else STEPS
    pictures = Pictures(*shown(kind, "train"), flip=True)
    return attached(transfers.base(), pictures, make, method=kind, steps=steps, lr=lr, seed=seed, batch=BATCH)


def body(name: str) -> bool:
    """Whether a tensor is none of the head's.

    Args:
        name: name of a tensor.

    Returns:
        What `Delta.only` asks for.
    """
    return not name.startswith(f"{classifier(transfers.base())[0]}.")


@torch.inference_mode()
def judged(delta: Delta, own: Delta, kind: str) -> tuple[float, float]:
    """A delta on one task, with the head that was learnt for that task.

    Args:
        delta: change of the transformer; a head in it is left out.
        own: delta of the task, for its head.
        kind: one of `CORRUPTIONS`.

    Returns:
        Mean cross-entropy in nats, and percent of the pictures that are classified correctly.
    """
    model = transfers.base()
    x, labels = shown(kind, "test")
    undo = (delta.only(body) + own.only(lambda name: not body(name))).fold_(model)
    try:
        logits = model(x)
    finally:
        undo()
    return float(F.cross_entropy(logits, labels)), 100 * float((logits.argmax(-1) == labels).float().mean())
