"""The error raised by reading and writing pictures."""

from __future__ import annotations

from pathlib import Path

from foveal.errors import FovealError

__all__ = ["PictureError"]


class PictureError(FovealError, ValueError):
    """A picture cannot be read or written; the text names the file, what is wrong and what to do.

    Args:
        path: path of the file.
        wrong: description of the problem, without a full stop.
        advice: what to do, without a full stop.
    """

    def __init__(self, path: str | Path, wrong: str, advice: str) -> None:
        super().__init__(f"{path}: {wrong}; {advice}")
        self.path = Path(path)
        self.wrong = wrong
        self.advice = advice

    def __reduce__(self) -> tuple[type[PictureError], tuple[str, str, str]]:
        # By default exceptions are unpickled from their message alone, which does not fit three arguments.
        return type(self), (str(self.path), self.wrong, self.advice)
