"""An uploaded picture or film, and the work on one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal import images
    from foveal.serve.work import Wish

__all__ = ["Job", "Kept"]


@dataclass
class Kept:
    """An uploaded picture or film.

    Args:
        id: random id.
        name: the client's name of the file, for display and downloads only.
        path: the file.
        info: its header.
        size: bytes.
        used: moment of its last use, by `time.monotonic`.
        plans: what was planned for it, where that took a look at all of it.
    """

    id: str
    name: str
    path: Path
    info: images.Info
    size: int
    used: float
    plans: dict[Wish, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Job:
    """Work on a picture.

    Args:
        id: random id.
        picture: the picture.
        wish: what to do.
        client: address of the client.
        path: file of the result; of a document that is split, of none of its pages.
        pages: number of files of the result.
        state: "waiting", "running", "done", "failed" or "cancelled".
        done: megapixels done, or frames of a film.
        whole: megapixels or frames in all.
        began: moment when the work began, by `time.monotonic`.
        error: why it failed, "" if it did not.
        result: what was done, once it is.
        stop: why it should stop, "" if it should not.
    """

    id: str
    picture: Kept
    wish: Wish
    client: str
    path: Path
    pages: int = 1
    state: str = "waiting"
    done: float = 0.0
    whole: float = 0.0
    began: float = 0.0
    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    stop: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def download_name(self) -> str:
        """Name of the result for the client."""
        name = Path(self.picture.name.replace("\\", "/")).name
        stem = name.rpartition(".")[0] or name or "picture"
        return f"{stem}{self.wish.what.suffix}{'.zip' if self.pages > 1 else self.path.suffix}"

    @property
    def files(self) -> list[tuple[str, Path]]:
        """The result's files, with their names for the client."""
        if self.pages == 1:
            return [(self.download_name, self.path)]
        name = self.download_name.removesuffix(".zip")
        digits = max(3, len(str(self.pages)))
        numbers = [f"-{number:0{digits}}{self.path.suffix}" for number in range(1, self.pages + 1)]
        return [(name + number, self.path.with_name(self.path.stem + number)) for number in numbers]
