"""Dark and wrongly exposed pictures: a look at the whole picture sets colours and gamma, the rest runs tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.runtime.control import Control
from foveal.runtime.engine_choice import EngineChoice
from foveal.runtime.network import Network
from foveal.runtime.repairs import Finding, brightness
from foveal.runtime.ways import Networked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from foveal.runtime.bundle import Bundle
    from foveal.runtime.engines import Engine, FileKind, PixelKind
    from foveal.runtime.repairs import Given

__all__ = ["DARK", "Light"]

DARK = 0.16  # median luminance below which a picture is brightened unasked


class Light:
    """Light.

    Args:
        bundle: bundle with a table of control.
        engine: engine that the user wants, or "auto".
        threads: processor threads.
        tile: side of a tile in input pixels, or "auto".
    """

    name = "light"

    def __init__(self, bundle: Bundle, engine: str, threads: int, tile: int | str) -> None:
        self.bundle, self._threads = bundle, threads
        self.choice = EngineChoice(bundle, engine, threads, tile)
        self._control: Control | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read about the engine."""
        return self.choice.notes

    @property
    def way(self) -> Networked:
        """The network with the numbers of a picture that stays as it is."""
        return Networked(Network(self.bundle.card, self.choice.open), self.choice)

    def look(self, shots: Sequence[NDArray], given: Given) -> Finding | None:
        """Look at a picture, or at some that are to be treated alike.

        Args:
            shots: the pictures, (H, W, C); the median of brightness and of each number decides.
            given: whether their last channel is alpha, and whether the user asked for this repair by name.

        Returns:
            The repair where the picture is dark or the repair is asked for, else None.
        """
        bright = float(np.median([brightness(one, given.alpha) for one in shots]))
        if not given.asked and bright >= DARK:
            return None
        if self._control is None:
            self._control = Control(self.bundle, self._threads)
        control, drop = self._control, shots[0].shape[2] in (2, 4)
        seen = [control.numbers(one[..., :-1] if drop else one) for one in shots]
        numbers: NDArray[np.float32] = np.median(seen, axis=0).astype(np.float32)

        def open_file(kind: PixelKind) -> Engine:
            def at(which: FileKind, data: bytes) -> bytes:  # noqa: ARG001
                return control.at(numbers, data)

            return self.choice.open(kind, at)

        dark = "dark" if bright < DARK else "light"
        says = f"{dark}, median {255 * bright:.0f} of 255: light put right with gamma {numbers[-1]:.2f}"
        facts = {"median": round(bright, 4), "gamma": round(float(numbers[-1]), 4), "asked": given.asked}
        return Finding(self.name, says, facts, Networked(Network(self.bundle.card, open_file), self.choice))
