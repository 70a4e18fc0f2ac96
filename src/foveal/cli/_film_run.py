"""The films of one `foveal upscale` or `restore`: planned, done, skipped or failed, and the messages about each."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from foveal.cli._progress import duration
from foveal.cli._speech import say

if TYPE_CHECKING:
    from pathlib import Path

    from foveal.cli._upscale_run import Run
    from foveal.runtime.batch import Job, Record
    from foveal.runtime.film.encode import Coding
    from foveal.runtime.restorer import Restorer
    from foveal.runtime.upscaler import Upscaler

__all__ = ["FilmRun"]

_EVERY = 10.0  # seconds between two lines of progress in a pipe


class FilmRun:
    """The films of one command.

    Args:
        run: the command's run, which counts and reports them beside the pictures.
        upscaler: upscaler of films, or a restorer, which settles for each film what it needs.
        coding: codec and quality; None for the container's usual ones.
    """

    def __init__(self, run: Run, upscaler: Upscaler | Restorer, coding: Coding | None) -> None:
        self.run, self.upscaler, self.coding = run, upscaler, coding
        self._records: dict[Path, Record] = {}

    def _record(self, job: Job) -> Record:
        from foveal.runtime.batch import Record, settings_of

        if job.folder not in self._records:
            coding = f" {self.coding.codec} {self.coding.factor}" if self.coding else ""
            self._records[job.folder] = Record(job.folder, settings_of(self.upscaler) + coding)
        return self._records[job.folder]

    def _refuse(self, job: Job) -> bool:
        """Whether a film is done already; what stands in its way is an error."""
        from foveal._install import install_hint
        from foveal.runtime.film.source import FilmError

        wishes = self.run.wishes
        if job.problem:
            raise FilmError(job.problem)
        state = self._record(job).state(job)
        if wishes.resume and state == "done":
            return True
        if state != "missing" and not wishes.overwrite and not (wishes.resume and state == "stale"):
            raise FileExistsError(f"{job.target}: exists already; --overwrite replaces it")
        if find_spec("av") is None:
            hint = install_hint("video")
            raise FilmError(f"{job.source}: reading a film needs av, which is not installed; {hint}")
        return False

    def one(self, job: Job) -> None:
        """Plan a film and, unless only the plan is wanted, make it.

        Args:
            job: the film.
        """
        from foveal.runtime.film.film import plan_film, upscale_film, usual
        from foveal.runtime.film.restore import FilmRestorer, plan_restored, restore_film
        from foveal.runtime.restorer import Restorer

        run, wishes, source, target = self.run, self.run.wishes, job.source, job.target
        try:
            if self._refuse(job):
                run.note(job, "skipped")
                return
            worker: Any = self.upscaler
            make: Any = upscale_film
            more: dict[str, Any] = {}
            if isinstance(self.upscaler, Restorer):
                worker, make = FilmRestorer(self.upscaler, source), restore_film
                plan, more = plan_restored(worker, source, target, self.coding), {"clean": worker.clean}
            else:
                plan = plan_film(self.upscaler, source, target, self.coding)
            coding = self.coding or usual(target)
            ready = f", {plan.ready} of them ready" if plan.ready else ""
            how = f"{coding.codec} at rate factor {coding.factor}, {worker.engine()}: about {duration(plan.seconds)}"
            run.say(
                f"{source} → {target}: {plan.width}×{plan.height}, {plan.frames} frames{ready}, "
                f"{'copied' if plan.copied else how}"
            )
            for note in plan.notes:
                run.say(f"  {note}")
            if wishes.dry_run:
                run.note(job, "planned", frames=plan.frames, seconds=plan.seconds, notes=list(plan.notes), **more)
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            result = make(
                worker,
                source,
                target,
                coding=self.coding,
                overwrite=wishes.overwrite or wishes.resume,
                progress=self._progress(),
            )
        except Exception as error:  # one bad film, however bad, does not stop the others
            run.fail(job, error)
            return
        if wishes.keep_record:
            self._record(job).add(job)
        found = result.to_dict()
        run.note(job, "done", **{k: v for k, v in found.items() if k not in ("source", "target")}, **more)
        kept = f", with {', '.join(result.kept)}" if result.kept else ""
        rate = (result.frames - result.resumed) / max(result.seconds, 1e-9)
        told = [note for note in result.notes if note not in plan.notes]
        pace = "copied" if plan.copied else f"in {duration(result.seconds)} ({rate:.1f} frames/s)"
        line = f"{target}: {result.frames} frames {pace}{kept}"
        run.say("; ".join([line, *told]))

    def _progress(self) -> Any:
        begun = said = time.monotonic()
        first = 0

        def progress(done: int, whole: int) -> None:
            nonlocal said, first
            now = time.monotonic()
            first = first or done
            if now - said < (0.5 if sys.stderr.isatty() else _EVERY) or self.run.wishes.quiet:
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
