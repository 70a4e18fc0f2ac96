"""Evidence for ScatterMoE: a loop over experts and padded buffers, both of the same weights and skewed routing.

Loads fall as 1, ½, ⅓, … over the experts. The buffers are as long for each expert as the fullest needs, which drops no
row, so that all compute the same. Memory and time are those of a training step, forward and backward.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.evidence.rivals.padded_experts import draw, loop_mlp, padded_mlp, with_gradients
from foveal.measure.cost import peak_memory
from foveal.nn.scatter_moe import scatter_mlp
from foveal.record import equal, faster, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, DIM, HIDDEN, EXPERTS, TOP_K = 4096, 384, 1536, 16, 2
SIZES = "4,096 tokens of 384 channels, 16 experts, 2 a token"


def _small(layer: Callable[..., Tensor], *, gradients: bool) -> Tensor:
    """A layer with three experts that no row goes to: its output, or its gradients in one row."""
    output, *found = with_gradients(layer, draw(301, 24, 40, EXPERTS, TOP_K, unused=3))
    return torch.cat([t.flatten() / t.abs().max() for t in found]) if gradients else output


def _step(layer: Callable[..., Tensor]) -> None:
    with_gradients(layer, draw(ROWS, DIM, HIDDEN, EXPERTS, TOP_K))


def _peak(layer: Callable[..., Tensor]) -> float:
    return float(peak_memory(partial(_step, layer)))


def _timed(layer: Callable[..., Tensor], device: str = "cpu") -> Callable[[], None]:
    given = {name: t.to(device) for name, t in draw(ROWS, DIM, HIDDEN, EXPERTS, TOP_K).items()}

    def run() -> None:
        with_gradients(layer, given)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _kept_bytes() -> Tensor:
    """Bytes that the layer keeps for the backward pass, each storage once."""
    given = draw(301, 24, 40, EXPERTS, TOP_K)
    leaves = {name: t.requires_grad_() if t.is_floating_point() else t for name, t in given.items()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = scatter_mlp(**leaves)
    assert y.requires_grad
    return torch.tensor(float(sum(t.untyped_storage().nbytes() for t in found.values())))


def _modelled_bytes(rows: int = 301, dim: int = 24, hidden: int = 40) -> Tensor:
    """x, the hidden rows, weights, gates, and two indices an assignment."""
    given = rows * TOP_K
    numbers = rows * dim + given * hidden + 2 * EXPERTS * dim * hidden + given
    return torch.tensor(float(4 * numbers + 8 * 2 * given))


CLAIMS = (
    equal(
        "The output equals the loop over experts, three of them without rows.",
        ours=partial(_small, scatter_mlp, gradients=False),
        theirs=partial(_small, loop_mlp, gradients=False),
        clause=1,
    ),
    equal(
        "So do the gradients of rows, weights and gates, each over its largest value.",
        ours=partial(_small, scatter_mlp, gradients=True),
        theirs=partial(_small, loop_mlp, gradients=True),
        clause=1,
    ),
    smaller(
        f"A training step takes less memory than with padded buffers, {SIZES}, measured in a process each.",
        paper="a lower footprint than MegaBlocks",
        ours=partial(_peak, scatter_mlp),
        theirs=partial(_peak, padded_mlp),
        clause=2,
    ),
    equal(
        "What is kept for the backward pass is x, the hidden rows, weights, gates and indices: no padding, no copy.",
        ours=_kept_bytes,
        theirs=_modelled_bytes,
        tolerance=0.0,
        beyond="no padding or extra copies",
    ),
    faster(
        f"A training step takes no more time than the loop over experts, {SIZES}.",
        paper="",
        ours=partial(_timed, scatter_mlp),
        theirs=partial(_timed, loop_mlp),
        at_least=1.0,
        clause=3,
    ),
    faster(
        f"On a GPU a training step takes less time than with padded buffers, {SIZES}.",
        paper="a higher throughput than MegaBlocks",
        ours=partial(_timed, scatter_mlp, "cuda"),
        theirs=partial(_timed, padded_mlp, "cuda"),
        needs=("gpu",),
        clause=4,
    ),
)
