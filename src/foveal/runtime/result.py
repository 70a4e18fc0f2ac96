"""What was done to one file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """What was done to one file.

    Args:
        source: file that was read.
        target: file that was written.
        width: width of the result, in pixels.
        height: height of the result.
        frames: number of frames, 1 for a still picture.
        megapixels: megapixels of the result, all frames.
        seconds: seconds that it took, reading and writing included.
        bundle: name of the bundle.
        engine: name of the engine.
        threads: processor threads.
        notes: sentences the user should read: those of the Upscaler, and what happened to this picture alone.
        clean: what the picture has been through and what was done about it; None where nothing is cleaned.
    """

    source: Path
    target: Path
    width: int
    height: int
    frames: int
    megapixels: float
    seconds: float
    bundle: str
    engine: str
    threads: int
    notes: tuple[str, ...] = ()
    clean: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data.

        Returns:
            Its fields.
        """
        return {**asdict(self), "source": str(self.source), "target": str(self.target), "notes": list(self.notes)}
