"""Evidence for TokenLearner: speed on ViT-S/16, and a small ViT on CIFAR-10 beside the whole one and grid pooling.

All networks are trained from scratch, with the same batches and steps. Grid pooling stands in the same place and leaves
as many tokens, each the mean of its part of the grid.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.record import equal, faster, kept, smaller
from foveal.shrink.tokens.between import insert_
from foveal.shrink.tokens.token_learner import Learner, TokenLearner

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, TOKENS, DEPTH = 800, 8, 4
whole = partial(small_vit, dim=64, depth=DEPTH, num_heads=4)
DATA = f"CIFAR-10, small ViT, {STEPS} steps of 64 from scratch; all 10,000 test pictures; paired"


class GridPool(nn.Module):
    """Means of the parts of a square grid of patches, (B, N, C) to (B, 8, C).

    Args:
        parts: numbers of parts along height and width.
    """

    def __init__(self, parts: tuple[int, int] = (2, 4)) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        side = round(x.shape[1] ** 0.5)
        plane = x.transpose(1, 2).unflatten(2, (side, side))
        return F.adaptive_avg_pool2d(plane, self.parts).flatten(2).transpose(1, 2)


def learned() -> nn.Module:
    """The small ViT with eight learned tokens at half depth."""
    return TokenLearner(TOKENS).apply(whole())


def pooled() -> nn.Module:
    """The small ViT whose patches are pooled to eight at half depth."""
    return insert_(whole(), {DEPTH // 2: GridPool()}, step="grid pooling")


BUILDERS: dict[str, Callable[[], nn.Module]] = {"whole": whole, "learned": learned, "pooled": pooled}


@cached(maxsize=9)
def _accuracy(seed: int, kind: str) -> float:
    network = cifar10.train_classifier(BUILDERS[kind], steps=STEPS, seed=seed)
    return cifar10.accuracy(network, cifar10.pictures("test"))


def _difference(seed: int, *, than: str) -> float:
    return _accuracy(seed, "learned") - _accuracy(seed, than)


def _vit_s(*, learn: bool) -> nn.Module:
    import timm

    model = timm.create_model("vit_small_patch16_224")
    return TokenLearner(TOKENS).apply(model) if learn else model


def _macs(*, learn: bool) -> float:
    return float(count_macs(_vit_s(learn=learn), (1, 3, 224, 224)))


def _uniform(*, pool: bool) -> Tensor:
    """Tokens of a learner whose maps are uniform, or as many means of all patches."""
    x = torch.randn(2, 35, 12, generator=torch.Generator().manual_seed(0))
    if pool:
        return x.mean(1, keepdim=True).expand(-1, 5, -1)
    learner = Learner(12, 5)
    nn.init.zeros_(learner.maps[3].weight)  # type: ignore[arg-type]
    with torch.no_grad():
        return learner(x)


CLAIMS = (
    faster(
        "ViT-S/16 at 224×224 with 8 learned tokens at half depth runs 1.5 times as fast.",
        paper="about half of the computation",
        ours=call(partial(_vit_s, learn=True), 1, 3, 224, 224),
        theirs=call(partial(_vit_s, learn=False), 1, 3, 224, 224),
        at_least=1.5,
        clause=1,
    ),
    kept(
        "A small ViT with 8 learned tokens at half depth loses less than 1 point against the whole one.",
        paper="as accurate",
        quality=partial(_difference, than="whole"),
        at_least=-1.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "Learned tokens are more accurate than grid pooling to as many.",
        paper="better than pooling",
        quality=partial(_difference, than="pooled"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    smaller(
        "ViT-S/16 with 8 learned tokens at half depth takes 1.8 times fewer multiply-adds.",
        paper="about half",
        ours=partial(_macs, learn=True),
        theirs=partial(_macs, learn=False),
        at_least=1.8,
        beyond="compute reduction",
    ),
    equal(
        "With uniform maps each token is the mean of all patches.",
        ours=partial(_uniform, pool=False),
        theirs=partial(_uniform, pool=True),
        tolerance=1e-6,
        beyond="uniform maps",
    ),
)
