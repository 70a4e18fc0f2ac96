"""The films of one `foveal upscale`: planned, done, skipped or failed, and the messages about each."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.cli._progress import duration
from foveal.cli._speech import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.runtime.film.encode import Coding
    from foveal.runtime.upscaler import Upscaler

__all__ = ["FilmRun", "films_among", "targets"]

_EVERY = 10.0  # seconds between two lines of progress in a pipe


def films_among(inputs: Sequence[str]) -> list[Path]:
    """Films among the named inputs.

    Args:
        inputs: files, folders and globs as the user named them.

    Returns:
        Paths of the films.

    Raises:
        ValueError: films beside pictures.
    """
    from foveal.runtime.film.film import is_film

    films = [path for path in map(Path, inputs) if is_film(path) and not path.is_dir()]
    if films and len(films) < len(inputs):
        raise ValueError(f"{films[0]} is a film and {len(inputs) - len(films)} other inputs are none; give films alone")
    return films


def targets(films: Sequence[Path], out: str | None, suffix: str | None, scale: int) -> list[Path]:
    """Where the results go.

    Args:
        films: films to read.
        out: file for one film, folder for several; None for beside the source.
        suffix: suffix of the results' names; None for "_x4" beside the source and none in a folder.
        scale: output side over input side.

    Returns:
        Path for each film.

    Raises:
        ValueError: a result that would take the place of its source or of another.
    """
    found = []
    for film in films:
        if out is None:
            target = film.with_name(f"{film.stem}{f'_x{scale}' if suffix is None else suffix}{film.suffix}")
        elif len(films) == 1 and films_among([out]) and not Path(out).is_dir():
            target = Path(out)
        else:
            target = Path(out) / f"{film.stem}{suffix or ''}{film.suffix}"
        if target.resolve() == film.resolve():
            raise ValueError(f"{film}: the result would take the place of its source; give another -o or a --suffix")
        if target in found:
            raise ValueError(f"{film}: another film already becomes {target}; give one of them another place")
        found.append(target)
    return found


class FilmRun:
    """The films of one command.

    Args:
        upscaler: upscaler to use.
        coding: codec and quality; None for the container's usual ones.
        overwrite: whether to replace existing files.
        resume: whether to skip films whose result exists; segments of a stopped run are always used.
        quiet: whether to print nothing but problems.
        json: whether standard output is reserved for JSON.
    """

    def __init__(
        self, upscaler: Upscaler, coding: Coding | None, *, overwrite: bool, resume: bool, quiet: bool, json: bool
    ) -> None:
        self.upscaler, self.coding, self.overwrite, self.resume = upscaler, coding, overwrite, resume
        self.quiet, self.json = quiet, json
        self.files: list[dict[str, Any]] = []

    def _say(self, text: str) -> None:
        if not self.quiet:
            say(text, sys.stderr if self.json else sys.stdout)

    def _note(self, source: Path, target: Path, status: str, **more: Any) -> None:
        self.files.append({"source": str(source), "target": str(target), "status": status, **more})

    def count(self, status: str) -> int:
        """Number of films with a status.

        Args:
            status: "planned", "done", "skipped" or "failed".

        Returns:
            Number of films.
        """
        return sum(file["status"] == status for file in self.files)

    def one(self, source: Path, target: Path, *, dry_run: bool) -> None:
        """Plan a film and, unless only the plan is wanted, make it.

        Args:
            source: film to read.
            target: file to write.
            dry_run: whether to print the plan only.
        """
        from foveal.runtime.film.film import plan_film, upscale_film, usual

        try:
            if target.exists() and self.resume and not self.overwrite:
                self._note(source, target, "skipped")
                return
            if target.exists() and not self.overwrite:
                raise FileExistsError(f"{target}: exists already; --overwrite replaces it")
            plan = plan_film(self.upscaler, source, target, self.coding)
            coding = self.coding or usual(target)
            ready = f", {plan.ready} of them ready" if plan.ready else ""
            self._say(
                f"{source} → {target}: {plan.width}×{plan.height}, {plan.frames} frames{ready}, {coding.codec} at "
                f"rate factor {coding.factor}, {self.upscaler.engine()}: about {duration(plan.seconds)}"
            )
            for note in plan.notes:
                self._say(f"  {note}")
            if dry_run:
                self._note(source, target, "planned", frames=plan.frames, seconds=plan.seconds, notes=list(plan.notes))
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            result = upscale_film(
                self.upscaler, source, target, coding=self.coding, overwrite=self.overwrite, progress=self._progress()
            )
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # one bad film does not stop the others
            self._note(source, target, "failed", error=str(error))
            say(f"failed: {error}", sys.stderr)
            return
        found = result.to_dict()
        self._note(source, target, "done", **{k: v for k, v in found.items() if k not in ("source", "target")})
        kept = f", with {', '.join(result.kept)}" if result.kept else ""
        rate = (result.frames - result.resumed) / max(result.seconds, 1e-9)
        told = [note for note in result.notes if note not in plan.notes]
        line = f"{target}: {result.frames} frames in {duration(result.seconds)} ({rate:.1f} frames/s){kept}"
        self._say("; ".join([line, *told]))

    def _progress(self) -> Any:
        begun = said = time.monotonic()
        first = 0

        def progress(done: int, whole: int) -> None:
            nonlocal said, first
            now = time.monotonic()
            first = first or done
            if now - said < (0.5 if sys.stderr.isatty() else _EVERY) or self.quiet:
                return
            said = now
            left = (whole - done) * (now - begun) / max(1, done - first + 1)
            text = f"frame {done} of {whole}, about {duration(max(0.0, left))} left"
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{text}   " + ("\n" if done == whole else ""))
                sys.stderr.flush()
            else:
                say(text, sys.stderr)

        return progress
