"""Evidence for VSSD: the non-causal sum against loops, and against Mamba-2's causal form in time and accuracy."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveal.evidence.tasks import cifar10
from foveal.models.backbone.vssd import VSSD, vssd_base, vssd_micro, vssd_small, vssd_tiny
from foveal.ops.ssd import ssd, ssd_noncausal
from foveal.record import equal, faster, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable


def _tokens(length: int = 29, *, heads: int = 4, channels: int = 8, state: int = 6) -> dict[str, Any]:
    torch.manual_seed(0)
    weights = {name: torch.randn(2, length, 1, state) for name in ("B", "C")}
    return {
        "x": torch.randn(2, length, heads, channels),
        "dt": torch.rand(2, length, heads),
        "A": -torch.rand(heads) - 0.5,
        **weights,
        "D": torch.randn(heads),
    }


def _both_ways() -> Tensor:
    """The sum over the tokens up to each one plus the sum from each one on, minus the token counted twice."""
    t = _tokens()
    outer = (-t["A"] * t["dt"])[..., None, None] * t["x"][..., None] * t["B"][:, :, :, None]
    state = outer.cumsum(1) + outer.flip(1).cumsum(1).flip(1) - outer
    return (state * t["C"][:, :, :, None]).sum(-1) + t["D"][:, None] * t["x"]


def _shuffled(*, after: bool) -> Tensor:
    t = _tokens()
    order = torch.randperm(29, generator=torch.Generator().manual_seed(1))
    if after:
        return ssd_noncausal(**t)[:, order]
    return ssd_noncausal(**{name: value[:, order] if value.ndim > 1 else value for name, value in t.items()})


def _timed(run: Callable[..., Any]) -> Callable[[], Any]:
    t = _tokens(4096, heads=4, channels=64, state=64)

    def call() -> Any:
        with torch.inference_mode():
            return run(**t)

    return call


_small = partial(VSSD, 16, (1, 1, 2, 1), (2, 2, 4, 4), state=16, mlp_ratio=2, num_classes=10)

CLAIMS = (
    params("Micro.", paper="14 M", model=vssd_micro, expect="14 M", beyond="sizes that the paper prints"),
    params("Tiny.", paper="24 M", model=vssd_tiny, expect="24 M", beyond="sizes that the paper prints"),
    params("Small.", paper="40 M", model=vssd_small, expect="40 M", beyond="sizes that the paper prints"),
    params("Base.", paper="89 M", model=vssd_base, expect="89 M", beyond="sizes that the paper prints"),
    macs(
        "Micro at 224×224.",
        paper="2.3 G",
        model=vssd_micro,
        shape=(1, 3, 224, 224),
        expect="2.3 G",
        beyond="cost that the paper prints",
    ),
    macs(
        "Tiny at 224×224.",
        paper="4.5 G",
        model=vssd_tiny,
        shape=(1, 3, 224, 224),
        expect="4.5 G",
        beyond="cost that the paper prints",
    ),
    macs(
        "Small at 224×224.",
        paper="7.4 G",
        model=vssd_small,
        shape=(1, 3, 224, 224),
        expect="7.4 G",
        beyond="cost that the paper prints",
    ),
    macs(
        "Base at 224×224.",
        paper="16.1 G",
        model=vssd_base,
        shape=(1, 3, 224, 224),
        expect="16.1 G",
        beyond="cost that the paper prints",
    ),
    equal(
        "The two products give what a loop over all pairs of tokens gives.",
        ours=lambda: ssd_noncausal(**_tokens()),
        theirs=lambda: ssd_noncausal(**_tokens(), backend="reference"),
        clause=1,
    ),
    equal(
        "They give what a scan forward and one back give together, each token counted once.",
        ours=lambda: ssd_noncausal(**_tokens()),
        theirs=_both_ways,
        beyond="equals the sum of a scan forward and one back",
    ),
    equal(
        "Tokens in another order give the same outputs in that order.",
        ours=lambda: _shuffled(after=False),
        theirs=lambda: _shuffled(after=True),
        clause=2,
    ),
    faster(
        "At 4,096 tokens it takes half the time of Mamba-2's causal form at most, both as products in torch.",
        paper="20 to 50 % less time in training",
        ours=lambda: _timed(ssd_noncausal),
        theirs=lambda: _timed(partial(ssd, backend="eager")),
        at_least=2.0,
        clause=3,
    ),
    cifar10.better(
        _small,
        "Without order a small network is at least as accurate as the same one with Mamba-2's causal mixers.",
        than=partial(_small, causal=True),
        steps=350,
        paper="above causal SSD on ImageNet",
        beyond="above causal state space duality",
    ),
)
