"""Evidence for FlashSVD: against the same factors with every activation stored, at the shapes of BERT-Base."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from foveal.record import equal, faster, smaller
from foveal.shrink.lowrank.flashsvd import (
    FlashSVDAttention,
    FlashSVDFeedForward,
    attention_reference,
    feed_forward_reference,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, HIDDEN, HEADS, RANK = 768, 3072, 12, 256  # BERT-Base; the rank keeps 42% and 67% of the weights
BATCH, LENGTH = 8, 512


def _prepared(kind: str, *, batch: int = BATCH, length: int = LENGTH, device: str = "cpu") -> tuple[Any, Tensor]:
    """A layer of BERT-Base's size, its weights decomposed, and tokens."""
    torch.manual_seed(0)
    x = torch.randn(batch, length, DIM, device=device)
    layer: nn.Module
    if kind == "feed-forward":
        layer = FlashSVDFeedForward(nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM), rank=RANK)
    else:
        layer = FlashSVDAttention(nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), num_heads=HEADS, rank=RANK)
    return layer.to(device).eval(), x


def _run(layer: Any, x: Tensor, *, tiled: bool) -> Tensor:
    with torch.inference_mode():
        if tiled:
            found: Tensor = layer(x)
            return found
        if isinstance(layer, FlashSVDFeedForward):
            return feed_forward_reference(x, layer.v1, layer.u1, layer.b1, layer.v2, layer.u2, layer.b2)
        weights = layer.v, layer.u, layer.b, layer.v_out, layer.u_out, layer.b_out
        return attention_reference(x, *weights, num_heads=HEADS)


def _result(kind: str, *, tiled: bool, **words: Any) -> Tensor:
    return _run(*_prepared(kind, **words), tiled=tiled).cpu()


def _transient(kind: str, *, tiled: bool) -> float:
    """Peak of the bytes that one call takes from torch's allocator and holds, output included."""
    prepared = _prepared(kind)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        _run(*prepared, tiled=tiled)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    return float(max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))))


def _timed(kind: str, *, tiled: bool) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        return partial(_run, *_prepared(kind), tiled=tiled)

    return prepare


def _claims(kind: str, how: str) -> tuple[Any, ...]:
    return (
        equal(
            f"In tiles, the {kind} layer gives what it gives with every activation stored; two sequences of 100.",
            paper="no loss",
            ours=partial(_result, kind, tiled=True, batch=2, length=100),
            theirs=partial(_result, kind, tiled=False, batch=2, length=100),
            tolerance=1e-4,
            clause=1,
        ),
        smaller(
            f"The {kind} layer needs half of the transient memory at most, 8 sequences of 512, output included.",
            paper="75% less transient memory",
            ours=partial(_transient, kind, tiled=True),
            theirs=partial(_transient, kind, tiled=False),
            at_least=2.0,
            clause=2,
        ),
        faster(
            f"The {kind} layer takes at most 20% more time, 8 sequences of 512.",
            paper="",
            ours=_timed(kind, tiled=True),
            theirs=_timed(kind, tiled=False),
            at_least=1 / 1.2,
            clause=2,
        ),
        equal(
            f"On a GPU the {kind} layer gives what the stored version gives on the processor, {how}.",
            paper="no loss",
            ours=partial(_result, kind, tiled=True, batch=2, length=100, device="cuda"),
            theirs=partial(_result, kind, tiled=False, batch=2, length=100),
            tolerance=1e-3,
            needs=("gpu",),
            clause=3,
        ),
    )


CLAIMS = (*_claims("feed-forward", "with its Triton kernel"), *_claims("attention", "tiled in torch"))
