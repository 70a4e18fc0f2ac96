"""Evidence of foveal.models.backbone.efficientvim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

if TYPE_CHECKING:
    from collections.abc import Callable


class _TokenMixer(HiddenStateMixer):
    """The same layer with its channels mixed before the sum and after the reading, in each token, as in VSSD."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.BCdt_proj(x.flatten(2)).unflatten(2, x.shape[2:])
        weights, reading, dt = self.dw(maps).flatten(2).chunk(3, dim=1)
        tokens, gate = self.hz_proj(x.flatten(2)).chunk(2, dim=1)
        h = summed_up(tokens, weights, dt + self.A[:, None])
        y = h @ reading
        return self.out_proj(y * F.silu(gate) + y * self.D).view(x.shape), h


def _cost(mixer: nn.Module) -> float:
    from foveal.measure.cost import count_macs

    return float(count_macs(mixer, (1, 128, 14, 14)))


def _logits(*, plain: bool) -> Tensor:
    torch.manual_seed(0)
    model = efficientvim_m1().eval()
    with torch.inference_mode():
        for value in model.parameters():  # batch norms that begin at 0 would hide what is before them
            value.add_(torch.randn(value.shape) * 0.05)
        x = torch.randn(2, 3, 160, 96)
        return (use_plain_blocks_(model) if plain else model)(x)


def _unmixed(*, by_duality: bool) -> Tensor:
    """Sum up and read without mixing in between, as here or as one head of VSSD's operator."""
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


def _timed(model: nn.Module, shape: tuple[int, ...]) -> Callable[[], Any]:
    model, x = model.eval(), torch.rand(shape)

    def call() -> Any:
        with torch.inference_mode():
            return model(x)

    return call


CLAIMS = (
    params("M1.", paper="6.7 M", model=efficientvim_m1, expect=6_679_458),
    params("M2.", paper="13.9 M", model=efficientvim_m2, expect=13_903_842),
    params("M3.", paper="16.6 M", model=efficientvim_m3, expect=16_604_174),
    params("M4.", paper="19.6 M", model=efficientvim_m4, expect=19_606_505),
    *(
        macs(says, paper=f"{paper} M", model=model, shape=shape, expect=paper * 1e6, tolerance=0.02)
        for says, model, shape, paper in (
            ("M1 at 224×224.", efficientvim_m1, (1, 3, 224, 224), 239),
            ("M2 at 224×224.", efficientvim_m2, (1, 3, 224, 224), 355),
            ("M3 at 224×224.", efficientvim_m3, (1, 3, 224, 224), 656),
            ("M4 at 256×256.", efficientvim_m4, (1, 3, 256, 256), 1111),
        )
    ),
    equal(
        "timm's M1 gives the same logits with the blocks of this file and the weights of its own.",
        ours=lambda: _logits(plain=True),
        theirs=lambda: _logits(plain=False),
    ),
    equal(
        "Without the mixing in between, the two products are the state space of VSSD with one head.",
        ours=lambda: _unmixed(by_duality=False),
        theirs=lambda: _unmixed(by_duality=True),
    ),
    smaller(
        "The layer of M2's first stage takes little more than half the multiply-adds of mixing in the tokens.",
        paper="O(N·C²) in place of O(L·C²)",
        ours=lambda: _cost(HiddenStateMixer(128, 49)),
        theirs=lambda: _cost(_TokenMixer(128, 49)),
        at_least=1.8,
    ),
    faster(
        "That layer takes less time, too.",
        paper="faster, on a GPU",
        ours=lambda: _timed(HiddenStateMixer(128, 49), (16, 128, 14, 14)),
        theirs=lambda: _timed(_TokenMixer(128, 49), (16, 128, 14, 14)),
    ),
    faster(
        "M2 takes less time than SHViT-S2, which is as accurate.",
        paper="faster, on a GPU",
        ours=lambda: _timed(efficientvim_m2(), (2, 3, 224, 224)),
        theirs=lambda: _timed(timm.create_model("shvit_s2"), (2, 3, 224, 224)),
    ),
)
