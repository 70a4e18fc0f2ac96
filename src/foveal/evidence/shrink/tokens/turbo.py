"""Evidence for Turbo: its limits are token merging and pruning by attention, and it is compared with both.

Each network is trained whole, without a reduction; all reductions are then applied to the same weights.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

import torch

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.record import equal, faster, kept
from foveal.shrink.tokens.drop import Drop
from foveal.shrink.tokens.merge import Merge
from foveal.shrink.tokens.turbo import Turbo

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foveal.shrink.tokens.blocks import Reduction

STEPS = 1200
build = partial(small_vit, dim=64, depth=4, num_heads=4, class_token=True, global_pool="token")
DATA = f"CIFAR-10, small ViT of {STEPS} steps, 65 tokens to 33; all 10,000 test pictures; paired"


def _untrained() -> nn.Module:
    """A network with sharp attention: that of a fresh one is nearly uniform, so that no weight of it would matter."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build().eval()
        for block in model.blocks:  # type: ignore[union-attr]
            block.attn.qkv.weight.mul_(20)  # type: ignore[operator, union-attr]
        return model


def _tokens(step: Reduction) -> Tensor:
    """Last tokens of an untrained network whose tokens become fewer: a different choice gives other tokens."""
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return step.apply(_untrained()).forward_features(x)  # type: ignore[operator]


def _parameters(*, reduced: bool) -> Tensor:
    """Names of the parameters as numbers, and all values."""
    model = _untrained()
    if reduced:
        model = Turbo(keep=0.5).apply(model)
        with torch.inference_mode():
            model(torch.zeros(1, 3, 32, 32))
    names = [float(letter) for name in sorted(model.state_dict()) for letter in name.encode()]
    values = [value.flatten() for _, value in sorted(model.state_dict().items())]
    return torch.cat((torch.tensor(names), *values))


@cached(maxsize=3)
def _whole(seed: int) -> nn.Module:
    return cifar10.train_classifier(build, steps=STEPS, seed=seed)


@cached(maxsize=16)
def _accuracy(seed: int, step: Reduction) -> float:
    return cifar10.accuracy(step.apply(copy.deepcopy(_whole(seed))), cifar10.pictures("test"))


def _difference(seed: int, *, than: Reduction) -> float:
    return _accuracy(seed, Turbo(keep=0.5, multiple=1)) - _accuracy(seed, than)


def _vit_s(step: Reduction | None) -> nn.Module:
    import timm

    model = timm.create_model("vit_small_patch16_224")
    return model if step is None else step.apply(model)


CLAIMS = (
    equal(
        "With a semantic weight of 0 the tokens are those of token merging.",
        ours=partial(_tokens, Turbo(keep=0.5, multiple=1, semantic=0)),
        theirs=partial(_tokens, Merge(keep=0.5, multiple=1)),
        tolerance=0,
        clause=1,
    ),
    equal(
        "With a redundancy weight of 0 the tokens are those of pruning by attention.",
        ours=partial(_tokens, Turbo(keep=0.5, multiple=1, redundancy=0, how="drop")),
        theirs=partial(_tokens, Drop(keep=0.5, multiple=1)),
        tolerance=0,
        clause=1,
    ),
    equal(
        "Parameters keep names and values.",
        paper="training-free",
        ours=partial(_parameters, reduced=True),
        theirs=partial(_parameters, reduced=False),
        tolerance=0,
        clause=2,
    ),
    kept(
        "At 50% of the tokens a small trained ViT is at least as accurate as with token merging.",
        paper="better than ToMe",
        quality=partial(_difference, than=Merge(keep=0.5, multiple=1)),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "At 50% of the tokens a small trained ViT is at least as accurate as with pruning by attention.",
        paper="better than EViT",
        quality=partial(_difference, than=Drop(keep=0.5, multiple=1)),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "At 50% of the tokens it is more accurate than with a random half.",
        paper="",
        quality=partial(_difference, than=Drop(keep=0.5, multiple=1, by="random")),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        beyond="information degree",
    ),
    faster(
        "ViT-S/16 at 224×224 that ends with a quarter of its tokens runs 1.3 times as fast, 8 pictures at a time.",
        paper="about 2 times the throughput",
        ours=call(partial(_vit_s, Turbo(keep=0.25)), 8, 3, 224, 224),
        theirs=call(partial(_vit_s, None), 8, 3, 224, 224),
        at_least=1.3,
        beyond="acceleration",
    ),
)
