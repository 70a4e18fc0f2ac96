"""The pictures of one `foveal upscale` or `restore`, and what became of its films, with the messages about each."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.cli._speech import say

if TYPE_CHECKING:
    from foveal.cli._progress import Show
    from foveal.runtime.batch import Job, Record
    from foveal.runtime.plan import Plan
    from foveal.runtime.restorer import Restorer
    from foveal.runtime.result import Result
    from foveal.runtime.upscaler import Upscaler

__all__ = ["Run", "Wishes"]


@dataclass(frozen=True)
class Wishes:
    """The user's options for every picture.

    Args:
        overwrite: whether to replace existing files.
        resume: whether to skip pictures that are done.
        keep_record: whether to record finished pictures.
        limit_pixels: largest number of pixels of a source.
        background: colour behind transparent pixels, for formats without transparency.
        quiet: whether to print nothing but problems.
        json: whether standard output is reserved for JSON.
        dry_run: whether to plan only, and so to look at every picture for that.
        map_file: PNG that shows where the work of a budget went; None for none.
    """

    overwrite: bool
    resume: bool
    keep_record: bool
    limit_pixels: int
    background: tuple[int, int, int] | None
    quiet: bool
    json: bool
    dry_run: bool = False
    map_file: Path | None = None


class Run:
    """The pictures of one command with their status: planned, done, skipped or failed.

    Args:
        upscaler: what makes a picture from each: an upscaler or a restorer.
        wishes: options of the user.
        passed_over: files that were found but are not processed, each with its kind.
    """

    def __init__(self, upscaler: Upscaler | Restorer, wishes: Wishes, passed_over: list[tuple[Path, str]]) -> None:
        from foveal.runtime.batch import settings_of

        self.upscaler, self.wishes = upscaler, wishes
        self.files: dict[tuple[Path, int | None], dict[str, Any]] = {}
        self._passed_over = passed_over
        self._plans: list[tuple[Job, Plan]] = []
        self._records: dict[Path, Record] = {}
        self._settings = settings_of(upscaler, background=wishes.background)
        self._pages: list[str] = []
        self._told: set[str] = set()

    def count(self, status: str) -> int:
        """Number of pictures with a status.

        Args:
            status: "planned", "done", "skipped" or "failed".

        Returns:
            Number of pictures.
        """
        return sum(entry["status"] == status for entry in self.files.values())

    @property
    def failed(self) -> bool:
        """Whether something failed."""
        return bool(self.count("failed"))

    def _record(self, job: Job) -> Record:
        from foveal.runtime.batch import Record

        if job.folder not in self._records:
            self._records[job.folder] = Record(job.folder, self._settings)
        return self._records[job.folder]

    def note(self, job: Job, status: str, **more: Any) -> None:
        """Note what became of a picture or a film.

        Args:
            job: the job.
            status: "planned", "done", "skipped" or "failed".
            **more: further entries for the JSON document.
        """
        page = {} if job.page is None else {"page": job.page + 1, "pages": job.pages}
        names = {"source": str(job.source), **page, "target": str(job.target)}
        self.files[job.source, job.page] = {**names, "status": status, **more}

    def fail(self, job: Job, error: Exception | str, show: Show | None = None) -> None:
        """Note and print a failure.

        Args:
            job: the job.
            error: what went wrong.
            show: progress that is shown; None if there is none.
        """
        from foveal.runtime.errors import wording

        message = wording(error) if isinstance(error, Exception) else error
        if str(job.source) not in message and str(job.target) not in message:
            message = f"{job.named}: {message}"
        self.note(job, "failed", error=message)
        text = f"failed: {message}"
        if show is not None:
            show.problem(text)
        else:
            say(text, sys.stderr)

    def say(self, text: str) -> None:
        """Print a line, unless --quiet.

        Args:
            text: one line of text.
        """
        if not self.wishes.quiet:
            say(text, sys.stderr if self.wishes.json else sys.stdout)

    def _tell_notes(self) -> None:
        for note in self.upscaler.notes:
            if note not in self._told:
                self._told.add(note)
                self.say(note)

    def prepare(self, jobs: list[Job]) -> None:
        """Sort out pictures that are done or cannot be processed, and plan the others.

        Args:
            jobs: jobs of this run.
        """
        self.tell_passed_over()
        for job in jobs:
            if job.problem:
                self.fail(job, job.problem)
                continue
            try:
                plan = self._plan(job)
            except Exception as error:  # one bad file, however bad, does not stop the others
                self.fail(job, error)
                continue
            if plan is None:
                self.note(job, "skipped")
            else:
                self.note(job, "planned", plan=plan.to_dict())
                self._plans.append((job, plan))
        self._tell_notes()

    def tell_passed_over(self) -> None:
        """Print what was found and is not processed."""
        from foveal.runtime.batch import account

        for sentence in account(self._passed_over):
            self.say(sentence)

    def _plan(self, job: Job) -> Plan | None:
        """The plan of a picture, with notes on what will be lost; None if it is already done."""
        from foveal import images

        state = self._record(job).state(job)
        if self.wishes.resume and state == "done":
            return None
        if state != "missing" and not self.wishes.overwrite and not (self.wishes.resume and state == "stale"):
            raise FileExistsError(f"{job.target}: exists already; --overwrite replaces it")
        outlook = images.foresee(
            job.source,
            job.target,
            self.upscaler.scale,
            limit_pixels=self.wishes.limit_pixels,
            background=self.wishes.background,
            page=job.page,
        )
        image: Any = job.source
        if job.page is not None:
            image = images.read(job.source, limit_pixels=self.wishes.limit_pixels).page(job.page).frame()
        plan = self.upscaler.plan(image, file_format=images.format_for(job.target).name, look=self.wishes.dry_run)
        return replace(plan, notes=(*plan.notes, *job.notes, *outlook))

    def tell_plans(self) -> None:
        """Print the plans."""
        for job, plan in self._plans:
            self.say(_with_notes(f"{job.named} → {job.target}: {plan}", self._own(plan.notes)))
        self._tell_sum()

    def _own(self, notes: tuple[str, ...]) -> list[str]:
        """Notes about one picture only; notes about the whole run are printed once."""
        return [note for note in dict.fromkeys(notes) if note not in self.upscaler.notes]

    def _tell_sum(self) -> None:
        if self._plans:
            self.say(self._sum())
        elif self.count("skipped") or not self.files:
            self.say(f"nothing to do: {self.count('skipped')} done already")

    def _sum(self) -> str:
        from foveal.cli._progress import duration, megapixels

        count = len(self._plans)
        threads = self.upscaler.threads
        ways = " and ".join(dict.fromkeys(f"{plan.bundle}, {plan.engine}" for _, plan in self._plans))
        skipped = f", {self.count('skipped')} skipped" if self.count("skipped") else ""
        return (
            f"{count} picture{'' if count == 1 else 's'}, {megapixels(self._megapixels)} MP "
            f"with {ways}, {self._by_whom}{threads} thread{'' if threads == 1 else 's'}: "
            f"about {duration(self._seconds)}{skipped}"
        )

    @property
    def _by_whom(self) -> str:
        """Words before the number of threads."""
        return ""

    @property
    def _megapixels(self) -> float:
        return sum(plan.megapixels for _, plan in self._plans)

    @property
    def _seconds(self) -> float:
        # Opening the engine is part of every plan but happens once.
        once = max((plan.start for _, plan in self._plans), default=0.0)
        seconds = [plan.seconds - plan.start for _, plan in self._plans]
        return once + self._together(seconds)

    def _together(self, seconds: list[float]) -> float:
        """Seconds of all pictures."""
        return sum(seconds)

    def work(self) -> None:
        """Process the planned pictures."""
        self._tell_sum()
        start = time.monotonic()
        done = self._work()
        self._tell_notes()
        if self.count("done") > 1:
            from foveal.cli._progress import duration, megapixels

            seconds = time.monotonic() - start
            self.say(
                f"{self.count('done')} pictures, {megapixels(done)} MP in {duration(seconds)} "
                f"({megapixels(done / seconds)} MP/s)"
            )

    def _work(self) -> float:
        """Process the planned pictures; the megapixels done."""
        from foveal.cli._progress import Show
        from foveal.runtime.engines import EngineError

        with suppress(EngineError):  # it is raised again for the picture it affects
            self.upscaler.prepare()
        done = 0.0
        with Show(
            len(self._plans), self._megapixels, self._seconds, quiet=self.wishes.quiet, json=self.wishes.json
        ) as show:
            for job, plan in self._plans:
                show.begin(Path(job.named).name, plan.megapixels, plan.seconds)
                if self._one(job, plan, show):
                    done += plan.megapixels
                show.end(plan.megapixels)
        return done

    def _one(self, job: Job, plan: Plan, show: Show) -> bool:
        from foveal.cli._route_map import mapped

        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            with mapped(self.wishes.map_file, job, self.wishes.limit_pixels):
                result = self.upscaler.upscale_file(
                    job.source,
                    job.target,
                    overwrite=self.wishes.overwrite or self.wishes.resume,
                    limit_pixels=self.wishes.limit_pixels,
                    background=self.wishes.background,
                    page=job.page,
                    progress=show.step,
                )
        except Exception as error:  # one bad file, however bad, does not stop the others
            self.fail(job, error, show)
            return False
        self._finish(job, plan, result, show)
        return True

    def _finish(self, job: Job, plan: Plan, result: Result, show: Show, **more: Any) -> None:
        """Record and report a picture that is done."""
        from foveal.cli._progress import duration, megapixels

        result = replace(result, notes=tuple(dict.fromkeys((*plan.notes, *result.notes))))
        if self.wishes.keep_record:
            self._record(job).add(job)
        self.note(job, "done", **{k: v for k, v in result.to_dict().items() if k not in ("source", "target")}, **more)
        frames = f", {result.frames} frames" if result.frames > 1 else ""
        text = (
            f"{job.named} → {job.target}: {result.width}×{result.height}{frames}, {megapixels(result.megapixels)} MP "
            f"in {duration(result.seconds)} ({megapixels(result.megapixels / max(result.seconds, 1e-9))} MP/s)"
        )
        by = f"; by {more['worker']}" if more else ""
        show.line(_with_notes(text + by, self._own(result.notes)))

    def compare(self, jobs: list[Job], out: str | None) -> None:
        """Write the comparison page of all pictures with a result.

        Args:
            jobs: jobs of this run.
            out: value of `--output`.
        """
        from foveal import images
        from foveal.runtime.compare import MARK, make_pair, write_page

        shown = [job for job in jobs if self.files[job.source, job.page]["status"] in ("done", "skipped")]
        if not shown:
            return
        if len(jobs) == 1:
            page = shown[0].target.with_name(f"{shown[0].target.stem}_compare.html")
        else:
            page = (Path(out) if out is not None else shown[0].folder) / "compare.html"
        if page.exists() and not self.wishes.overwrite and MARK not in page.read_text("utf-8", "replace")[:400]:
            self._fail_page(page, "exists already and is no page of foveal's; --overwrite replaces it")
            return
        pairs = []
        try:
            for job in shown:
                picture = images.read(job.source, limit_pixels=self.wishes.limit_pixels).frame(job.page or 0)
                name = Path(job.named).name.encode("utf-8", "replace").decode()
                pairs.append(make_pair(self.upscaler, picture, name, f"{self.upscaler.name}, ×{self.upscaler.scale}"))
            write_page(page, pairs)
        except Exception as error:  # the pictures are done and must still be reported
            self._fail_page(page, f"{type(error).__name__}: {error}")
            return
        self._pages.append(str(page))
        self.say(f"before and after: {page}")

    def _fail_page(self, page: Path, why: str) -> None:
        self.files[page, None] = {"source": "", "target": str(page), "status": "failed", "error": why}
        say(f"failed: {page}: {why}", sys.stderr)

    def finish(self, seconds: float, code: int) -> int:
        """Print the document that `--json` asks for.

        Args:
            seconds: duration of the run.
            code: exit code of an interruption, else 0.

        Returns:
            Exit code of the command.
        """
        if self.wishes.json:
            document = self.document(seconds, interrupted=bool(code))
            if not say(json.dumps(document, indent=2), sys.stdout):
                say("failed: the JSON document could not be written to standard output", sys.stderr)
                code = code or 1
        return code or int(self.failed)

    def document(self, seconds: float, *, interrupted: bool) -> dict[str, Any]:
        """The document printed by `--json`.

        Args:
            seconds: duration of the run.
            interrupted: whether the run was interrupted.

        Returns:
            Plain data.
        """
        import foveal

        return {
            "foveal": foveal.__version__,
            "bundle": self.upscaler.name,
            "scale": self.upscaler.scale,
            "clean": self.upscaler.clean,
            "cleaner": None if self.upscaler.cleaner is None else self.upscaler.cleaner.card.name,
            "engine": self.upscaler.engine(),
            "threads": self.upscaler.threads,
            **self._more(),
            "seconds": seconds,
            "interrupted": interrupted,
            "counts": {status: self.count(status) for status in ("planned", "done", "skipped", "failed")},
            "passed_over": [{"path": str(path), "what": what} for path, what in self._passed_over],
            "notes": list(self.upscaler.notes),
            "pages": self._pages,
            "files": list(self.files.values()),
        }

    def _more(self) -> dict[str, Any]:
        """Further entries of the document."""
        return {}


def _with_notes(text: str, notes: list[str]) -> str:
    return "; ".join([text, *notes])
