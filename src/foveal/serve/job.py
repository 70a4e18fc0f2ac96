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
    """

    id: str
    name: str
    path: Path
    info: images.Info
    size: int
    used: float


@dataclass
class Job:
    """Work on a picture.

    Args:
        id: random id.
        picture: the picture.
        wish: what to do.
        client: address of the client.
        path: file of the result.
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
        return f"{stem}_x{self.wish.scale}{self.path.suffix}"
