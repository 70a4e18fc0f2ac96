"""The name that a file has until it is whole, and what becomes of those that were never finished.

A process that is killed cannot remove its file. The next one that writes the same target does: whoever is still writing
holds a lock on his file, which the system lets go when a process ends, however it ends.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Temporary"]

LONGEST = 200  # bytes of the target's name; file systems take 255 in all
# Unfinished files found in a folder, looked for once: a folder may have many pictures.
_left: dict[str, list[str]] = {}


class Temporary:
    """A file beside its target.

    Args:
        target: whose name it takes in the end.
    """

    def __init__(self, target: Path) -> None:
        name = os.fsencode(target.name)
        self._stem = "." + (target.name if len(name) <= LONGEST else name[:LONGEST].decode("utf-8", "ignore"))
        self.path = target.with_name(f"{self._stem}.{secrets.token_hex(4)}.part")
        self._lock: int | None = None

    def begin(self, path: Path) -> None:
        """Make the file, and remove those of earlier runs that were never finished.

        Args:
            path: of the file; usually the attribute `path`.
        """
        self._lock = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        _lock(self._lock)
        folder = str(path.parent.absolute())
        if folder not in _left:
            _left[folder] = [one.name for one in path.parent.iterdir() if one.name.endswith(".part")]
        for name in list(_left[folder]):
            token = name.removeprefix(self._stem + ".").removesuffix(".part")
            if name.startswith(self._stem + ".") and len(token) == 8 and set(token) <= set("0123456789abcdef"):
                _left[folder].remove(name)
                _remove_if_left(path.with_name(name))

    def place(self, path: Path) -> str:
        """The file's name for libvips, which takes UTF-8 only.

        Args:
            path: as it was begun.

        Returns:
            The path, or where it is no UTF-8 its descriptor's.
        """
        try:
            os.fspath(path).encode()
        except UnicodeEncodeError:
            return f"/proc/self/fd/{self._lock}"
        return os.fspath(path)

    def end(self, path: Path) -> None:
        """Remove the file if it is still there.

        Args:
            path: as it was begun.
        """
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        path.unlink(missing_ok=True)


def _lock(descriptor: int) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # no such thing on Windows, and not on every network's disk
        return False
    return True


def _remove_if_left(path: Path) -> None:
    """Remove a file that nobody is writing."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR)
        try:
            if _lock(descriptor):
                path.unlink()
        finally:
            os.close(descriptor)
