"""Where a network that looks hard only at some places spent its work, and the picture of it."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Route", "recorded", "recording"]

_ROUTES: ContextVar[list[Route] | None] = ContextVar("routes", default=None)
COLD, HOT = np.array([20.0, 30.0, 90.0]), np.array([255.0, 190.0, 40.0])  # colours of no work and of all of it


@dataclass(frozen=True, eq=False)
class Route:
    """Work of one forward pass, by place and by stage.

    Args:
        work: share of the whole network's work that each place got, (B, H', W') in [0, 1].
        counts: number of items that each stage worked on, the mean over the batch.
        of: number of items that each stage of the whole network works on.
        unit: what is counted: "tokens", "windows", "patches" or "pixels".

    Raises:
        ValueError: work that is no batch of maps, or a different number of stages in `counts` and `of`.
    """

    work: NDArray[np.float32]
    counts: tuple[float, ...]
    of: tuple[float, ...]
    unit: str = "tokens"

    def __post_init__(self) -> None:
        if self.work.ndim != 3:
            raise ValueError(f"work must be (B, H', W'), got an array of {self.work.ndim} axes; add the batch")
        if len(self.counts) != len(self.of):
            raise ValueError(
                f"counts and of must have a number for each stage, got {len(self.counts)} and {len(self.of)}"
            )

    @property
    def share(self) -> float:
        """Items worked on over those of the whole network, all stages together."""
        return sum(self.counts) / sum(self.of)

    def __str__(self) -> str:
        said, first = [], 0
        for (count, of), group in groupby(zip(self.counts, self.of, strict=True)):
            last = first + len(list(group)) - 1
            name = f"stage {first}" if first == last else f"stages {first} to {last}"
            said.append(f"{name}: {count:,.4g} of {of:,.4g} {self.unit}")
            first = last + 1
        return f"{self.share:.1%} of the {self.unit}; " + "; ".join(said)

    def draw(self, picture: NDArray[np.uint8], *, index: int = 0, opacity: float = 0.5) -> NDArray[np.uint8]:
        """Draw the work over a picture: dark blue where there was none, amber where there was most.

        Args:
            picture: picture of any size, (H, W, 3) or (H, W) uint8.
            index: number of the picture in the batch.
            opacity: weight of the map, in [0, 1].

        Returns:
            Picture of the same height and width, (H, W, 3) uint8.

        Raises:
            ValueError: a picture of another shape, or an opacity outside its range.
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity must be in [0, 1], got {opacity}")
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, 2)
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"picture must be (H, W, 3) or (H, W), got {picture.shape}; drop its alpha")
        height, width = picture.shape[:2]
        rows, columns = self.work.shape[1:]
        places = self.work[index][
            np.arange(height)[:, None] * rows // height, np.arange(width)[None] * columns // width
        ][..., None]
        colour = COLD + (HOT - COLD) * np.clip(places, 0, 1)
        return np.rint(picture * (1 - opacity) + colour * opacity).astype(np.uint8)


@contextmanager
def recording() -> Iterator[list[Route]]:
    """Collect the routes of the forward passes inside the block; without it networks record nothing.

    Yields:
        Routes in order.
    """
    routes: list[Route] = []
    token = _ROUTES.set(routes)
    try:
        yield routes
    finally:
        _ROUTES.reset(token)


def recorded() -> list[Route] | None:
    """The list that a routed network appends its route to.

    Returns:
        List of the innermost `recording`; None outside of one.
    """
    return _ROUTES.get()
