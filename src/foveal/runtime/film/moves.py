"""How the frames of a film move as a whole, measured once before the work starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.images.shutter import LEAST_PEAK, movement
from foveal.runtime.film.source import frames, rgb

if TYPE_CHECKING:
    from pathlib import Path

    from foveal.runtime.film.source import Header

__all__ = ["FilmMoves"]


class FilmMoves:
    """The movement of each frame: the mean of those from the frame before it and to the one after.

    Two frames without a common movement, as where scenes change, leave that side out.

    Args:
        source: film to read, all of it.
        film: its header.

    Attributes:
        at: timestamp of the frame that is being repaired.
    """

    def __init__(self, source: Path, film: Header) -> None:
        self.at: int | None = None
        stamps: list[int] = []
        steps: list[tuple[float, float] | None] = []
        before = None
        for shot in frames(source):
            pixels = rgb(shot, film)
            if before is not None:
                down, across, peak = movement(before, pixels)
                steps.append((down, across) if peak >= LEAST_PEAK else None)
            stamps.append(shot.pts)
            before = pixels
        self._moves: dict[int, tuple[float, float]] = {}
        for stamp, left, right in zip(stamps, [None, *steps], [*steps, None], strict=False):
            sides = [side for side in (left, right) if side is not None]
            if sides:
                down, across = np.mean(sides, axis=0)
                self._moves[stamp] = (float(down), float(across))

    @property
    def usual(self) -> tuple[float, float] | None:
        """Of the frame in the middle by its speed; None where no frame moves with its neighbours."""
        by_speed = sorted(self._moves.values(), key=lambda move: float(np.hypot(*move)))
        return by_speed[len(by_speed) // 2] if by_speed else None

    @property
    def now(self) -> tuple[float, float]:
        """Of the frame that is being repaired; none where it has none."""
        return (0.0, 0.0) if self.at is None else self._moves.get(self.at, (0.0, 0.0))
