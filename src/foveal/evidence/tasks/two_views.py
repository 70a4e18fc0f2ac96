"""Two views in minutes: scenes of 2×2 drawn digits seen by two sensors, of which one is right; accuracy in percent.

In each cell both views show a digit, two different ones, each with its own contrast. The one with the higher contrast
is right, the other is a ghost. A view alone cannot know which it has: its own digit is right in half of the cells, and
the best use of its contrast gives 50.6 % (`CEILING`). Both views together determine the digit: 100 %. Chance is 10 %.
`shift` moves the second view against the first, as with cameras at two places.

Digits are drawn by a font renderer, without a download: 4,000 for training, 1,000 others for 500 test scenes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import cifar10
from foveal.evidence.tasks.digits import drawn, glyphs
from foveal.record import kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.record import Claim

__all__ = ["CEILING", "NEEDS", "TwoStreams", "above_single", "better", "scenes", "score", "trained"]

NEEDS = ("minutes",)
CELL = 12  # side of a digit's cell, pixels
COUNT = {"train": 4000, "test": 1000}  # digits
SCENES = {"train": 8000, "test": 500}
LOW, HIGH = 0.3, 1.0  # contrasts
CEILING = 50.6  # percent, of a view alone: ∫ max(p, (1 - p) / 9) dp for p uniform in [0, 1]
VIEWS = ("both", "first", "second")


@cached(maxsize=2)
def _digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Clean digits, (n, CELL, CELL), values in [0, 1], and their names."""
    generator, found = np.random.default_rng(6 if part == "train" else 7), glyphs()
    count = 40 if rehearsing() else COUNT[part]
    rows = generator.integers(len(found), size=count)
    made = np.stack([drawn(found[row][1], CELL, generator) for row in rows])
    return made, np.array([found[row][0] for row in rows])


@cached(maxsize=4)
def scenes(part: str, *, shift: int = 0) -> tuple[Tensor, Tensor]:
    """Scenes of 2×2 digits in two views.

    Args:
        part: "train" (8,000) or "test" (500).
        shift: largest displacement of the second view along each axis, in pixels; it wraps around the border.

    Returns:
        Scenes, (n, 2, 24, 24), the views as channels, about zero mean and unit variance; the right digit of each cell,
        (n, 4) int64, in raster order.
    """
    generator, (made, names) = np.random.default_rng(8 if part == "train" else 9), _digits(part)
    count = 20 if rehearsing() else SCENES[part]
    # (n, views, rows, columns): a digit each, drawn again where both views have the same
    rows = generator.integers(len(names), size=(count, 2, 2, 2))
    while (same := names[rows[:, 0]] == names[rows[:, 1]]).any():
        rows[:, 1][same] = generator.integers(len(names), size=int(same.sum()))
    contrast = generator.uniform(LOW, HIGH, rows.shape)
    # (n, views, rows, columns, CELL, CELL) to (n, views, rows · CELL, columns · CELL)
    cells = made[rows] * contrast[..., None, None]
    views = cells.transpose(0, 1, 2, 4, 3, 5).reshape(count, 2, 2 * CELL, 2 * CELL)
    if shift:
        for view, by in zip(views[:, 1], generator.integers(-shift, shift + 1, (count, 2)), strict=True):
            view[:] = np.roll(view, by, (0, 1))
    views = (views + generator.normal(0, 0.05, views.shape) - 0.15) / 0.25
    right = np.where(contrast[:, 0] > contrast[:, 1], names[rows[:, 0]], names[rows[:, 1]])
    return torch.from_numpy(views.astype(np.float32)), torch.from_numpy(right.reshape(count, 4).astype(np.int64))


def _stem(dim: int) -> nn.Sequential:
    first = nn.Conv2d(1, dim // 2, 3, 2, 1), nn.BatchNorm2d(dim // 2), nn.GELU()
    return nn.Sequential(*first, nn.Conv2d(dim // 2, dim, 3, 2, 1), nn.BatchNorm2d(dim))


class TwoStreams(nn.Module):
    """A small network around a fusion block, (B, 2, 24, 24) to the digits of the cells, (B, 10, 4).

    Each view has its own stem, two convolutions to 6×6 places; the block fuses the streams; their sum is
    read by a convolution over each cell. With one view, both stems and both streams get it, so that the network is as
    large and as deep.

    Args:
        fusion: builder of the block from the number of channels.
        dim: C.
        view: "both", or "first" or "second" for one view in both streams.

    Raises:
        ValueError: an unknown view.
    """

    def __init__(self, fusion: Callable[[int], nn.Module], *, dim: int = 32, view: str = "both") -> None:
        super().__init__()
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
        self.seen = {"both": (0, 1), "first": (0, 0), "second": (1, 1)}[view]
        self.stems = nn.ModuleList(_stem(dim) for _ in range(2))
        self.fusion = fusion(dim)
        self.head = nn.Sequential(nn.GELU(), nn.Conv2d(dim, 2 * dim, 3, 1, 1), nn.BatchNorm2d(2 * dim), nn.GELU())
        self.out = nn.Conv2d(2 * dim, 10, CELL // 4, CELL // 4)

    def forward(self, views: Tensor) -> Tensor:
        # two of (B, C, 6, 6)
        x, y = (stem(views[:, seen : seen + 1]) for stem, seen in zip(self.stems, self.seen, strict=True))
        x, y = self.fusion(x, y)
        return self.out(self.head(x + y)).flatten(2)


@cached(maxsize=24)
def trained(
    fusion: Callable[[int], nn.Module], *, steps: int, seed: int, view: str = "both", shift: int = 0
) -> nn.Module:
    """`TwoStreams` around a block, trained on the scenes; claims about one network share it.

    Args:
        fusion: builder of the block from the number of channels.
        steps: number of steps of 64 scenes.
        seed: seed of weights and batches.
        view: "both", "first" or "second".
        shift: as in `scenes`.

    Returns:
        The network in eval mode; do not modify it.
    """
    data = scenes("train", shift=shift)
    build = partial(TwoStreams, fusion, view=view)
    return cifar10.train_classifier(build, steps=steps, seed=seed, data=data, flip=False, lr=5e-3, weight_decay=0.01)


def score(model: nn.Module, *, shift: int = 0) -> float:
    """Share of the cells of the test scenes whose digit the network names.

    Args:
        model: network, (B, 2, 24, 24) to (B, 10, 4).
        shift: as in `scenes`.

    Returns:
        Accuracy, percent.
    """
    views, right = scenes("test", shift=shift)
    with torch.inference_mode():
        return 100 * float((model(views).argmax(1) == right).float().mean())


def _words(steps: int, shift: int) -> dict[str, Any]:
    moved = f", one view moved by up to {shift} pixels" if shift else ""
    data = f"{steps} steps on scenes of 2×2 drawn digits in two views{moved}; 2,000 test cells"
    return {"unit": "points", "data": data, "needs": NEEDS}


def above_single(
    fusion: Callable[[int], nn.Module],
    says: str,
    *,
    steps: int,
    paper: str,
    by: float = 0.0,
    shift: int = 0,
    **words: Any,
) -> Claim:
    """`kept`: accuracy with both views, less the better of the same network trained as long with one of them.

    Args:
        fusion: builder of the block from the number of channels.
        says: promise, one sentence.
        steps: number of training steps of each network.
        paper: the paper's value.
        by: lower bound on the difference, percentage points.
        shift: as in `scenes`.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        both, *single = (
            score(trained(fusion, steps=steps, seed=seed, view=view, shift=shift), shift=shift) for view in VIEWS
        )
        return both - max(single)

    return kept(says, paper=paper, quality=difference, at_least=by, **_words(steps, shift), **words)


def better(
    fusion: Callable[[int], nn.Module],
    says: str,
    *,
    than: Callable[[int], nn.Module],
    steps: int,
    paper: str,
    by: float = 0.0,
    shift: int = 0,
    **words: Any,
) -> Claim:
    """`kept`: the paired difference of two blocks in the same network under the same seeds, batches and steps.

    Args:
        fusion: builder of the block from the number of channels.
        says: promise, one sentence.
        than: builder of the rival.
        steps: number of training steps of each.
        paper: the paper's value.
        by: lower bound on the difference, percentage points; negative for "at most this much worse".
        shift: as in `scenes`.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        ours, theirs = (score(trained(f, steps=steps, seed=seed, shift=shift), shift=shift) for f in (fusion, than))
        return ours - theirs

    return kept(says, paper=paper, quality=difference, at_least=by, **_words(steps, shift), **words)
