"""Evidence for LPViT: packed layers against masked ones, time, and a small ViT pruned without training.

The rival keeps as many blocks of the same size, those with the largest mean magnitude, over all layers together or
evenly in each layer, whichever is more accurate.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10, distilling
from foveal.ops.block_sparse import block_linear, pack_blocks
from foveal.record import equal, faster, kept
from foveal.shrink.prune.lpvit import LPViT, block_sums, packed_
from foveal.shrink.prune.masks import fine_mask, mask_, masked

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 600
KEEP, BLOCK = 0.5, (16, 16)
DATA = f"ViT of {STEPS} steps of 64 on CIFAR-10, half of its blocks of 16×16 kept, the first 2,000 test pictures"


def _vit() -> nn.Module:
    return small_vit(dim=64, depth=4, num_heads=2)


@cached(maxsize=4)
def _trained(seed: int) -> nn.Module:
    return distilling.teacher(partial(small_vit, dim=64, depth=4, num_heads=2), steps=STEPS, seed=seed)


def _pruned(seed: int, *, correct: bool) -> nn.Module:
    inputs = cifar10.pictures("train")[0][256 * seed :][:256]
    step = LPViT(keep=KEEP, block=BLOCK, correct=correct, seed=seed)
    return step.apply(copy.deepcopy(_trained(seed)), inputs)


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach()


def _by_magnitude(seed: int, *, evenly: bool) -> nn.Module:
    """The same number of blocks in the same layers, by mean magnitude."""
    model, masks = copy.deepcopy(_trained(seed)), masked(_pruned(seed, correct=False))
    layers = dict(model.named_modules())
    scores = {name: block_sums(_weight(layers[name]).abs(), BLOCK) for name in masks}
    blocks = {name: block_sums(mask.float(), BLOCK) > 0 for name, mask in masks.items()}
    share = float(torch.cat(list(blocks.values())).float().mean())
    together = fine_mask(torch.cat(list(scores.values())), share).split([len(s) for s in scores.values()])
    for (name, score), mask in zip(scores.items(), together, strict=True):
        stays = fine_mask(score, share) if evenly else mask
        grid = stays.view(masks[name].shape[0] // BLOCK[0], -1)
        masks[name] = grid.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)
    return mask_(model, masks)


@cached(maxsize=16)
def _accuracy(seed: int, kind: str) -> float:
    if kind == "magnitude":
        return max(cifar10.accuracy(_by_magnitude(seed, evenly=evenly)) for evenly in (True, False))
    return cifar10.accuracy(_pruned(seed, correct=kind == "corrected"))


def _outputs(*, packed: bool) -> Tensor:
    """A ViT of random weights with half of its blocks, packed or under masks."""
    torch.manual_seed(0)
    inputs = torch.randn(8, 3, 32, 32)
    model = LPViT(keep=KEEP, block=BLOCK).apply(_vit(), inputs)
    with torch.inference_mode():
        return (packed_(model, BLOCK) if packed else model)(inputs)


def _layer() -> tuple[Tensor, Tensor]:
    """DeiT-B's first MLP layer with 30% of its blocks of 32×32, and the tokens of a picture."""
    generator = torch.Generator().manual_seed(0)
    mask = fine_mask(torch.rand(3072 // 32, 768 // 32, generator=generator), 0.3)
    weight = torch.randn(3072, 768, generator=generator) / 28
    weight = weight * mask.repeat_interleave(32, 0).repeat_interleave(32, 1)
    return torch.randn(197, 768, generator=generator), weight


def _timed(*, packed: bool) -> Callable[[], Tensor]:
    x, weight = _layer()
    blocks = pack_blocks(weight, (32, 32))

    def run() -> Tensor:
        with torch.inference_mode():
            return block_linear(x, blocks) if packed else F.linear(x, weight)

    return run


def _layer_outputs(*, packed: bool) -> Tensor:
    return _timed(packed=packed)()


CLAIMS = (
    equal(
        "A layer of DeiT-B's size with 30% of its blocks equals the masked dense layer.",
        ours=partial(_layer_outputs, packed=True),
        theirs=partial(_layer_outputs, packed=False),
        tolerance=1e-5,
        clause=1,
    ),
    equal(
        "A packed ViT computes what it computed under masks.",
        ours=partial(_outputs, packed=True),
        theirs=partial(_outputs, packed=False),
        tolerance=1e-5,
        clause=1,
    ),
    faster(
        "A layer of DeiT-B with 70% of its blocks zero, 197 tokens, against torch's dense layer, on two threads.",
        paper="1.79× on a GPU, whole DeiT-B",
        ours=partial(_timed, packed=True),
        theirs=partial(_timed, packed=False),
        at_least=1.0,
        threads=2,
        clause=2,
    ),
    kept(
        "Blocks chosen by second-order distortion, not corrected, leave a small ViT more accurate than magnitude.",
        paper="",
        quality=lambda seed: _accuracy(seed, "second order") - _accuracy(seed, "magnitude"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "With the weights that stay corrected it is more accurate again.",
        paper="weights are corrected after pruning",
        quality=lambda seed: _accuracy(seed, "corrected") - _accuracy(seed, "second order"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        beyond="correction of the weights",
    ),
)
