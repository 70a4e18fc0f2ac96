"""Evidence for MSViT: against the plain network, and against a gate that draws as many fine patches at random."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.record import bound, equal, faster, kept, smaller
from foveal.shrink.tokens.msvit import MixedScale, MSViT, batch_shaping, make_gate

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, FURTHER = 600, 300  # training of the plain network, then with a gate, as in the paper
LAMBDA = 4.0  # weight of the batch-shaping loss


def _plain() -> nn.Module:
    return small_vit(dim=48, depth=4)


def _mixed(seed: int, config: MSViT) -> MixedScale:
    """The network trained plainly, then further with two scales."""
    mixed = config.apply(copy.deepcopy(cifar10.trained(_plain, steps=STEPS, seed=seed)))
    inputs, labels = cifar10.pictures("train")

    def batches(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(labels), (64,), generator=torch.Generator().manual_seed(1000 * seed + step))
        return inputs[rows], labels[rows]

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        found: Any = model.gated(pair[0])  # type: ignore[operator]
        task = F.cross_entropy(found.out, pair[1])
        return task if found.probability is None else task + LAMBDA * model.shaping(found.probability)  # type: ignore[operator]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return short_run(mixed, batches, loss, steps=FURTHER, lr=1e-3, weight_decay=0.05, clip=1.0)  # type: ignore[return-value]


@cached(maxsize=4)
def _gated(seed: int) -> MixedScale:
    return _mixed(seed, MSViT())


@cached(maxsize=4)
def _share(seed: int) -> float:
    """Share of the test pictures' coarse patches that the trained gate reads finely."""
    network = _gated(seed)
    with torch.inference_mode():
        return float(network.choose(cifar10.pictures("test", limit=2000)[0])[1].mean())


def _against_random(seed: int) -> float:
    """The twin draws, while trained and tested, as many fine patches as the gate takes of the test pictures."""
    share = min(max(_share(seed), 0.01), 0.99)
    twin = _mixed(seed, MSViT(target=share, by="random"))
    return cifar10.accuracy(_gated(seed)) - cifar10.accuracy(twin)


def _tokens(seed: int) -> float:
    """Share of the plain network's tokens, percent."""
    return 25 + 75 * _share(seed)


def _clocked(*, gated: bool) -> Callable[[], Any]:
    """A hundred test pictures through the trained network, or the plain one."""
    model = _gated(0) if gated else cifar10.trained(_plain, steps=STEPS, seed=0)
    x = cifar10.pictures("test", limit=2000)[0][:100]

    def run() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return run


def _vit_s(by: str) -> nn.Module:
    model = small_vit(dim=384, depth=12, num_heads=6, patch=16, img_size=224, num_classes=1000)
    return model if by == "plain" else MSViT(by=by).apply(model)


def _small(by: str) -> Tensor:
    torch.manual_seed(0)
    model = small_vit(dim=24, depth=3, class_token=True, global_pool="token").eval()
    with torch.no_grad():
        return (model if by == "plain" else MSViT(by=by).apply(model))(torch.rand(3, 3, 32, 32))


def _beside(by: str) -> Tensor:
    """One picture all fine, in a batch with one that is all coarse."""
    torch.manual_seed(0)
    model, x = small_vit(dim=24, depth=3).eval(), torch.rand(2, 3, 32, 32)
    mixed: Any = MSViT(by="fine").apply(model)
    mixed.choose = lambda _: (None, torch.tensor([[1.0], [0.0]]).expand(-1, 16))
    with torch.no_grad():
        return (model(x) if by == "plain" else mixed(x))[:1]


def _matched() -> float:
    """Distance of probabilities drawn from the distribution that they are shaped to."""
    draw = torch.Generator().manual_seed(0)
    uniform = torch.rand(4000, 3, generator=draw)
    mean = torch.tensor([0.2, 0.5, 0.8])
    return float(batch_shaping(((mean.logit() + uniform.logit()) / 0.3).sigmoid(), mean, temperature=0.3))


CLAIMS = (
    equal(
        "With every coarse patch read finely it is the plain network, bit for bit.",
        ours=partial(_small, "fine"),
        theirs=partial(_small, "plain"),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "So is a picture read finely in a batch with another that is read coarsely.",
        ours=partial(_beside, "fine"),
        theirs=partial(_beside, "plain"),
        clause=1,
    ),
    kept(
        "The trained gate is at least a point above one that draws as many fine patches at random.",
        paper="above random gates at every number of tokens",
        quality=_against_random,
        at_least=1.0,
        unit="points",
        data=f"CIFAR-10, {STEPS} steps of 64 plainly, then {FURTHER} with two scales",
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "The trained gate leaves at most 55 % of the tokens of the test pictures.",
        paper="the target of the hyperprior",
        quality=lambda seed: 55 - _tokens(seed),
        at_least=0.0,
        unit="points below",
        data="CIFAR-10, the first 2,000 test pictures",
        needs=cifar10.NEEDS,
        clause=2,
    ),
    faster(
        "The trained network is over 1.3 times as fast as the plain one, on a hundred test pictures at once.",
        paper="fewer tokens",
        ours=partial(_clocked, gated=True),
        theirs=partial(_clocked, gated=False),
        at_least=1.3,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    faster(
        "A ViT-S/16 that reads a third of the coarse patches finely is over 1.3 times as fast, eight pictures at once.",
        paper="fewer tokens",
        ours=call(partial(_vit_s, "random"), 8, 3, 224, 224),
        theirs=call(partial(_vit_s, "plain"), 8, 3, 224, 224),
        at_least=1.3,
        beyond="speed of a network of the usual size",
    ),
    smaller(
        "The gate of a ViT-S/16 takes less than half a percent of its multiply-adds.",
        paper="lightweight",
        ours=lambda: float(count_macs(make_gate(3, 32, 64, 0.5), (1, 3, 224, 224))),
        theirs=lambda: float(count_macs(_vit_s("plain"), (1, 3, 224, 224))),
        at_least=200.0,
        beyond="the gate is lightweight",
    ),
    bound(
        "Probabilities that follow the prior have next to no batch-shaping loss.",
        paper="0 where the distributions match",
        value=_matched,
        at_most=1e-3,
        beyond="the loss matches distributions",
    ),
)
