"""Evidence for SparseViT: exact with all windows, time of Swin-T, and a small Swin beside random windows on CIFAR-10.

The small Swin is trained plainly, then adapted with shares drawn anew for each step; its twin, from the same weights
and with the same batches and shares, works on random windows throughout.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.record import equal, faster, kept, smaller
from foveal.shrink.tokens.sparsevit import SparseViT, draw_keep, search_keep, set_keep_
from foveal.shrink.tokens.swin_windows import on_windows, places

STEPS, FURTHER = 500, 300  # plain training, then the adaptation
STAGES, SPARSE = 2, 0.4  # share of the windows at 60 % sparsity
SHAPE = (1, 3, 32, 32)
DATA = f"CIFAR-10, {STEPS} steps of 64 plainly, then {FURTHER} with drawn shares; all 10,000 test pictures; paired"


def swin() -> nn.Module:
    """Swin for 32×32 pictures: maps of 16×16 and 8×8 patches, windows of 4×4."""
    from timm.models.swin_transformer import SwinTransformer

    sizes: Any = {"embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    return SwinTransformer(32, 2, num_classes=10, drop_path_rate=0.0, **sizes)


@cached(maxsize=6)
def _adapted(seed: int, by: str) -> nn.Module:
    model = SparseViT(1.0, by=by).apply(copy.deepcopy(cifar10.trained(swin, steps=STEPS, seed=seed)))
    inputs, labels = cifar10.pictures("train")

    def batches(step: int) -> tuple[Tensor, Tensor, tuple[float, ...]]:
        number = 1000 * seed + step
        rows = torch.randint(len(labels), (64,), generator=torch.Generator().manual_seed(number))
        return inputs[rows], labels[rows], draw_keep(STAGES, seed=number)

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor, tuple[float, ...]]) -> Tensor:
        return F.cross_entropy(set_keep_(network, batch[2])(batch[0]), batch[1])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return short_run(model, batches, loss, steps=FURTHER, lr=1e-3, weight_decay=0.05, clip=1.0)


@cached(maxsize=12)
def _accuracy(seed: int, by: str, keep: tuple[float, ...]) -> float:
    """Accuracy on the test pictures; `by` may also be "unadapted": by norm, as plainly trained."""
    if by == "unadapted":
        network = SparseViT(1.0).apply(copy.deepcopy(cifar10.trained(swin, steps=STEPS, seed=seed)))
    else:
        network = _adapted(seed, by)
    return cifar10.accuracy(set_keep_(network, keep), cifar10.pictures("test"))


def _over(seed: int, *, than: str) -> float:
    keep = (SPARSE,) * STAGES
    return _accuracy(seed, "norm", keep) - _accuracy(seed, than, keep)


def _searched(seed: int) -> float:
    """Searched shares against the same share in both stages, at its multiply-adds; searched on training pictures."""
    network, inputs, labels = _adapted(seed, "norm"), *cifar10.pictures("train")
    held = inputs[-1000:], labels[-1000:]
    budget = _macs(swin, SPARSE, SHAPE) / _macs(swin, 1.0, SHAPE)
    found = search_keep(
        network, lambda model: cifar10.accuracy(model, held), budget=budget, shape=SHAPE, population=6, generations=2
    )
    return _accuracy(seed, "norm", found) - _accuracy(seed, "norm", (SPARSE,) * STAGES)


def swin_tiny(keep: float | None = None) -> nn.Module:
    """Swin-T at 224 pixels, as timm has it or on a share of its windows."""
    import timm

    model = timm.create_model("swin_tiny_patch4_window7_224")
    return model if keep is None else SparseViT(keep).apply(model)


def _macs(build: Any, keep: float, shape: tuple[int, ...]) -> float:
    return float(count_macs(SparseViT(keep).apply(build()), shape))


def _whole(*, sparse: bool) -> Tensor:
    torch.manual_seed(0)
    model, x = swin().eval(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        return (SparseViT(1.0).apply(model) if sparse else model)(x)


def _gathered(*, gather: bool) -> Tensor:
    """A shifted block of Swin-T's second stage, on a map that its windows do not divide."""
    torch.manual_seed(0)
    from timm.models.swin_transformer import SwinTransformerBlock

    block: Any = SwinTransformerBlock(192, (26, 30), num_heads=6, window_size=7, shift_size=3).eval()
    x = torch.randn(2, 26, 30, 192)
    numbers = places(26, 30, block.window_size, block.shift_size)
    with torch.no_grad():
        return on_windows(block, x, numbers, torch.arange(len(numbers)).expand(2, -1)) if gather else block(x)


CLAIMS = (
    equal(
        "With all windows it is the plain Swin, bit for bit.",
        ours=partial(_whole, sparse=True),
        theirs=partial(_whole, sparse=False),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "All windows gathered, worked on and put back equal the plain block, padding and shift included.",
        ours=partial(_gathered, gather=True),
        theirs=partial(_gathered, gather=False),
        tolerance=1e-6,
        clause=1,
    ),
    faster(
        "Swin-T at 224×224 with 60 % of the windows skipped takes at most 70 % of the time, one picture at once.",
        paper="about 50 % lower latency",
        ours=call(partial(swin_tiny, SPARSE), 1, 3, 224, 224),
        theirs=call(swin_tiny, 1, 3, 224, 224),
        at_least=1 / 0.7,
        clause=2,
    ),
    kept(
        "With 60 % of the windows skipped, those of the largest norm lose less accuracy than random ones.",
        paper="better than random windows",
        quality=partial(_over, than="random"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    faster(
        "Eight pictures at once with 60 % of the windows skipped take at most 70 % of the time.",
        paper="about 50 % lower latency",
        ours=call(partial(swin_tiny, SPARSE), 8, 3, 224, 224),
        theirs=call(swin_tiny, 8, 3, 224, 224),
        at_least=1 / 0.7,
        beyond="latency of a batch",
    ),
    smaller(
        "Swin-T with 60 % of the windows skipped takes 1.7 times fewer multiply-adds; its last stage has one window.",
        paper="60 % window sparsity",
        ours=partial(_macs, swin_tiny, SPARSE, (1, 3, 224, 224)),
        theirs=partial(_macs, swin_tiny, 1.0, (1, 3, 224, 224)),
        at_least=1.7,
        beyond="multiply-adds",
    ),
    kept(
        "With 60 % of the windows skipped, the adapted network is more accurate than the plainly trained one.",
        paper="sparsity-aware adaptation recovers accuracy",
        quality=partial(_over, than="unadapted"),
        at_least=0.0,
        unit="points",
        data=DATA + "; the adapted network has been trained for longer",
        needs=cifar10.NEEDS,
        beyond="adaptation",
    ),
    kept(
        "Searched shares are as accurate as the same share in both stages, at no more multiply-adds.",
        paper="non-uniform sparsity is better",
        quality=_searched,
        at_least=-0.5,
        unit="points",
        data=DATA + "; searched on 1,000 training pictures",
        needs=cifar10.NEEDS,
        beyond="search",
    ),
)
