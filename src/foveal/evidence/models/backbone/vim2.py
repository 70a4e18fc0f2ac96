"""Evidence of foveal.models.backbone.vim2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.models.backbone.vim2 import ChannelMixer, MixerStage, ViM2, vim2_base, vim2_small, vim2_tiny
from foveal.nn.ss2d import SS2D
from foveal.record import equal, faster, kept, params

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _channel_mixer() -> tuple[ChannelMixer, Tensor]:
    torch.manual_seed(0)
    return ChannelMixer(4, state=3, expand=2), torch.randn(2, 6, 8, 12)


def _mixed() -> Tensor:
    mixer, x = _channel_mixer()
    return mixer(x)


def _transposed() -> Tensor:
    """Window by window: transpose, mix as if channels were tokens, transpose back."""
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


def _costs(sizes: Sequence[tuple[int, int]], *, tokens: bool) -> Tensor:
    """Multiply-adds for (C, side), over the first: of both mixers, or of the channel mixer."""
    from foveal.measure.cost import count_macs

    found = [
        count_macs(nn.Sequential(SS2D(dim), ChannelMixer()) if tokens else ChannelMixer(), (1, dim, side, side))
        for dim, side in sizes
    ]
    return torch.tensor(found, dtype=torch.float64) / found[0]


def _timed(dim: int, side: int, times: int) -> Callable[[], Any]:
    mixer, x = ChannelMixer().eval(), torch.randn(1, dim, side, side)

    def call() -> None:
        with torch.inference_mode():
            for _ in range(times):
                mixer(x)

    return call


def _above_tokens_alone(seed: int) -> float:
    from foveal.evidence.tasks.cifar10 import accuracy, train_classifier

    def build(dim: int, *, mix_channels: bool) -> Callable[[], nn.Module]:
        return lambda: ViM2(dim=dim, depths=(2, 2), state=4, window=4, mix_channels=mix_channels, num_classes=10)

    both, tokens = (
        accuracy(train_classifier(build(dim, mix_channels=mix), steps=500, seed=seed))
        for dim, mix in ((16, True), (17, False))
    )
    return both - tokens


CLAIMS = (
    params("ViM2-T.", paper="20 M", model=vim2_tiny, expect=20_000_000, tolerance=0.05),
    params(
        "ViM2-S with the blocks of the paper's table, which prints more.",
        paper="43 M",
        model=vim2_small,
        expect=33_825_376,
    ),
    params(
        "ViM2-B with the blocks of the paper's table, which prints more.",
        paper="74 M",
        model=vim2_base,
        expect=57_948_928,
    ),
    equal(
        "The channel mixer gives what a token mixer gives for the transposed map, window by window.",
        ours=_mixed,
        theirs=_transposed,
        tolerance=1e-6,
    ),
    equal(
        "With weights that pick the last output a stage is a plain chain of mixers, bit for bit.",
        ours=lambda: _chain(averaged=True),
        theirs=lambda: _chain(averaged=False),
        tolerance=0.0,
    ),
    equal(
        "Four and sixteen times the tokens take as many times the multiply-adds.",
        paper="linear",
        ours=lambda: _costs([(32, 28), (32, 56), (32, 112)], tokens=True),
        theirs=lambda: torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64),
    ),
    equal(
        "In the channel mixer two and four times the channels do so, but for the three at a convolution's border.",
        paper="linear",
        ours=lambda: _costs([(32, 28), (64, 28), (128, 28)], tokens=False),
        theirs=lambda: torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64),
        tolerance=2e-3,
    ),
    faster(
        "The channel mixer takes at most a fifth longer for four times the tokens than for a quarter of them four "
        "times over.",
        paper="linear",
        ours=lambda: _timed(64, 56, 1),
        theirs=lambda: _timed(64, 28, 4),
        at_least=1 / 1.2,
        threads=1,
    ),
    faster(
        "It takes at most a fifth longer for four times the channels than for a quarter of them four times over.",
        paper="linear",
        ours=lambda: _timed(256, 28, 1),
        theirs=lambda: _timed(64, 28, 4),
        at_least=1 / 1.2,
        threads=1,
    ),
    kept(
        "With channel mixers a small network is more accurate than one of token mixers alone that is 5 % larger.",
        paper="above VMamba on ImageNet",
        quality=_above_tokens_alone,
        at_least=0.0,
        unit="points",
        seeds=3,
        data="500 steps on CIFAR-10, the first 2,000 test pictures",
        needs=("minutes", "cifar10_train", "cifar10_test"),
    ),
)
