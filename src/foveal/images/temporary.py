"""Temporary names for unfinished files, and the removal of those that were never finished.

A process that is killed cannot remove its file. The next one that writes the same target does: a process that is still
writing holds a lock on its file, which the system releases when the process ends, for whatever reason.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Temporary", "remove_unfinished"]

LONGEST = 200  # bytes of the target's name; file systems allow 255 in total
# Unfinished files in a folder, searched for once, since a folder may have many pictures.
_left: dict[str, list[str]] = {}


class Temporary:
    """A temporary file next to its target.

    Args:
        target: final path of the file.
    """

    def __init__(self, target: Path) -> None:
        self._stem = _stem(target)
        self.path = target.with_name(f"{self._stem}.{secrets.token_hex(4)}.part")
        self._lock: int | None = None

    def begin(self, path: Path) -> None:
        """Create the file, and remove unfinished ones of earlier runs.

        Args:
            path: path of the file; usually the attribute `path`.
        """
        self._lock = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        _lock(self._lock)
        folder = str(path.parent.absolute())
        if folder not in _left:
            _left[folder] = [one.name for one in path.parent.iterdir() if one.name.endswith(".part")]
        for name in list(_left[folder]):
            if _is_of(name, self._stem):
                _left[folder].remove(name)
                _remove_if_left(path.with_name(name))

    def place(self, path: Path) -> str:
        """The file's name for libvips, which accepts UTF-8 only.

        Args:
            path: path passed to `begin`.

        Returns:
            The path, or that of its file descriptor if it is not valid UTF-8.
        """
        try:
            os.fspath(path).encode()
        except UnicodeEncodeError:
            return f"/proc/self/fd/{self._lock}"
        return os.fspath(path)

    def end(self, path: Path) -> None:
        """Remove the file if it is still there.

        Args:
            path: path passed to `begin`.
        """
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        path.unlink(missing_ok=True)


def remove_unfinished(targets: Iterable[Path], seconds: float = 3.0) -> None:
    """Remove what killed processes left of these files; what another process is writing stays.

    Args:
        targets: final paths of the files.
        seconds: how long to wait for processes that are ending.
    """
    left: list[Path] = []
    for target in targets:
        with suppress(OSError):
            left += [one for one in target.parent.iterdir() if _is_of(one.name, _stem(target))]
    end = time.monotonic() + seconds
    while left:
        for path in left:
            _remove_if_left(path)
        left = [path for path in left if path.exists()]
        if time.monotonic() > end:
            return
        time.sleep(0.05 if left else 0)


def _stem(target: Path) -> str:
    name = os.fsencode(target.name)
    return "." + (target.name if len(name) <= LONGEST else name[:LONGEST].decode("utf-8", "ignore"))


def _is_of(name: str, stem: str) -> bool:
    """Whether a name is a temporary one of the target with that stem."""
    token = name.removeprefix(stem + ".").removesuffix(".part")
    return (
        name.startswith(stem + ".")
        and name.endswith(".part")
        and len(token) == 8
        and set(token) <= set("0123456789abcdef")
    )


def _lock(descriptor: int) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # not available on Windows and on some network drives
        return False
    return True


def _remove_if_left(path: Path) -> None:
    """Remove a file that no process is writing."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR)
        try:
            if _lock(descriptor):
                path.unlink()
        finally:
            os.close(descriptor)
