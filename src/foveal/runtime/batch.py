"""Many pictures: which files there are, where each result goes, and which are done already.

The rule of resuming: a result is done if it exists and the record in its folder says that it was made from a source of
this size and this time of change, by this bundle. A newer source, another bundle or another scale makes it anew. A
result without a record is somebody else's file: it is neither skipped nor replaced.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.images.formats import FORMATS, SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from foveal.runtime.upscaler import Upscaler

__all__ = ["RECORD", "Job", "Record", "find_jobs", "settings_of"]

RECORD = ".foveal.jsonl"


@dataclass(frozen=True)
class Job:
    """One picture to do.

    Args:
        source: that is read.
        target: that is written.
        folder: whose record knows the target.
        problem: why it cannot be done, "" if it can.
    """

    source: Path
    target: Path
    folder: Path
    problem: str = ""


def _has_magic(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _in_folder(folder: Path, recursive: bool, not_in: Path | None) -> Iterator[tuple[Path, Path]]:
    """Pictures of a folder, with their path relative to it; hidden ones and the results' own folder are left out."""
    for where, folders, files in os.walk(folder):
        here = Path(where)
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and (not_in is None or (here / name).resolve() != not_in)
        )
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield here / name, (here / name).relative_to(folder)


def find_jobs(
    inputs: Sequence[str | Path],
    out: str | Path | None,
    *,
    scale: int,
    recursive: bool = False,
    suffix: str | None = None,
    file_format: str = "",
) -> list[Job]:
    """Turn what the user named into pictures to do.

    Args:
        inputs: files, folders and globs.
        out: a folder, or for one picture a file; beside the source by default.
        scale: output side over input side; makes the default suffix.
        recursive: look into folders inside folders; the results form the same tree.
        suffix: added to a result's name before the dot; by default "_x4" beside the source and "" elsewhere.
        file_format: of the results; by default each keeps its own.

    Returns:
        The jobs, each source once, in the order they were named. A source that is not there is a job with a problem.

    Raises:
        ValueError: nothing was named or found, a folder without a place for its results, or an unknown format.
    """
    wanted = SUFFIXES.get(f".{file_format.lower()}")
    if file_format and wanted is None:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    if not inputs:
        raise ValueError("name at least one picture, folder or glob")
    text = "" if out is None else str(out)
    whole = Path(text).resolve() if text else None
    found: dict[Path, Path] = {}
    folders = 0
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            folders += 1
            found.update(_in_folder(path, recursive, whole if whole != path.resolve() else None))
        elif not path.exists() and _has_magic(str(given)):
            folders += 1
            matches = [Path(name) for name in sorted(glob.glob(str(given), recursive=True))]  # noqa: PTH207
            found.update((m, Path(m.name)) for m in matches if m.is_file() and m.suffix.lower() in SUFFIXES)
        else:
            found[path] = Path(path.name)
    if not found:
        hint = "" if recursive else " (--recursive looks into folders inside folders)"
        raise ValueError(f"no picture in {', '.join(str(i) for i in inputs)}{hint}")
    if not text and any(Path(i).is_dir() for i in inputs):
        raise ValueError("a folder of pictures needs a place for the results: -o FOLDER")
    one_file = (
        bool(text)
        and len(found) == 1
        and not folders
        and not Path(text).is_dir()
        and not text.endswith(("/", os.sep))
        and Path(text).suffix.lower() in SUFFIXES
    )
    jobs: list[Job] = []
    taken: dict[Path, Path] = {}
    for source, relative in found.items():
        ending = wanted.suffixes[0] if wanted else source.suffix
        if not text:
            added = f"_x{scale}" if suffix is None else suffix
            target, folder = source.with_name(f"{source.stem}{added}{ending}"), source.parent
        elif one_file:
            target = Path(text)
            folder = target.parent
            if wanted and SUFFIXES[target.suffix.lower()] is not wanted:
                raise ValueError(
                    f"-o {text} asks for another format than --format {file_format}; leave one of them out"
                )
        else:
            folder = Path(text)
            target = folder / relative.with_name(f"{relative.stem}{suffix or ''}{ending}")
        problem = ""
        key = target.resolve()
        if not source.exists():
            problem = f"{source}: no such file"
        elif target.suffix.lower() not in SUFFIXES:
            problem = f"{source}: no format is known for a result named {target.name}; say --format png"
        elif key == source.resolve():
            problem = f"{source}: the result would take the place of its source; give another -o or a --suffix"
        elif key in taken:
            problem = f"{source}: {taken[key]} already becomes {target}; give one of them another place"
        else:
            taken[key] = source
        jobs.append(Job(source, target, folder, problem))
    return jobs


def settings_of(upscaler: Upscaler) -> str:
    """What a result depends on besides its source; engines and tiles change no pixel by more than a level.

    Args:
        upscaler: that makes it.

    Returns:
        A short text, equal for equal settings.
    """
    card = upscaler.card
    text = json.dumps([card.scale, sorted(card.sha256.items()), sorted(card.files.items())])
    return f"{upscaler.name} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Record:
    """What was made in a folder: `.foveal.jsonl`, one line of JSON for each result; the last line for a result counts.

    Args:
        folder: of the results.
        settings: of this run, see `settings_of`.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.path = folder / RECORD
        self._settings = settings
        self._known: dict[str, dict[str, Any]] = {}
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        for line in lines:
            try:
                entry = json.loads(line)
                self._known[entry["target"]] = entry
            except (ValueError, TypeError, KeyError):  # a line cut off by a power failure
                continue

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

    def add(self, job: Job) -> None:
        """Note that a result was made.

        Args:
            job: whose result.
        """
        entry = self._entry(job)
        self._known[entry["target"]] = entry
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        except OSError:  # the picture is there; only resuming will not know
            pass
