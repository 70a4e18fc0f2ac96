"""Evidence for MegaBlocks: a loop over tokens, and buffers padded to the fullest expert under skewed routing.

Loads fall as 1, ½, ⅓, … over the experts. The buffers drop no token either, so that both compute the same: it is what
Tutel does when its capacity follows the load, the paper's rival.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.evidence.rivals.padded_experts import draw, padded_mlp, skewed, with_gradients
from foveal.nn.megablocks import megablocks_mlp, padded_sizes
from foveal.ops.experts import group_rows
from foveal.ops.experts.reference import expert_mlp_reference
from foveal.record import bound, equal, faster

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, DIM, HIDDEN, EXPERTS, TOP_K, BLOCK = 4096, 384, 1536, 16, 2, 128
SIZES = "4,096 tokens of 384 channels, 16 experts, 2 a token"


def _blocks(x: Tensor, w1: Tensor, w2: Tensor, gates: Tensor, experts: Tensor, *, block: int = BLOCK) -> Tensor:
    """Ours with the second weights the other way around, as the rivals take them."""
    return megablocks_mlp(x, w1, w2.mT, gates, experts, block=block)


def _small(layer: Callable[..., Tensor], *, gradients: bool) -> Tensor:
    """A layer with three experts that no token goes to: its output, or its gradients in one row."""
    output, *found = with_gradients(layer, draw(101, 24, 40, EXPERTS, TOP_K, unused=3))
    return torch.cat([t.flatten() / t.abs().max() for t in found]) if gradients else output


def _most_padding(seeds: int = 20) -> float:
    """The most rows that fill up an expert, over routings of several sizes and numbers of unused experts."""
    most = 0
    for seed in range(seeds):
        _, experts = skewed(97 * (seed + 1), EXPERTS, TOP_K, unused=seed % 5, seed=seed)
        sizes = group_rows(experts, EXPERTS).sizes
        most = max(most, *(after - size for size, after in zip(sizes, padded_sizes(sizes, BLOCK), strict=True)))
    return float(most)


def _timed(layer: Callable[..., Tensor], device: str = "cpu") -> Callable[[], None]:
    given = {name: t.to(device) for name, t in draw(ROWS, DIM, HIDDEN, EXPERTS, TOP_K).items()}

    def run() -> None:
        with_gradients(layer, given)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _on(device: str) -> Tensor:
    given = {name: t.to(device) for name, t in draw(301, 128, 256, EXPERTS, TOP_K, unused=3).items()}
    return torch.cat([(t / t.abs().max()).flatten().cpu() for t in with_gradients(_blocks, given)])


CLAIMS = (
    equal(
        "The output equals a loop over tokens and their experts, three of which are empty.",
        ours=partial(_small, partial(_blocks, block=8), gradients=False),
        theirs=partial(_small, expert_mlp_reference, gradients=False),
        clause=1,
    ),
    equal(
        "So do the gradients of tokens, weights and gates, each over its largest value.",
        ours=partial(_small, partial(_blocks, block=8), gradients=True),
        theirs=partial(_small, expert_mlp_reference, gradients=True),
        clause=1,
    ),
    bound(
        "No expert is filled up by a whole block of 128 rows, over 20 routings of 97 to 1,940 tokens.",
        paper="up to the nearest multiple of the block",
        value=_most_padding,
        at_least=1,
        at_most=BLOCK - 1,
        unit="rows",
        clause=2,
    ),
    faster(
        f"A training step takes less time than with padded buffers, {SIZES}.",
        paper="up to 40% faster than Tutel, training end to end",
        ours=partial(_timed, _blocks),
        theirs=partial(_timed, padded_mlp),
        clause=3,
    ),
    equal(
        "On a GPU, where torch's own products compute it, output and gradients match those of the CPU.",
        ours=partial(_on, "cuda"),
        theirs=partial(_on, "cpu"),
        tolerance=1e-3,
        needs=("gpu",),
        clause=4,
    ),
)
