"""Moving digits in minutes: 32×32 videos of two rendered digits that move straight and bounce off the borders.

The score is the squared error of a network's predictions on 60 test videos, in decibels below that of repeating the
last frame, which is the floor: 0 dB by definition. The mean picture of the training videos, which ignores the video, is
a second floor with a smaller error; a claim that a network predicts anything must beat both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks.digits import drawn, glyphs
from foveal.record import kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.record import Claim

__all__ = ["NEEDS", "above_floors", "better", "films", "mean_score", "score", "trained"]

NEEDS = ("minutes",)
COUNT = {"train": 400, "test": 60}
SEEN = 12  # given frames of 20; the others are generated
BATCH = 4


@cached(maxsize=2)
def films(part: str, *, frames: int = 20, side: int = 32) -> Tensor:
    """Videos of two digits that move straight and bounce off the borders.

    Args:
        part: "train" (400) or "test" (60).
        frames: number of frames of each video, T.
        side: side of a frame, in pixels.

    Returns:
        Videos, (n, T, 1, side, side), values in [0, 1].
    """
    generator, found, digit = np.random.default_rng(2 if part == "train" else 3), glyphs(), side // 2
    made = np.zeros((2 if rehearsing() else COUNT[part], frames, side, side), np.float32)
    room = side - digit
    for film in made:
        for _ in range(2):
            sprite = drawn(found[generator.integers(len(found))][1], digit, generator)
            angle, speed = generator.uniform(0, 2 * np.pi), generator.uniform(1.0, 3.0)
            start, moved = generator.uniform(0, room, 2), speed * np.array([np.cos(angle), np.sin(angle)])
            for t, frame in enumerate(film):
                # A straight path is folded back between the borders.
                x, y = np.rint(room - np.abs((start + t * moved) % (2 * room) - room)).astype(int)
                place = frame[y : y + digit, x : x + digit]
                np.maximum(place, sprite, out=place)
    return torch.from_numpy(made)[:, :, None]


@cached(maxsize=8)
def trained(build: Callable[[], nn.Module], *, steps: int, seed: int) -> nn.Module:
    """A network trained to predict each frame from the previous ones; claims about one network share it.

    Args:
        build: builder of the network, (B, T, 1, H, W) to the next frames, (B, T, 1, H, W).
        steps: number of steps of four videos.
        seed: seed of weights and batches.

    Returns:
        The network in eval mode; do not modify it.
    """
    made = films("train")

    def batches(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(100_000 * seed + step)
        rows = torch.randint(len(made), (min(BATCH, len(made)),), generator=generator)
        return made[rows]

    def loss(model: nn.Module, film: Tensor) -> Tensor:
        return F.mse_loss(model(film[:, :-1]), film[:, 1:])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    return short_run(model, batches, loss, steps=steps, lr=3e-3, weight_decay=1e-5, clip=1.0)


def _decibels(predicted: Tensor, wanted: Tensor, last: Tensor) -> float:
    error, floor = (float(F.mse_loss(x.expand_as(wanted), wanted)) for x in (predicted, last))
    return 10 * math.log10(floor / error)


def _parts(*, generated: bool) -> tuple[Tensor, Tensor]:
    """The part of the test videos to predict, and the last frame before it."""
    tests = films("test")
    return (tests[:, SEEN:], tests[:, SEEN - 1 : SEEN]) if generated else (tests[:, 5:], tests[:, 4:-1])


def score(model: Any, *, generated: bool = False) -> float:
    """Reduction of a network's squared error relative to repeating the last frame.

    Args:
        model: network that predicts the next frames; for `generated` it has `generate(film, frames)`.
        generated: whether the last eight frames are generated, each from the generated ones before it, instead of each
            frame after the fifth predicted from the true ones before it.

    Returns:
        Decibels; 0 for repeating the last frame.
    """
    wanted, last = _parts(generated=generated)
    tests = films("test")
    with torch.inference_mode():
        made = model.generate(tests[:, :SEEN], wanted.shape[1]) if generated else model(tests)[:, 4:-1]
    return _decibels(made, wanted, last)


def mean_score(*, generated: bool = False) -> float:
    """Score of a constant prediction: the mean of all training frames.

    Args:
        generated: whether frames are generated, see `score`.

    Returns:
        Decibels.
    """
    return _decibels(films("train").mean((0, 1)), *_parts(generated=generated))


def _data(steps: int, *, generated: bool) -> str:
    what = f"eight frames generated after {SEEN}" if generated else "the next frame, after five"
    return f"{steps} steps on films of two moving digits, 32×32; {what}, 60 films"


def above_floors(
    build: Callable[[], nn.Module],
    says: str,
    *,
    steps: int,
    paper: str,
    by: float = 0.0,
    generated: bool = False,
    **words: Any,
) -> Claim:
    """`kept`: after a short training the error is below those of the last frame and of the mean picture.

    Args:
        build: builder of the network.
        says: promise, one sentence.
        steps: number of training steps.
        paper: the paper's value.
        by: lower bound on the distance below the smaller of the two errors, dB.
        generated: whether frames are generated, see `score`.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def quality(seed: int) -> float:
        model = trained(build, steps=steps, seed=seed)
        return score(model, generated=generated) - max(0.0, mean_score(generated=generated))

    data = _data(steps, generated=generated)
    return kept(says, paper=paper, quality=quality, at_least=by, unit="dB", data=data, needs=NEEDS, **words)


def better(
    build: Callable[[], nn.Module],
    says: str,
    *,
    than: Callable[[], nn.Module],
    steps: int,
    paper: str,
    by: float = 0.0,
    generated: bool = False,
    **words: Any,
) -> Claim:
    """`kept`: the paired difference of two networks under the same seeds, films and steps.

    Args:
        build: builder of the network.
        says: promise, one sentence.
        than: builder of the rival.
        steps: number of training steps of each.
        paper: the paper's value.
        by: lower bound on the difference, dB; negative for "at most this much worse".
        generated: whether frames are generated, see `score`.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        ours, theirs = (score(trained(b, steps=steps, seed=seed), generated=generated) for b in (build, than))
        return ours - theirs

    data = _data(steps, generated=generated)
    return kept(says, paper=paper, quality=difference, at_least=by, unit="dB", data=data, needs=NEEDS, **words)
