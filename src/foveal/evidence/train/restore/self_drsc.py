"""Evidence for SelfDRSC: without and with global-shutter truth, unseen times, borders, and the warp by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import moving_photos, restoring
from foveal.nn.motion import row_map
from foveal.record import bound, kept
from foveal.train.restore.self_drsc import Corrector, SelfDistillation, reread

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from foveal.evidence.tasks.moving_photos import Film

TIMES = (0.0, 0.5, 1.0)  # start, middle and end of a reading, for training
UNSEEN = (0.125, 0.25, 0.375, 0.625, 0.75, 0.875)
STEPS, BATCH, LR = 200, 4, 2e-3
EDGE = 6  # pixels from the border that count as near it
DOWN = row_map(moving_photos.SIDE)
UP = DOWN.flip(0)


def _film() -> Film:
    return moving_photos.held_out(pieces=0)


def _pair(film: Film) -> tuple[Tensor, Tensor]:
    """Two readings in the time from 0 to 1, whose middle is the film's time 0."""
    return film.seen(DOWN - 0.5), film.seen(UP - 0.5)


@cached(maxsize=9)
def trained(seed: int, *, truth: bool = False, weight: float = 1.0) -> Corrector:
    """A network after a training.

    Args:
        seed: seed of weights, photographs and motion.
        truth: whether it learns from global-shutter frames.
        weight: of the self-distillation.

    Returns:
        The network in eval mode; do not modify it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SelfDistillation(Corrector(), weight=weight)
    load = moving_photos.films(seed, batch=BATCH, pieces=0)

    def batches(step: int) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
        film = load(step)
        return _pair(film), [film.seen(t - 0.5) for t in TIMES] if truth else []

    def loss(model: Any, batch: tuple[tuple[Tensor, Tensor], list[Tensor]]) -> Tensor:
        pair, wanted = batch
        if not truth:
            return model(pair, TIMES)
        frames, _ = model.student(pair, TIMES)
        return torch.stack([F.l1_loss(f, w) for f, w in zip(frames, wanted, strict=True)]).mean()

    short_run(model, batches, loss, steps=STEPS, lr=LR)
    return model.student


@cached(maxsize=9)
def _frames(model: Corrector) -> dict[float, Tensor]:
    """Predicted test frames of every time."""
    times = (*TIMES, *UNSEEN)
    with torch.inference_mode():
        return dict(zip(times, model(_pair(_film()), times)[0], strict=True))


def _psnr(model: Corrector, times: tuple[float, ...]) -> float:
    film, made = _film(), _frames(model)
    return float(np.mean([float(restoring.psnr(made[t], film.seen(t - 0.5)).mean()) for t in times]))


def _below_truth(seed: int) -> float:
    """PSNR of frames at the start, middle and end, less that of the network trained with them, dB."""
    return _psnr(trained(seed), TIMES) - _psnr(trained(seed, truth=True), TIMES)


def _below_middle(seed: int) -> float:
    """PSNR of the worst unseen time less that of the middle, dB."""
    return min(_psnr(trained(seed), (t,)) for t in UNSEEN) - _psnr(trained(seed), (0.5,))


def _edge_error(model: Corrector) -> float:
    """Mean squared error near the borders, over the times of the training."""
    film, made = _film(), _frames(model)
    edge = torch.ones(moving_photos.SIDE, moving_photos.SIDE, dtype=torch.bool)
    edge[EDGE:-EDGE, EDGE:-EDGE] = False
    return float(torch.stack([(made[t] - film.seen(t - 0.5)).square()[..., edge].mean() for t in TIMES]).mean())


def _edges_improved(seed: int) -> float:
    """How much less the squared error near the borders is with self-distillation, in percent."""
    return 100 * (1 - _edge_error(trained(seed)) / _edge_error(trained(seed, weight=0.0)))


def _above_copy(seed: int) -> float:
    """PSNR of frames at the start, middle and end above that of the better of the two inputs, dB."""
    film = _film()
    copies = [[float(restoring.psnr(x, film.seen(t - 0.5)).mean()) for t in TIMES] for x in _pair(film)]
    return _psnr(trained(seed), TIMES) - max(float(np.mean(c)) for c in copies)


def _warp_psnr() -> float:
    """Global-shutter frames of the middle, read again with the true motion, against the analytic rolling shutter."""
    film = moving_photos.held_out(pieces=1)
    frame, found = film.seen(0.0), []
    for rows in (DOWN, UP):
        made, mask = reread(frame, film.motion(rows - 0.5), 0.5, rows)
        error = ((made - film.seen(rows - 0.5)).square() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
        found.append(-10 * error.clamp_min(1e-10).log10().mean())
    return float(torch.stack(found).mean())


_DATA = (
    f"{STEPS} steps of {BATCH} on bsds400 that pans; frames of 64 pixels of 30 of BSD100, RGB, "
    "up to 6 pixels across and 2 down in a reading"
)


def _claim(says: str, quality: Callable[[int], float], at_least: float, **words: Any) -> Any:
    return kept(says, quality=quality, at_least=at_least, data=_DATA, needs=moving_photos.NEEDS, **words)


CLAIMS = (
    _claim(
        "Trained without global-shutter frames it is at most 0.5 dB below the same network trained with them.",
        _below_truth,
        -0.5,
        paper="comparable to or better than supervised",
        clause=1,
    ),
    _claim(
        "The worst of six times that training never saw is at most 1 dB below the middle one.",
        _below_middle,
        -1.0,
        paper="high frame-rate video",
        clause=2,
    ),
    _claim(
        "Self-distillation lowers the squared error within 6 pixels of the borders, in percent.",
        _edges_improved,
        0.0,
        paper="mitigates boundary artefacts",
        clause=3,
    ),
    bound(
        "The warp, given the true motion, reproduces an analytic rolling shutter, with pieces moving across the pan.",
        paper="",
        value=_warp_psnr,
        at_least=35.0,
        unit="dB",
        needs=moving_photos.NEEDS,
        clause=4,
    ),
    _claim(
        "It is 8 dB above the better of the two inputs uncorrected.",
        _above_copy,
        8.0,
        paper="",
        beyond="correction against none",
    ),
)
