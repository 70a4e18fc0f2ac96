"""The one error that reading and writing pictures raises."""

from __future__ import annotations

from pathlib import Path

from foveal.errors import FovealError

__all__ = ["PictureError"]


class PictureError(FovealError, ValueError):
    """A picture cannot be read or written; the text names the file, what is wrong and what to do.

    Args:
        path: the file.
        wrong: what is wrong with it, without a full stop.
        advice: what to do, without a full stop.
    """

    def __init__(self, path: str | Path, wrong: str, advice: str) -> None:
        super().__init__(f"{path}: {wrong}; {advice}")
        self.path = Path(path)
        self.wrong = wrong
        self.advice = advice

    def __reduce__(self) -> tuple[type[PictureError], tuple[str, str, str]]:
        # Exceptions pickle by their text alone, which a constructor of three arguments cannot take back.
        return type(self), (str(self.path), self.wrong, self.advice)
