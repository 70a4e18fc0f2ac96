"""A model that was read, before anything is known of its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from foveal.export.foreign.colours import Colours
    from foveal.export.foreign.sizes import Run, Sizes
    from foveal.runtime.engines import FileKind

__all__ = ["Opened"]


@dataclass(frozen=True)
class Opened:
    """A model, as one of the readers gives it.

    Args:
        family: architecture, or what the file says of itself.
        run: the model in its own implementation and its own colours.
        write: function from a folder, the colours, the sizes and whether tiles are exact to the files written there,
            kind → name; every file takes and gives RGB in [0, 1].
        engine: name of the engine that runs what is written, to compare with.
        parameters: number of parameters.
        multiple: multiple that the sides are known to want.
        minimum: smallest side known.
        colours: colours, where they are known.
        scale: scale, where it is known.
    """

    family: str
    run: Run
    write: Callable[[Path, Colours, Sizes, bool], dict[FileKind, str]]
    engine: str
    parameters: int
    multiple: int = 1
    minimum: int = 1
    colours: Colours | None = None
    scale: int | None = None
