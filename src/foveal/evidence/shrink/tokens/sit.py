"""Evidence for SiT: convex weights, throughput on ViT-S/16, and a small ViT on CIFAR-10 beside hard dropping.

One whole network is trained once; a seed draws the batches and modules of what follows. Hard dropping keeps, after the
attention of the same two blocks, as many tokens as slimming leaves: those that the class token attends to most. It is
trained as long on the same batches with the same teacher, labels and logits; features of dropped tokens it has not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals import small
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.evidence.trained_once import trained_once
from foveal.measure.cost import count_macs
from foveal.record import equal, faster, kept, smaller
from foveal.shrink.data import Data
from foveal.shrink.distill.distillation import Distil, Views, soft_targets
from foveal.shrink.tokens.drop import Drop
from foveal.shrink.tokens.sit import SiT, Slim, slim_

STEPS, FURTHER, RATE = 1500, 400, 1e-3  # training of the whole network, then of each with fewer tokens
AFTER, LEFT = (1, 2), (33, 17)  # blocks after which tokens become fewer; a quarter of 64, and the class token
build = partial(small_vit, dim=64, depth=4, num_heads=4, class_token=True, global_pool="token")


@dataclass(frozen=True)
class _Hard(Drop):
    """Dropping to the counts of slimming."""

    def counts(self, tokens: int, depth: int, *, protect: int = 1) -> list[int]:  # noqa: ARG002 - `Drop` asks so
        """Number of tokens after each block.

        Args:
            tokens: number of tokens before the first block.
            depth: number of blocks.
            protect: not used.

        Returns:
            Counts.
        """
        return [*LEFT, *[LEFT[-1]] * (depth - len(LEFT))]


@cached(maxsize=1)
def _whole() -> nn.Module:
    return trained_once(
        build,
        lambda: cifar10.train_classifier(build, steps=STEPS, seed=0),
        modules=[cifar10.__name__, small.__name__],
        key=f"small_vit dim 64 depth 4 heads 4 class token, steps {STEPS} seed 0",
    )


def _data(seed: int) -> Data:
    inputs, labels = cifar10.pictures("train")

    def batches(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(100_003 * seed + step)
        rows = torch.randint(len(labels), (64,), generator=draw)
        flip = torch.rand(64, generator=draw).view(-1, 1, 1, 1) < 0.5
        return torch.where(flip, inputs[rows].flip(-1), inputs[rows]), labels[rows]

    return Data(inputs, cifar10.accuracy, batches=batches, loss=F.cross_entropy)


def _hard_loss(views: Views) -> Tensor:
    return F.cross_entropy(views.student, views.targets) + 2 * soft_targets(views.student, views.teacher, temperature=1)


@cached(maxsize=6)
def _accuracy(seed: int, *, soft: bool) -> float:
    steps, model = 2 if rehearsing() else FURTHER, copy.deepcopy(_whole())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if soft:
            model = SiT(after=AFTER, steps=steps, lr=RATE).apply(model, _data(seed))
        else:
            training = Distil(_whole(), lambda: _hard_loss, steps=steps, lr=RATE)
            model = training.apply(_Hard(r=1).apply(model), _data(seed))
    return cifar10.accuracy(model, cifar10.pictures("test"))


def _difference(seed: int) -> float:
    return _accuracy(seed, soft=True) - _accuracy(seed, soft=False)


def _lost(seed: int) -> float:
    return _accuracy(seed, soft=True) - cifar10.accuracy(_whole(), cifar10.pictures("test"))


def _weights(*, wanted: bool) -> Tensor:
    """Sums of the weights of each token, and the sum of what is negative, for three counts."""
    found = []
    for tokens in (1, 5, 24):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(tokens)
            module, x = Slim(12, tokens), 3 * torch.randn(2, 49, 12)
            module.scale.fill_(5.0)
            weights = module.weights(x)
        found += [weights.sum(2).flatten(), weights.clamp(max=0).sum((1, 2))]
        if wanted:
            found[-2:] = [torch.ones(2 * tokens), torch.zeros(2)]
    return torch.cat(found)


def _vit_s(*, slim: bool) -> nn.Module:
    import timm

    model = timm.create_model("vit_small_patch16_224")
    return slim_(model, after=(3, 6, 9)) if slim else model


def _macs(*, slim: bool) -> float:
    return float(count_macs(_vit_s(slim=slim), (1, 3, 224, 224)))


CLAIMS = (
    equal(
        "Slimming weights are convex: none is negative, and those of a token sum to 1.",
        ours=partial(_weights, wanted=False),
        theirs=partial(_weights, wanted=True),
        tolerance=1e-6,
        clause=1,
    ),
    faster(
        "ViT-S/16 at 224×224, slimmed to 98, 49 and 24 tokens, has 1.5 times the throughput, 8 pictures at a time.",
        paper="1.7 to 3.6 times",
        ours=call(partial(_vit_s, slim=True), 8, 3, 224, 224),
        theirs=call(partial(_vit_s, slim=False), 8, 3, 224, 224),
        at_least=1.5,
        clause=2,
    ),
    kept(
        "At 25% of the tokens a small ViT, briefly distilled, is more accurate than by hard top-k dropping.",
        paper="soft aggregation beats hard dropping at high ratios",
        quality=_difference,
        at_least=0.0,
        unit="points",
        data=f"CIFAR-10, small ViT of {STEPS} steps, then {FURTHER}; all 10,000 test pictures; paired",
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "At 25% of the tokens it keeps the whole network's accuracy within 3 points.",
        paper="97% of the accuracy at 3.6 times the speed",
        quality=_lost,
        at_least=-3.0,
        unit="points",
        data=f"CIFAR-10, small ViT of {STEPS} steps, then {FURTHER}; all 10,000 test pictures",
        needs=cifar10.NEEDS,
        beyond="accuracy kept",
    ),
    smaller(
        "ViT-S/16 slimmed to 98, 49 and 24 tokens takes 2 times fewer multiply-adds.",
        paper="1.7 to 3.6 times",
        ours=partial(_macs, slim=True),
        theirs=partial(_macs, slim=False),
        at_least=2.0,
        beyond="multiply-adds",
    ),
)
