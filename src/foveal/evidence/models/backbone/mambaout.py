"""Evidence of foveal.models.backbone.mambaout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.models.backbone.mambaout import (
    GatedCNNBlock,
    StateSpace,
    mambaout_base,
    mambaout_femto,
    mambaout_kobe,
    mambaout_small,
    mambaout_tiny,
    use_plain_blocks_,
)
from foveal.record import equal, faster, kept, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable


def _logits(*, plain: bool) -> Tensor:
    torch.manual_seed(0)
    model = mambaout_femto().eval()
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        return (use_plain_blocks_(model) if plain else model)(x)


def _small(*, state: int) -> nn.Module:
    """A small network with Mamba blocks, or one as large without: its hidden channels make up for the state space."""
    model = mambaout_femto(num_classes=10, dims=(24, 48, 72, 96), depths=(1, 1, 2, 1))
    for stage in model.stages:  # type: ignore[union-attr]
        for i, theirs in enumerate(stage.blocks):  # type: ignore[union-attr, arg-type]
            dim = theirs.fc2.out_features
            left_out = 0 if state else sum(p.numel() for p in StateSpace(dim, 4).parameters())
            hidden = int(8 / 3 * dim) + round(left_out / (3 * dim + 2))
            stage.blocks[i] = GatedCNNBlock(dim, expansion=(hidden + 0.5) / dim, state=state)  # type: ignore[union-attr, operator]
    return model


def _without_above_with(seed: int) -> float:
    from foveal.evidence.tasks.cifar10 import accuracy, train_classifier

    without, having = (
        accuracy(train_classifier(lambda state=state: _small(state=state), steps=400, seed=seed))  # type: ignore[misc]
        for state in (0, 4)
    )
    return without - having


def _timed(model: nn.Module, shape: tuple[int, ...]) -> Callable[[], Any]:
    model, x = model.eval(), torch.rand(shape)

    def call() -> Any:
        with torch.inference_mode():
            return model(x)

    return call


def _vim() -> nn.Module:
    from foveal.models.backbone.vim import vim_tiny

    return vim_tiny()


CLAIMS = (
    params("Femto.", paper="7.3 M", model=mambaout_femto, expect=7_304_536),
    params("Kobe.", paper="9.1 M", model=mambaout_kobe, expect=9_141_208),
    params("Tiny.", paper="26.5 M", model=mambaout_tiny, expect=26_545_096),
    params("Small.", paper="48.5 M", model=mambaout_small, expect=48_488_072),
    params("Base.", paper="84.8 M", model=mambaout_base, expect=84_813_092),
    *(
        macs(says, paper=f"{paper} G", model=model, shape=(1, 3, 224, 224), expect=paper * 1e9, tolerance=tolerance)
        for says, model, paper, tolerance in (
            ("Femto at 224×224.", mambaout_femto, 1.2, 0.05),
            ("Kobe at 224×224.", mambaout_kobe, 1.5, 0.01),
            ("Tiny at 224×224.", mambaout_tiny, 4.5, 0.01),
            ("Small at 224×224.", mambaout_small, 9.0, 0.01),
            ("Base at 224×224.", mambaout_base, 15.8, 0.01),
        )
    ),
    equal(
        "timm's femto gives the same logits with the block of this file and the weights of its own.",
        ours=lambda: _logits(plain=True),
        theirs=lambda: _logits(plain=False),
    ),
    faster(
        "A small network takes less time than one as large whose blocks have a state space.",
        paper="no scan",
        ours=lambda: _timed(_small(state=0), (4, 3, 224, 224)),
        theirs=lambda: _timed(_small(state=4), (4, 3, 224, 224)),
    ),
    faster(
        "Kobe takes less time than Vim-Ti, which has as many multiply-adds.",
        paper="no scan",
        ours=lambda: _timed(mambaout_kobe(), (1, 3, 224, 224)),
        theirs=lambda: _timed(_vim(), (1, 3, 224, 224)),
    ),
    kept(
        "As large and without its state space, a small network loses a point at most.",
        paper="nothing is lost, on ImageNet",
        quality=_without_above_with,
        at_least=-1.0,
        unit="points",
        seeds=3,
        data="400 steps on CIFAR-10, the first 2,000 test pictures",
        needs=("minutes", "cifar10_train", "cifar10_test"),
    ),
)
