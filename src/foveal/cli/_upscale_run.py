"""The pictures of one `foveal upscale` or `restore`, and what became of its films, with the messages about each."""

from __future__ import annotations

import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.cli._speech import say

if TYPE_CHECKING:
    from foveal.cli._progress import Show
    from foveal.runtime.batch import Job, Record
    from foveal.runtime.many_machines import Done, Order
    from foveal.runtime.plan import Plan
    from foveal.runtime.ray_batch import RayCrew
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
    """

    overwrite: bool
    resume: bool
    keep_record: bool
    limit_pixels: int
    background: tuple[int, int, int] | None
    quiet: bool
    json: bool
    dry_run: bool = False


class Run:
    """The pictures of one command with their status: planned, done, skipped or failed.

    Args:
        upscaler: what makes a picture from each: an upscaler or a restorer.
        wishes: options of the user.
        passed_over: files that were found but are not processed, each with its kind.
        crew: workers of a Ray cluster; None to do everything in this process.
        options: arguments of the Upscaler, for the workers.
    """

    def __init__(
        self,
        upscaler: Upscaler | Restorer,
        wishes: Wishes,
        passed_over: list[tuple[Path, str]],
        crew: RayCrew | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        from foveal.runtime.batch import settings_of

        self.upscaler, self.wishes = upscaler, wishes
        self._crew, self._options = crew, options or {}
        # What each worker of a crew does or did, and why it cannot.
        self._workers: dict[str, dict[str, Any]] = {}
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
        """Whether a picture failed, or a worker could not take part."""
        return bool(self.count("failed")) or any("problem" in worker for worker in self._workers.values())

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
        if self._crew is not None:
            self._foretell(self._crew)

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
            f"with {ways}, {self._crew_words}{threads} thread{'' if threads == 1 else 's'}: "
            f"about {duration(self._seconds)}{skipped}"
        )

    @property
    def _crew_words(self) -> str:
        if self._crew is None:
            return ""
        names = self._crew.workers
        machines = len({worker.node for worker in names.values()})
        return (
            f"{len(names)} worker{'' if len(names) == 1 else 's'} on {machines} machine{'' if machines == 1 else 's'}, "
            f"each with "
        )

    @property
    def _megapixels(self) -> float:
        return sum(plan.megapixels for _, plan in self._plans)

    @property
    def _seconds(self) -> float:
        # Opening the engine is part of every plan but happens once.
        once = max((plan.start for _, plan in self._plans), default=0.0)
        seconds = [plan.seconds - plan.start for _, plan in self._plans]
        if self._crew is None:
            return once + sum(seconds)
        from foveal.runtime.many_machines import share

        return once + share(seconds, len(self._crew.workers))[1]

    def work(self) -> None:
        """Process the planned pictures."""
        self._tell_sum()
        start = time.monotonic()
        done = self._work_here() if self._crew is None else self._work_there(self._crew)
        self._tell_notes()
        if self.count("done") > 1:
            from foveal.cli._progress import duration, megapixels

            seconds = time.monotonic() - start
            self.say(
                f"{self.count('done')} pictures, {megapixels(done)} MP in {duration(seconds)} "
                f"({megapixels(done / seconds)} MP/s)"
            )

    def _work_here(self) -> float:
        """Process the planned pictures in this process; the megapixels done."""
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
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
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

    def _foretell(self, crew: RayCrew) -> None:
        """Print and note who would do which picture, if all took as long as estimated."""
        from foveal.cli._progress import duration
        from foveal.runtime.many_machines import share

        seconds = [plan.seconds - plan.start for _, plan in self._plans]
        for worker, part in zip(crew.workers.values(), share(seconds, len(crew.workers))[0], strict=True):
            long = sum(seconds[index] for index in part)
            self._workers[worker.name] = {
                "name": worker.name,
                "threads": worker.threads,
                "pictures": len(part),
                "megapixels": sum(self._plans[index][1].megapixels for index in part),
                "seconds": long,
            }
            for index in part:
                self.files[self._plans[index][0].source, self._plans[index][0].page]["worker"] = worker.name
            count = f"{len(part)} picture{'' if len(part) == 1 else 's'}"
            threads = f"{worker.threads} thread{'' if worker.threads == 1 else 's'}"
            self.say(f"worker {worker.name}: {threads}, {count}, about {duration(long)}")

    def _work_there(self, crew: RayCrew) -> float:
        """Process the planned pictures by the workers of a crew; the megapixels done."""
        from foveal.cli._progress import Show
        from foveal.cli._upscale_crew import order_for, setup_for
        from foveal.runtime.many_machines import spread
        from foveal.runtime.upscaler import Upscaler

        assert isinstance(self.upscaler, Upscaler)  # only that command has --ray
        self._plans = [(job, plan) for job, plan in self._plans if self._has_folder(job)]
        if not self._plans:
            return 0.0
        orders = [order_for(job, plan, self.wishes) for job, plan in self._plans]
        names = crew.hire(setup_for(self.upscaler, self._options, orders), most=len(orders))
        self._workers = {
            name: {"name": name, "threads": crew.threads, "pictures": 0, "megapixels": 0.0, "seconds": 0.0}
            for name in names
        }
        done = finished = 0.0
        whole = self._megapixels
        many = f"{len(orders)} picture{'' if len(orders) == 1 else 's'}"
        with Show(1, whole, self._seconds, quiet=self.wishes.quiet, json=self.wishes.json) as show:
            show.begin(many, whole, self._seconds)

            def begin(index: int, _: str) -> None:
                if self.wishes.keep_record:
                    self._record(self._plans[index][0]).begin(self._plans[index][0])

            def unfit(worker: str, why: str) -> None:
                self._workers[worker]["problem"] = why
                show.problem(f"failed: worker {worker}: {why}")

            def beat(in_hand: float) -> None:
                if so_far := min(finished + in_hand, whole):
                    show.step(so_far, whole, (0, 0, 0, 0))

            events = spread(orders, crew, names, begin=begin, tell=show.line, unfit=unfit, beat=beat)
            with closing(events):
                for one in events:
                    plan = self._plans[one.index][1]
                    if self._take(one, orders[one.index], show):
                        done += plan.megapixels
                    finished += plan.megapixels
            show.end(whole)
        return done

    def _take(self, one: Done, order: Order, show: Show) -> bool:
        """Record and report what became of a picture in a worker."""
        job, plan = self._plans[one.index]
        result = one.outcome.result
        if result is None:
            # Workers know absolute paths, the user named these.
            message = one.outcome.error.replace(str(order.source), str(job.source))
            self.fail(job, message.replace(str(order.target), str(job.target)), show)
            return False
        had = self._workers[one.worker]
        had["pictures"] += 1
        had["megapixels"] += result.megapixels
        had["seconds"] += result.seconds
        self._finish(job, plan, replace(result, source=job.source, target=job.target), show, worker=one.worker)
        return True

    def _has_folder(self, job: Job) -> bool:
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.fail(job, error)
            return False
        return True

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

    def document(self, seconds: float, *, interrupted: bool) -> dict[str, Any]:
        """The document printed by `--json`.

        Args:
            seconds: duration of the run.
            interrupted: whether the run was interrupted.

        Returns:
            Plain data.
        """
        import foveal

        crew = {} if self._crew is None else {"workers": list(self._workers.values())}
        return {
            "foveal": foveal.__version__,
            "bundle": self.upscaler.name,
            "scale": self.upscaler.scale,
            "clean": self.upscaler.clean,
            "cleaner": None if self.upscaler.cleaner is None else self.upscaler.cleaner.card.name,
            "engine": self.upscaler.engine(),
            "threads": self.upscaler.threads,
            **crew,
            "seconds": seconds,
            "interrupted": interrupted,
            "counts": {status: self.count(status) for status in ("planned", "done", "skipped", "failed")},
            "passed_over": [{"path": str(path), "what": what} for path, what in self._passed_over],
            "notes": list(self.upscaler.notes),
            "pages": self._pages,
            "files": list(self.files.values()),
        }


def _with_notes(text: str, notes: list[str]) -> str:
    return "; ".join([text, *notes])
