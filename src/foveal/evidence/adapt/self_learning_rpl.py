"""Evidence for self-learning: stored ResNets on six kinds of damage, beside batch-norm statistics alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.adapt.methods import Pictures, statistics
from foveal.adapt.self_learning_rpl import generalised_cross_entropy, self_learning_rpl
from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import adapting
from foveal.record import bound, equal, kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from foveal.record import Claim

STEPS = 15
DATA = f"CIFAR-10, the first {adapting.LIMIT} test pictures under six kinds of damage of degree {adapting.DEGREE}"


@cached(maxsize=4)
def _by_statistics(depth: int) -> float:
    return adapting.error(depth, statistics)


@cached(maxsize=12)
def _by_learning(depth: int, seed: int, kind: str) -> float:
    return adapting.error(depth, partial(self_learning_rpl, steps=STEPS, seed=seed, kind=kind))


def gained(depth: int, seed: int) -> float:
    """Error with statistics alone less that with robust pseudo-labels.

    Args:
        depth: number of layers.
        seed: seed of the batches.

    Returns:
        Points.
    """
    return _by_statistics(depth) - _by_learning(depth, seed, "robust")


def over_hard(seed: int) -> float:
    """Error with hard pseudo-labels less that with robust ones, on the shallower network.

    Args:
        seed: seed of the batches.

    Returns:
        Points.
    """
    depth = adapting.DEPTHS[0]
    return _by_learning(depth, seed, "hard") - _by_learning(depth, seed, "robust")


def others_touched() -> float:
    """How many tensors change that are neither scale, shift nor statistics of a norm.

    Returns:
        Number of tensors.
    """
    model = adapting.source(adapting.DEPTHS[0])
    x, _ = adapting.damaged("noise")
    delta = self_learning_rpl(model, Pictures(x[:256]), steps=2)
    inside = [f"{name}." for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    return sum(not name.startswith(tuple(inside)) for name in delta.changes)


def _losses(q: float | None) -> Tensor:
    """Losses and gradients of some logits: generalised for a q, cross-entropy for None."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 10, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(10, (64,), generator=generator)
    loss = F.cross_entropy(logits, labels) if q is None else generalised_cross_entropy(logits, labels, q=q)
    return torch.cat([torch.autograd.grad(loss, logits)[0].flatten(), loss.detach()[None]])


def _lower(depth: int) -> Claim:
    quality: Callable[[int], float] = partial(gained, depth)
    return kept(
        f"Robust pseudo-labels lower the mean error of ResNet-{depth} below that with new statistics alone.",
        paper="ResNet-50 on ImageNet-C: 50.5 against 62.2 % with statistics alone",
        quality=quality,
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=adapting.NEEDS,
        clause=1,
    )


CLAIMS = (
    *(_lower(depth) for depth in adapting.DEPTHS),
    bound(
        "Nothing changes but scales, shifts and statistics of norms.",
        paper="only affine parameters",
        value=others_touched,
        at_most=0,
        unit="other tensors",
        needs=adapting.NEEDS,
        clause=2,
    ),
    equal(
        "For q = 1e-9 the generalised cross-entropy and its gradient are those of cross-entropy.",
        ours=lambda: _losses(1e-9),
        theirs=lambda: _losses(None),
        tolerance=1e-7,
        clause=3,
    ),
    kept(
        "They lower it further than hard pseudo-labels do.",
        paper="50.5 against 51.2 %",
        quality=over_hard,
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=adapting.NEEDS,
        beyond="robust labels are better than hard ones",
    ),
)
