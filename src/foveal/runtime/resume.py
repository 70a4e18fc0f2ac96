"""The record of what was made: which results are done already, and which files are results.

The rule of resuming: a result is done if it exists and the record in its folder says that it was made from a source of
this size and this time of change, by this bundle. A newer source, another bundle or another scale makes it anew. A
result without a record is somebody else's file: it is neither skipped nor replaced.

A line with "before" says that another process was given the picture; "before" is the time of change of the file that
was there, or null. It counts as done if another file is there now: results get their name when they are complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.runtime.batch import Job
    from foveal.runtime.restorer import Restorer
    from foveal.runtime.upscaler import Upscaler

__all__ = ["RECORD", "Record", "Results", "settings_of"]

RECORD = ".foveal.jsonl"


def settings_of(upscaler: Upscaler | Restorer, *, background: tuple[int, int, int] | None = None) -> str:
    """What a result depends on besides its source; engines and tiles change no pixel by more than a few levels.

    Args:
        upscaler: that makes it.
        background: put below transparent pixels.

    Returns:
        A short text, equal for equal settings.
    """
    card = upscaler.card
    text = json.dumps([card.scale, sorted(card.sha256.items()), sorted(card.files.items()), card.overshoot])
    below = "" if background is None else " on #{:02x}{:02x}{:02x}".format(*background)
    clean = ""
    if (bundle := upscaler.cleaner) is not None:
        files = json.dumps(sorted(bundle.card.sha256.items()))
        clean = f" clean {upscaler.clean} {hashlib.sha256(files.encode()).hexdigest()[:12]}"
    wrap = " wrapped" if upscaler.wrap else ""
    shared = getattr(upscaler, "shared_with", "")  # an upscaler's with a budget
    if asked := getattr(upscaler, "settings", ""):  # a restorer's
        clean = f" {asked}"
    return f"{upscaler.name} {hashlib.sha256(text.encode()).hexdigest()[:12]}{below}{clean}{wrap}{shared}"


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """What a record says, by target; what a power failure left of a line is passed over, whatever bytes it ends in."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return {}
    known: dict[str, dict[str, Any]] = {}
    begun: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            entry = json.loads(line.decode("utf-8", "replace"))
            name = str(entry["target"])
            (begun if "before" in entry else known)[name] = entry
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if "before" not in entry:
            begun.pop(name, None)
    for name, entry in begun.items():
        # Given to another process, which may have outlived the one that kept the record.
        if _changed(path.parent / name) not in (None, entry["before"]):
            known[name] = {key: value for key, value in entry.items() if key != "before"}
    return known


def _changed(path: Path) -> int | None:
    """Time of change of a file, in nanoseconds; None if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def real_path(path: Path) -> Path:
    """A path without links.

    Args:
        path: that may lead through a loop of links, where `Path.resolve` raises.

    Returns:
        The path as far as it can be followed.
    """
    return Path(os.path.realpath(path))


class Results:
    """What earlier runs wrote, by the records of the folders above it."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, dict[str, Any]]] = {}

    def of(self, path: Path) -> tuple[Path, Path] | None:
        """What a file was made from.

        Args:
            path: of the file.

        Returns:
            Its source, and the folder whose record says so; None if none does.
        """
        here = real_path(path.parent)
        for folder in (here, *here.parents):
            if folder not in self._known:
                self._known[folder] = _entries(folder / RECORD)
            if not (known := self._known[folder]):
                continue
            entry = known.get(os.path.relpath(here / path.name, folder))
            if entry is not None:
                return real_path(folder / str(entry.get("source", ""))), folder
        return None


class Record:
    """What was made in a folder: `.foveal.jsonl`, one line of JSON for each result; the last line for a result counts.

    Args:
        folder: of the results.
        settings: of this run, see `settings_of`.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.path = folder / RECORD
        self._settings = settings
        self._known = _entries(self.path)

    def _entry(self, job: Job) -> dict[str, Any]:
        state = job.source.stat()
        return {
            "target": os.path.relpath(job.target, job.folder),
            "source": os.path.relpath(job.source, job.folder),
            "size": state.st_size,
            "changed": state.st_mtime_ns,
            "settings": self._settings,
        }

    def state(self, job: Job) -> str:
        """How a result stands.

        Args:
            job: whose result.

        Returns:
            "missing"; "done"; "stale", made by us from an older source or with other settings; or "unknown", there but
            not made by us.
        """
        if not job.target.exists():
            return "missing"
        known = self._known.get(os.path.relpath(job.target, job.folder))
        if known is None:
            return "unknown"
        return "done" if known == self._entry(job) else "stale"

    def begin(self, job: Job) -> None:
        """Note that another process is given a picture, whose result counts even if nobody is left to note it.

        Args:
            job: its job.
        """
        with suppress(OSError):  # a source that is gone fails when it is read
            self._write({**self._entry(job), "before": _changed(job.target)})

    def add(self, job: Job) -> None:
        """Note that a result was made.

        Args:
            job: whose result.
        """
        entry = self._entry(job)
        self._known[entry["target"]] = entry
        self._write(entry)

    def _write(self, entry: dict[str, Any]) -> None:
        try:
            # A line that was cut off before ends first. ASCII, so that names that are no UTF-8 can be written too.
            with self.path.open("ab") as file:
                file.write(_line_end(self.path) + json.dumps(entry).encode() + b"\n")
        except OSError:  # the picture is there; only resuming will not know
            pass


def _line_end(path: Path) -> bytes:
    """The newline that is missing at a file's end."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return b""
        file.seek(-1, os.SEEK_END)
        return b"" if file.read(1) == b"\n" else b"\n"
