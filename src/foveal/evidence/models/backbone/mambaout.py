"""Evidence for MambaOut: its block in timm's networks, and small networks with and without a state space."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
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
from foveal.models.backbone.vim import vim_tiny
from foveal.record import equal, faster, macs, params


def _logits(*, plain: bool) -> Tensor:
    torch.manual_seed(0)
    model = mambaout_femto().eval()
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        return (use_plain_blocks_(model) if plain else model)(x)


def with_states(state: int) -> nn.Module:
    """A small network with Mamba blocks, or one of the same size without, with more hidden channels instead.

    Args:
        state: state size D; 0 for no state space.

    Returns:
        timm's network with the blocks of `foveal.models.backbone.mambaout`.
    """
    model: Any = mambaout_femto(num_classes=10, dims=(24, 48, 72, 96), depths=(1, 1, 2, 1))
    for stage in model.stages:
        for i, theirs in enumerate(stage.blocks):
            dim = theirs.fc2.out_features
            left_out = 0 if state else sum(p.numel() for p in StateSpace(dim, 4).parameters())
            hidden = int(8 / 3 * dim) + round(left_out / (3 * dim + 2))
            stage.blocks[i] = GatedCNNBlock(dim, expansion=(hidden + 0.5) / dim, state=state)
    return model


without, having = partial(with_states, 0), partial(with_states, 4)

SIZES = (
    ("Femto", mambaout_femto, "7.30 M", "1.2 G"),
    ("Kobe", mambaout_kobe, "9.1 M", "1.5 G"),
    ("Tiny", mambaout_tiny, "26.5 M", "4.5 G"),
    ("Small", mambaout_small, "48.5 M", "9.0 G"),
    ("Base", mambaout_base, "84.8 M", "15.8 G"),
)

CLAIMS = (
    params("Femto.", paper="7.30 M", model=mambaout_femto, expect="7.30 M", clause=2),
    *(
        params(f"{name}.", paper=size, model=model, expect=size, beyond="sizes as printed")
        for name, model, size, _ in SIZES[1:]
    ),
    *(
        macs(
            f"{name} at 224×224.",
            paper=cost,
            model=model,
            shape=(1, 3, 224, 224),
            expect=cost,
            beyond="multiply-adds as printed",
        )
        for name, model, _, cost in SIZES
    ),
    equal(
        "timm's femto gives the same logits with the block of this file and the weights of its own.",
        ours=lambda: _logits(plain=True),
        theirs=lambda: _logits(plain=False),
        clause=1,
    ),
    faster(
        "A small network takes less time than one as large whose blocks have a state space.",
        paper="no scan",
        ours=call(without, 4, 3, 224, 224),
        theirs=call(having, 4, 3, 224, 224),
        clause=3,
    ),
    faster(
        "Kobe takes less time than Vim-Ti, which has as many multiply-adds.",
        paper="no scan",
        ours=call(mambaout_kobe, 1, 3, 224, 224),
        theirs=call(vim_tiny, 1, 3, 224, 224),
        beyond="faster than a visual Mamba of equal multiply-adds",
    ),
    cifar10.better(
        without,
        "As large and without its state space, a small network loses a point at most.",
        than=having,
        steps=400,
        paper="nothing is lost, on ImageNet",
        by=-1.0,
        clause=3,
    ),
)
