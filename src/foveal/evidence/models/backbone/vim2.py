"""Evidence for ViM2: channel mixers against token mixers of the transposed map and against a network without them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10
from foveal.measure.cost import count_macs
from foveal.models.backbone.vim2 import ChannelMixer, MixerStage, ViM2, vim2_base, vim2_small, vim2_tiny
from foveal.nn.ss2d import SS2D
from foveal.record import equal, faster, grows, params

if TYPE_CHECKING:
    from collections.abc import Callable


def _channel_mixer() -> tuple[ChannelMixer, Tensor]:
    torch.manual_seed(0)
    return ChannelMixer(4, state=3, expand=2), torch.randn(2, 6, 8, 12)


def _mixed() -> Tensor:
    mixer, x = _channel_mixer()
    return mixer(x)


def _transposed() -> Tensor:
    """For each window: transpose, mix as if channels were tokens, transpose back."""
    mixer, x = _channel_mixer()
    out = torch.empty_like(x)
    for i in range(0, 8, 4):
        for j in range(0, 12, 4):
            # (B, 16 tokens, 6 channels), as a token mixer would see it
            tokens = x[:, :, i : i + 4, j : j + 4].flatten(2).transpose(1, 2)
            y = mixer.mamba(tokens.transpose(1, 2)).transpose(1, 2)
            out[:, :, i : i + 4, j : j + 4] = y.transpose(1, 2).unflatten(2, (4, 4))
    return out


def _chain(*, averaged: bool) -> Tensor:
    torch.manual_seed(0)
    stage = ViM2(dim=8, depths=(4,), state=2, window=4).stages[0][0].eval()  # type: ignore[index, union-attr]
    assert isinstance(stage, MixerStage)
    x = torch.randn(2, 8, 8, 12)
    if averaged:
        return stage(x)
    for mixer in stage.mixers:
        x = mixer(x)
    return x


def _macs(side: int) -> float:
    """Multiply-adds of a token mixer and a channel mixer for 32 channels of side×side positions."""
    return float(count_macs(nn.Sequential(SS2D(32), ChannelMixer()), (1, 32, side, side)))


def _channel_macs(dim: int) -> float:
    """Multiply-adds of a channel mixer for 28×28 positions."""
    return float(count_macs(ChannelMixer(), (1, dim, 28, 28)))


def _timed(dim: int, side: int, times: int) -> Callable[[], Any]:
    mixer, x = ChannelMixer().eval(), torch.randn(1, dim, side, side)

    def call() -> None:
        with torch.inference_mode():
            for _ in range(times):
                mixer(x)

    return call


_small = partial(ViM2, depths=(2, 2), state=4, window=4, num_classes=10)

CLAIMS = (
    params(
        "ViM2-T with the blocks of the paper's table.",
        paper="20 M",
        model=vim2_tiny,
        expect="20 M",
        beyond="sizes that the paper prints",
    ),
    params(
        "ViM2-S with the blocks of the paper's table.",
        paper="43 M",
        model=vim2_small,
        expect="43 M",
        beyond="sizes that the paper prints",
    ),
    params(
        "ViM2-B with the blocks of the paper's table.",
        paper="74 M",
        model=vim2_base,
        expect="74 M",
        beyond="sizes that the paper prints",
    ),
    equal(
        "The channel mixer gives what a token mixer gives for the transposed map, window by window.",
        ours=_mixed,
        theirs=_transposed,
        tolerance=1e-6,
        clause=1,
    ),
    equal(
        "With weights that pick the last output a stage is a plain chain of mixers, bit for bit.",
        ours=lambda: _chain(averaged=True),
        theirs=lambda: _chain(averaged=False),
        tolerance=0.0,
        clause=2,
    ),
    grows(
        "The multiply-adds of both mixers grow as the tokens do.",
        paper="linear",
        cost=_macs,
        sizes=(28, 56, 112),
        of=lambda side: side**2,
        exponent=(0.99, 1.01),
        beyond="linear in tokens",
    ),
    grows(
        "Those of the channel mixer grow as the channels do.",
        paper="linear",
        cost=_channel_macs,
        sizes=(32, 64, 128),
        exponent=(0.99, 1.01),
        beyond="linear in channels",
    ),
    faster(
        "The channel mixer takes at most a fifth longer for four times the tokens than for a quarter of them four "
        "times over.",
        paper="linear",
        ours=lambda: _timed(64, 56, 1),
        theirs=lambda: _timed(64, 28, 4),
        at_least=1 / 1.2,
        threads=1,
        beyond="linear in tokens",
    ),
    faster(
        "It takes at most a fifth longer for four times the channels than for a quarter of them four times over.",
        paper="linear",
        ours=lambda: _timed(256, 28, 1),
        theirs=lambda: _timed(64, 28, 4),
        at_least=1 / 1.2,
        threads=1,
        beyond="linear in channels",
    ),
    cifar10.better(
        partial(_small, dim=16),
        "With channel mixers a small network is more accurate than one of token mixers alone that is 5 % larger.",
        than=partial(_small, dim=17, mix_channels=False),
        steps=500,
        paper="above VMamba on ImageNet",
        clause=3,
    ),
)
