"""Evidence for EfficientViM: its blocks in timm's networks, and its mixer against one that mixes in the tokens."""

from __future__ import annotations

from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.models.backbone.efficientvim import (
    HiddenStateMixer,
    efficientvim_m1,
    efficientvim_m2,
    efficientvim_m3,
    efficientvim_m4,
    summed_up,
    use_plain_blocks_,
)
from foveal.ops.ssd import ssd_noncausal
from foveal.record import equal, faster, macs, params, smaller


class _TokenMixer(HiddenStateMixer):
    """The same layer with channels mixed per token, before the sum and after the readout, as in VSSD."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.BCdt_proj(x.flatten(2)).unflatten(2, x.shape[2:])
        weights, reading, dt = self.dw(maps).flatten(2).chunk(3, dim=1)
        tokens, gate = self.hz_proj(x.flatten(2)).chunk(2, dim=1)
        h = summed_up(tokens, weights, dt + self.A[:, None])
        y = h @ reading
        return self.out_proj(y * F.silu(gate) + y * self.D).view(x.shape), h


def _cost(mixer: nn.Module) -> float:
    return float(count_macs(mixer, (1, 128, 14, 14)))


def _logits(*, plain: bool) -> Tensor:
    torch.manual_seed(0)
    model = efficientvim_m1().eval()
    with torch.inference_mode():
        for value in model.parameters():  # batch norms initialised to 0 would hide everything before them
            value.add_(torch.randn(value.shape) * 0.05)
        x = torch.randn(2, 3, 160, 96)
        return (use_plain_blocks_(model) if plain else model)(x)


def _unmixed(*, by_duality: bool) -> Tensor:
    """Sum and readout without mixing in between, as here or as one head of VSSD's operator."""
    generator = torch.Generator().manual_seed(0)
    tokens, weights, reading, importance = (torch.randn(2, count, 35, generator=generator) for count in (8, 6, 6, 6))
    if not by_duality:
        return summed_up(tokens, weights, importance) @ reading
    # (B, L, 1, C) and (B, L, 1, N)
    x, weights_in, weights_out = (
        t.transpose(1, 2)[:, :, None] for t in (tokens, importance.softmax(-1) * weights, reading)
    )
    y = ssd_noncausal(x, torch.ones(2, 35, 1), -torch.ones(1), weights_in, weights_out)
    return y.flatten(2).transpose(1, 2)


def _with_plain_blocks(name: str) -> nn.Module:
    return use_plain_blocks_(SIZES[name][0]())


# Network, timm's count of its parameters, the count that the paper prints, and the side of its input.
SIZES = {
    "M1": (efficientvim_m1, 6_679_458, "6.7 M", "239 M", 224),
    "M2": (efficientvim_m2, 13_903_842, "13.9 M", "355 M", 224),
    "M3": (efficientvim_m3, 16_604_174, "16.6 M", "656 M", 224),
    "M4": (efficientvim_m4, 19_606_505, "19.6 M", "1111 M", 256),
}

CLAIMS = (
    *(
        params(
            f"{name} with the blocks of this file.",
            paper="timm",
            model=partial(_with_plain_blocks, name),
            expect=count,
            clause=2,
        )
        for name, (_, count, *_) in SIZES.items()
    ),
    *(
        params(f"{name}.", paper=size, model=model, expect=size, beyond="sizes as printed")
        for name, (model, _, size, *_) in SIZES.items()
    ),
    *(
        macs(
            f"{name} at {side}×{side}.",
            paper=cost,
            model=model,
            shape=(1, 3, side, side),
            expect=cost,
            beyond="multiply-adds as printed",
        )
        for name, (model, _, _, cost, side) in SIZES.items()
    ),
    equal(
        "timm's M1 gives the same logits with the blocks of this file and the weights of its own.",
        ours=lambda: _logits(plain=True),
        theirs=lambda: _logits(plain=False),
        clause=1,
    ),
    equal(
        "Without the mixing in between, the two products are the state space of VSSD with one head.",
        ours=lambda: _unmixed(by_duality=False),
        theirs=lambda: _unmixed(by_duality=True),
        beyond="a state space duality with one head",
    ),
    smaller(
        "The layer of M2's first stage takes little more than half the multiply-adds of mixing in the tokens.",
        paper="O(N·C²) in place of O(L·C²)",
        ours=lambda: _cost(HiddenStateMixer(128, 49)),
        theirs=lambda: _cost(_TokenMixer(128, 49)),
        at_least=1.8,
        beyond="channels are mixed in N states, not L tokens",
    ),
    faster(
        "That layer takes less time, too.",
        paper="faster, on a GPU",
        ours=call(partial(HiddenStateMixer, 128, 49), 16, 128, 14, 14),
        theirs=call(partial(_TokenMixer, 128, 49), 16, 128, 14, 14),
        clause=3,
    ),
    faster(
        "M2 takes less time than SHViT-S2, which is as accurate.",
        paper="faster, on a GPU",
        ours=call(efficientvim_m2, 2, 3, 224, 224),
        theirs=call(partial(timm.create_model, "shvit_s2"), 2, 3, 224, 224),
        beyond="faster than SHViT at equal accuracy",
    ),
)
