"""Evidence for ActPrune: the three policies' targets, the dense network and L1-norm pruning, time for one picture.

One ResNet-14 of width 32 is trained once, on CIFAR-10 at 16×16; a seed draws the pictures that attention is measured on
and the batches. The last 2,000 training pictures decide for the policy of accuracy and are never trained on. The dense
network and the one pruned by L1-norm (H. Li et al., arXiv:1608.08710: the filters with the smallest sum of magnitudes,
the same share of each layer) are trained for as many steps as the rounds took together.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals import small
from foveal.evidence.rivals.small import CifarResNet
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.evidence.trained_once import trained_once
from foveal.measure.cost import count_macs, count_parameters
from foveal.record import bound, faster, kept, smaller
from foveal.shrink.data import Data
from foveal.shrink.prune.act_prune import ActPrune, prunable, remove

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, ROUND = 600, 40  # training of the whole network, training after each round
# What the threshold grows by: a layer's share of the multiply-adds is a third of the largest share of parameters.
INCREMENT = {"accuracy": 0.1, "parameters": 0.1, "macs": 0.3}
SHARE, LOSS = 0.5, 1.0  # targets: of parameters and multiply-adds; of accuracy, points
SIDE = 16
DATA = f"CIFAR-10 at {SIDE}×{SIDE}, ResNet-14 of {STEPS} steps, the first 2,000 test pictures; paired"


def _build() -> nn.Module:
    return CifarResNet(8, width=4) if rehearsing() else CifarResNet(14, width=32)


@cached(maxsize=3)
def _pictures(part: str) -> tuple[Tensor, Tensor]:
    inputs, labels = cifar10.pictures("test" if part == "test" else "train", limit=2000 if part == "test" else None)
    inputs, held = F.avg_pool2d(inputs, 32 // SIDE), min(2000, len(labels) // 2)
    if part == "test":
        return inputs, labels
    return (inputs[:-held], labels[:-held]) if part == "train" else (inputs[-held:], labels[-held:])


@cached(maxsize=1)
def _whole() -> nn.Module:
    return trained_once(
        _build,
        lambda: cifar10.train_classifier(_build, steps=STEPS, data=_pictures("train"), seed=0),
        modules=[cifar10.__name__, small.__name__],
        key=f"resnet14 width 32 on 16×16 but 2000, steps {STEPS} seed 0",
    )


def _batches(seed: int, count: list[int] | None = None) -> Callable[[int], tuple[Tensor, Tensor]]:
    inputs, labels = _pictures("train")
    draw = torch.Generator().manual_seed(seed)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        if count is not None:
            count.append(step)
        rows = torch.randint(len(labels), (64,), generator=draw)
        flip = torch.rand(64, generator=draw).view(-1, 1, 1, 1) < 0.5
        return torch.where(flip, inputs[rows].flip(-1), inputs[rows]), labels[rows]

    return batches


def _observed(seed: int) -> Tensor:
    inputs = _pictures("train")[0]
    return inputs[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:256]]


@cached(maxsize=8)
def _pruned(policy: str, seed: int) -> tuple[nn.Module, int]:
    """The pruned network, and how many steps of training it took."""
    count: list[int] = []
    words: dict[str, Any] = {"steps": 2, "tolerance": 1.0} if rehearsing() else {"steps": ROUND}
    if policy == "accuracy":
        words["rounds"] = 4 if rehearsing() else 12
    step = ActPrune(policy, target=LOSS if policy == "accuracy" else SHARE, increment=INCREMENT[policy], **words)
    data = Data(
        _observed(seed),
        lambda model: cifar10.accuracy(model, _pictures("held")),
        batches=_batches(seed, count),
        loss=F.cross_entropy,
    )
    return step.apply(copy.deepcopy(_whole()), data), len(count)


def _further(model: nn.Module, seed: int, steps: int) -> float:
    """Accuracy after further training."""

    def loss(network: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(pair[0]), pair[1])

    short_run(model, _batches(seed), loss, steps=steps, lr=1e-3, weight_decay=0.05, clip=1.0)
    return cifar10.accuracy(model, _pictures("test"))


def _by_l1(parameters: int) -> nn.Module:
    """L1-norm pruning, the same share of each layer: the smallest network with at least so many parameters."""
    whole, inputs = _whole(), _observed(0)
    norms = {n: whole.get_submodule(n).weight.detach().abs().flatten(1).sum(1) for n in prunable(whole, inputs)}  # type: ignore[operator, union-attr]
    low, high = 0.0, 1.0
    for _ in range(8):
        share = (low + high) / 2
        gone = {name: norm.argsort()[: min(round(share * len(norm)), len(norm) - 1)] for name, norm in norms.items()}
        found = remove(whole, {name: indices for name, indices in gone.items() if len(indices)}, inputs)
        low, high = (share, high) if count_parameters(found) >= parameters else (low, share)
    gone = {name: norm.argsort()[: round(low * len(norm))] for name, norm in norms.items()}
    return remove(whole, {name: indices for name, indices in gone.items() if len(indices)}, inputs)


def _above(seed: int, *, rival: str) -> float:
    model, steps = _pruned("parameters", seed)
    other = copy.deepcopy(_whole()) if rival == "dense" else _by_l1(count_parameters(model))
    return cifar10.accuracy(model, _pictures("test")) - _further(other, seed, steps)


def _miss(policy: str) -> float:
    """Relative distance from the target."""
    model, whole = _pruned(policy, 0)[0], _whole()
    if policy == "accuracy":
        target = cifar10.accuracy(whole, _pictures("held")) - LOSS
        return abs(cifar10.accuracy(model, _pictures("held")) / max(target, 1.0) - 1)
    shape = (1, 3, SIDE, SIDE)
    counts = [count_macs(m, shape) if policy == "macs" else count_parameters(m) for m in (model, whole)]
    return abs((1 - counts[0] / counts[1]) / SHARE - 1)


def _policy(policy: str, says: str, paper: str) -> Any:
    value = partial(_miss, policy)
    return bound(says, paper=paper, value=value, at_most=0.05, needs=cifar10.NEEDS, clause=1)


CLAIMS = (
    _policy("parameters", "Half of the parameters asked for: relative distance of what went.", "memory target met"),
    _policy("macs", "Half of the multiply-adds asked for: relative distance of what went.", "latency target met"),
    _policy(
        "accuracy",
        "A point of accuracy allowed: relative distance of the held-out accuracy from the lowest allowed.",
        "accuracy target met",
    ),
    smaller(
        "Half of the parameters are gone from the network's own tensors.",
        paper="79.11% fewer (ResNet-56)",
        ours=lambda: count_parameters(_pruned("parameters", 0)[0]),
        theirs=lambda: count_parameters(_whole()),
        at_least=2.0,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "With half of the parameters gone it loses at most 1 point against the whole network, trained as long.",
        paper="no loss at 79.11% fewer (ResNet-56)",
        quality=partial(_above, rival="dense"),
        at_least=-1.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "With half of the parameters gone it is more accurate than after L1-norm pruning to no fewer parameters.",
        paper="above L1-norm pruning",
        quality=partial(_above, rival="L1"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    faster(
        f"With half of the multiply-adds gone one picture of {SIDE}×{SIDE} takes 1.3 times less time.",
        paper="70.13% fewer FLOPs (ResNet-56)",
        ours=call(lambda: _pruned("macs", 0)[0], 1, 3, SIDE, SIDE),
        theirs=call(_whole, 1, 3, SIDE, SIDE),
        at_least=1.3,
        needs=cifar10.NEEDS,
        clause=4,
    ),
)
