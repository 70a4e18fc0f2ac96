"""Repairs of a picture at its own size: what each one looks for, and the network that does it.

| a repair | looks for | bundle |
|---|---|---|
| clean | JPEG, in the file's tables or in the pixels; noise | `repair_clean`, told the level |
| weather | nothing: it is asked for | `repair_weather` |
| light | a dark picture, by its median | `repair_light`, told colours and gamma by a look at the whole picture |

They run in this order: noise is seen best before it is brightened. Repairs by a formula stand in `formulas.py`. NumPy
only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from foveal.images.degradation import LUMA, Degradation, examine
from foveal.runtime.cleaning import AUTO, Cleaner, Level, Look, decide
from foveal.runtime.engine_choice import EngineChoice
from foveal.runtime.network import Network
from foveal.runtime.ways import Networked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.runtime.bundle import Bundle
    from foveal.runtime.ways import Way

__all__ = ["Clean", "Finding", "Given", "Moves", "Repair", "Weather", "brightness", "usual"]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a picture, and what repairs it.

    Args:
        repair: name of the repair.
        says: one clause for the user.
        facts: the same as plain data.
        way: what repairs it.
    """

    repair: str
    says: str
    facts: dict[str, Any]
    way: Way


class Moves(Protocol):
    """How the frames of a film move, pixels down and to the right for each frame."""

    @property
    def usual(self) -> tuple[float, float] | None:
        """Of the frame in the middle by its speed; None where none moves."""
        ...

    @property
    def now(self) -> tuple[float, float]:
        """Of the frame that is being repaired."""
        ...


@dataclass(frozen=True)
class Given:
    """What is known of pictures besides their pixels.

    Args:
        alpha: the last channel is alpha.
        stated: level that their JPEG file states; None for another file.
        source: the file; None for a picture in memory.
        moves: how a film's frames move; None for a picture.
        asked: whether the user asked for this repair by name.
    """

    alpha: bool = False
    stated: float | None = None
    source: Path | None = None
    moves: Moves | None = None
    asked: bool = False


class Repair(Protocol):
    """One repair: what does it, and what decides whether a picture takes it."""

    name: str

    @property
    def bundle(self) -> Bundle | None:
        """The bundle; None for a formula."""
        ...

    def look(self, shots: Sequence[NDArray], given: Given) -> Finding | None:
        """Look at a picture, or at some that are to be treated alike.

        Args:
            shots: the pictures, (H, W, C); what is usual among them decides.
            given: what else is known of them.

        Returns:
            What is wrong, or None.
        """
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read about the engine."""
        ...

    @property
    def way(self) -> Way:
        """What repairs, by which a plan is made before a picture was looked at."""
        ...


def brightness(pixels: NDArray, alpha: bool) -> float:
    """Median luminance of what can be seen of a picture.

    Args:
        pixels: (H, W, C).
        alpha: the last channel is alpha.

    Returns:
        In [0, 1]; 0.5 where nothing can be seen.
    """
    step = max(1, int((pixels.shape[0] * pixels.shape[1] / 250_000) ** 0.5))
    some = pixels[::step, ::step]
    white = np.iinfo(some.dtype).max if some.dtype.kind == "u" else 1.0
    colours = some[..., :-1] if alpha or some.shape[2] in (2, 4) else some
    values = colours.astype(np.float32) / np.float32(white)
    luma = values @ LUMA if values.shape[2] == 3 else values[..., 0]
    seen = luma[some[..., -1] > 0] if alpha else luma.ravel()
    return float(np.median(seen)) if seen.size else 0.5


def usual(found: Sequence[Degradation]) -> Degradation:
    """What pictures that are treated alike have been through.

    Args:
        found: what each has been through, one or more.

    Returns:
        The JPEG of the one in the middle by its step, the noise of the one in the middle by its noise; of two, the less
        damaged.
    """
    middle = (len(found) - 1) // 2
    noisy = sorted(found, key=lambda one: one.noise)[middle]
    return replace(sorted(found, key=lambda one: one.jpeg)[middle], noise=noisy.noise, colour=noisy.colour)


class Clean:
    """JPEG artefacts and noise.

    Args:
        bundle: bundle with a table of levels.
        engine: engine that the user wants, or "auto".
        threads: processor threads.
        tile: side of a tile in input pixels, or "auto".
        strength: "auto", or 1 to 100, see `foveal.runtime.cleaning`.
        of: which of "jpeg" and "noise" are repaired.
    """

    name = "clean"

    def __init__(
        self,
        bundle: Bundle,
        engine: str,
        threads: int,
        tile: int | str,
        *,
        strength: str | int = AUTO,
        of: frozenset[str] = frozenset({"jpeg", "noise"}),
    ) -> None:
        self.bundle = bundle
        self._cleaner = Cleaner(bundle, engine, threads, tile, mirrored=False)
        self._strength, self._of = strength, of

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read about the engine."""
        return self._cleaner.choice.notes

    @property
    def way(self) -> Networked:
        """The network of the middle of the levels."""
        return Networked(self._cleaner.network((0.5, 0.0, 0.0)), self._cleaner.choice)

    def _level(self, found: Degradation) -> Level | None:
        level = decide(found, self._strength)
        if level is None:
            return None
        jpeg, noise, colour = level
        level = (jpeg if "jpeg" in self._of else 0.0, *((noise, colour) if "noise" in self._of else (0.0, 0.0)))
        return level if any(level) else None

    def look(self, shots: Sequence[NDArray], given: Given) -> Finding | None:
        """Look at a picture, or at some that are to be treated alike.

        Args:
            shots: the pictures, (H, W, C); what is usual among them decides.
            given: what else is known of them; that it was asked for takes no part, as a clean picture has nothing to be
                cleaned.

        Returns:
            What is wrong, or None.
        """
        drop = not given.alpha and shots[0].shape[2] in (2, 4)
        found = usual([examine(one[..., :-1] if drop else one, file_level=given.stated) for one in shots])
        level = self._level(found)
        if level is None:
            return None
        look = Look(found, level)
        way = Networked(self._cleaner.network(level), self._cleaner.choice)
        return Finding(self.name, str(look), look.to_dict(), way)


class Weather:
    """Rain and snow; nothing looks for them, they are asked for.

    Args:
        bundle: the bundle.
        engine: engine that the user wants, or "auto".
        threads: processor threads.
        tile: side of a tile in input pixels, or "auto".
    """

    name = "weather"

    def __init__(self, bundle: Bundle, engine: str, threads: int, tile: int | str) -> None:
        self.bundle = bundle
        choice = EngineChoice(bundle, engine, threads, tile)
        self.way = Networked(Network(bundle.card, choice.open), choice)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read about the engine."""
        return self.way.choice.notes

    def look(self, shots: Sequence[NDArray], given: Given) -> Finding | None:  # noqa: ARG002
        """Look at a picture, or at some that are to be treated alike.

        Args:
            shots: takes no part.
            given: whether the user asked for this repair by name.

        Returns:
            The repair where it is asked for, else None.
        """
        if not given.asked:
            return None
        return Finding(self.name, "rain and snow removed", {"asked": True}, self.way)
