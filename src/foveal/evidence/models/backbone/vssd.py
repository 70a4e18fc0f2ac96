"""Evidence of foveal.models.backbone.vssd."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveal.models.backbone.vssd import VSSD, vssd_base, vssd_micro, vssd_small, vssd_tiny
from foveal.ops.ssd import ssd, ssd_noncausal
from foveal.record import equal, faster, kept, macs, params

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
    """The sum over the tokens up to each one, and that over those from each one on, less the one counted twice."""
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


def _small(*, causal: bool) -> VSSD:
    return VSSD(16, (1, 1, 2, 1), (2, 2, 4, 4), state=16, mlp_ratio=2, num_classes=10, causal=causal)


def _above_causal(seed: int) -> float:
    from foveal.evidence.tasks.cifar10 import accuracy, train_classifier

    without, ordered = (
        accuracy(train_classifier(lambda causal=causal: _small(causal=causal), steps=400, seed=seed))  # type: ignore[misc]
        for causal in (False, True)
    )
    return without - ordered


CLAIMS = (
    params("Micro.", paper="14 M", model=vssd_micro, expect=13_512_964),
    params("Tiny.", paper="24 M", model=vssd_tiny, expect=24_270_724),
    params("Small.", paper="40 M", model=vssd_small, expect=40_075_650),
    params("Base.", paper="89 M", model=vssd_base, expect=88_823_151),
    *(
        macs(
            f"{name} at 224×224; the paper prints 3 to 4 % less.",
            paper=f"{paper} G",
            model=model,
            shape=(1, 3, 224, 224),
            expect=paper * 1e9,
            tolerance=0.05,
        )
        for name, model, paper in (
            ("Micro", vssd_micro, 2.3),
            ("Tiny", vssd_tiny, 4.5),
            ("Small", vssd_small, 7.4),
            ("Base", vssd_base, 16.1),
        )
    ),
    equal(
        "The two products give what a loop over all pairs of tokens gives.",
        ours=lambda: ssd_noncausal(**_tokens()),
        theirs=lambda: ssd_noncausal(**_tokens(), backend="reference"),
    ),
    equal(
        "They give what a scan forward and one back give together, each token counted once.",
        ours=lambda: ssd_noncausal(**_tokens()),
        theirs=_both_ways,
    ),
    equal(
        "Tokens in another order give the same outputs in that order.",
        ours=lambda: _shuffled(after=False),
        theirs=lambda: _shuffled(after=True),
    ),
    faster(
        "At 4,096 tokens it takes half the time of Mamba-2's causal form at most, both as products in torch.",
        paper="20 to 50 % less time in training",
        ours=lambda: _timed(ssd_noncausal),
        theirs=lambda: _timed(partial(ssd, backend="eager")),
        at_least=2.0,
    ),
    kept(
        "Without order a small network is at least as accurate as the same one with Mamba-2's causal mixers.",
        paper="above causal SSD on ImageNet",
        quality=_above_causal,
        at_least=0.0,
        unit="points",
        seeds=3,
        data="400 steps on CIFAR-10, the first 2,000 test pictures",
        needs=("minutes", "cifar10_train", "cifar10_test"),
    ),
)
