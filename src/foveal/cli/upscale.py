"""`foveal upscale`: makes pictures larger and keeps everything else they hold."""

from __future__ import annotations

import json as json_module
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from foveal.cli._progress import Show
    from foveal.runtime.batch import Job, Record
    from foveal.runtime.plan import Plan
    from foveal.runtime.upscaler import Upscaler

__all__ = ["upscale"]


@dataclass(frozen=True)
class _Wishes:
    """What the user asked of every picture."""

    overwrite: bool
    resume: bool
    keep_record: bool
    limit_pixels: int
    background: tuple[int, int, int] | None
    quiet: bool
    json: bool


def upscale(
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Pictures, folders or globs.", show_default=False)
    ] = None,
    *,
    more: Annotated[
        list[str] | None, typer.Option("--input", "-i", metavar="INPUT", help="The same, as an option.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="OUT", help="A folder, or for one picture a file.  [default: beside]"),
    ] = None,
    scale: Annotated[int, typer.Option("--scale", "-s", help="2, 3 or 4 times as wide and high.")] = 4,
    quality: Annotated[
        str,
        typer.Option(
            "--quality", help="fast, balanced or best; best, with --model, takes the mean over mirror images."
        ),
    ] = "balanced",
    model: Annotated[
        str | None,
        typer.Option("--model", "-n", metavar="NAME|PATH", help="A bundle, instead of --scale and --quality."),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="auto (the fastest here), native, onnxruntime, openvino or torch.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Processor threads.  [default: all]", show_default=False)
    ] = None,
    tile: Annotated[
        str, typer.Option("--tile", "-t", metavar="auto|N", help="Side of a tile in pixels; 0 is auto.")
    ] = "auto",
    gpu: Annotated[int, typer.Option("--gpu", "-g", metavar="ID", help="-1 is the processor, all there is now.")] = -1,
    file_format: Annotated[
        str, typer.Option("--format", "-f", help="png, jpeg, webp, tiff, avif, gif or bmp.  [default: as it was]")
    ] = "",
    background: Annotated[
        str,
        typer.Option("--background", metavar="#RRGGBB", help="Below transparent pixels, where a format has none."),
    ] = "",
    suffix: Annotated[
        str | None, typer.Option("--suffix", help="Added to names.  [default: _x4 beside the source, else none]")
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Folders inside folders; the same tree is written.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip what is done; redo what has a newer source or other settings.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell engine, tiles, memory and seconds.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Write an HTML page of before and after.")] = False,
    limit_megapixels: Annotated[
        float, typer.Option("--limit-megapixels", min=0, help="Refuse larger pictures than this.")
    ] = 400,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what went wrong.")] = False,
) -> None:
    """Make pictures two, three or four times larger.

    Colour profile, metadata, orientation, transparency, 16 bits and animation are kept. Any size fits: large pictures
    are worked off in tiles and written as they are made. A bundle's first run measures this machine for a second.

    --resume goes by the record .foveal.jsonl that a run leaves in the folder of its results: a picture is skipped if it
    was made from the same source (size and time of change) by the same bundle.

    The exit code is 0 if every picture was done, 1 if one failed, 2 if nothing could begin, 130 after Ctrl-C.

    Args:
        pictures: files, folders and globs.
        more: the same.
        out: folder or file.
        scale: output side over input side.
        quality: of the bundle.
        model: bundle instead of scale and quality.
        engine: that computes.
        threads: processor threads.
        tile: side, or auto.
        gpu: -1.
        file_format: of the results.
        background: colour for formats without transparency.
        suffix: of the results' names.
        recursive: look into folders inside folders.
        resume: skip what is done.
        overwrite: replace what exists.
        dry_run: plan only.
        compare: write the page.
        limit_megapixels: of a source.
        json: machine-readable.
        quiet: no words.

    Raises:
        typer.Exit: with the exit code.

    Example:
        $ foveal upscale photo.png -o large.png
        1 picture, 3.8 MP with balanced_x4, openvino, 2 threads: about 2.1 s
        photo.png → large.png: 2000×1920, 3.8 MP in 2.8 s (1.4 MP/s)
    """
    from foveal.runtime.batch import find_jobs
    from foveal.runtime.engines import EngineError
    from foveal.runtime.upscaler import Upscaler

    if gpu >= 0:
        _stop(f"no engine here computes on a GPU, and -g {gpu} asks for one; leave -g out or say -g -1")
    if tile not in ("auto", "0") and not tile.isdecimal():
        _stop(f"--tile must be auto or a number of pixels, got {tile!r}")
    try:
        upscaler = Upscaler(
            scale,
            quality,
            model=model,
            engine=engine,
            threads=threads,
            tile="auto" if tile in ("auto", "0") else int(tile),
        )
        jobs = find_jobs(
            [*(pictures or []), *(more or [])],
            out,
            scale=upscaler.scale,
            recursive=recursive,
            suffix=suffix,
            file_format=file_format,
        )
        upscaler.engine()
    except (ValueError, EngineError) as error:
        _stop(str(error))
    wishes = _Wishes(
        overwrite=overwrite,
        resume=resume,
        keep_record=resume or (out is not None and jobs[0].target != Path(out)),
        limit_pixels=int(limit_megapixels * 1e6),
        background=_colour(background),
        quiet=quiet,
        json=json,
    )
    started = time.monotonic()
    run = _Run(upscaler, wishes)
    interrupted = False
    try:
        run.prepare(jobs)
        if dry_run:
            run.tell_plans()
        else:
            run.work()
            if compare:
                run.compare(jobs, out)
    except KeyboardInterrupt:
        interrupted = True
        print(f"interrupted: {run.count('done')} of {len(jobs)} done; --resume goes on from there", file=sys.stderr)
    if json:
        print(json_module.dumps(run.document(time.monotonic() - started, interrupted=interrupted), indent=2))
    if interrupted:
        raise typer.Exit(130)
    if run.count("failed"):
        raise typer.Exit(1)


def _stop(message: str) -> None:
    print(f"foveal upscale: {message}", file=sys.stderr)
    raise typer.Exit(2)


def _colour(text: str) -> tuple[int, int, int] | None:
    if not text:
        return None
    digits = {"white": "ffffff", "black": "000000"}.get(text, text.removeprefix("#"))
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        _stop(f"--background must be white, black or #rrggbb, got {text!r}")
        return None
    return red, green, blue


class _Run:
    """The pictures of one command, each with how it stands: planned, done, skipped or failed."""

    def __init__(self, upscaler: Upscaler, wishes: _Wishes) -> None:
        from foveal.runtime.batch import settings_of

        self.upscaler, self.wishes = upscaler, wishes
        self.files: dict[Path, dict[str, Any]] = {}
        self._plans: list[tuple[Job, Plan]] = []
        self._records: dict[Path, Record] = {}
        self._settings = settings_of(upscaler)
        self._pages: list[str] = []
        self._told: set[str] = set()

    def count(self, status: str) -> int:
        return sum(entry["status"] == status for entry in self.files.values())

    def _record(self, job: Job) -> Record:
        from foveal.runtime.batch import Record

        if job.folder not in self._records:
            self._records[job.folder] = Record(job.folder, self._settings)
        return self._records[job.folder]

    def _note(self, job: Job, status: str, **more: Any) -> None:
        self.files[job.source] = {"source": str(job.source), "target": str(job.target), "status": status, **more}

    def _fail(self, job: Job, message: str, show: Show | None = None) -> None:
        self._note(job, "failed", error=message)
        text = f"failed: {message}"
        if show is not None:
            show.problem(text)
        else:
            print(text, file=sys.stderr)

    def _say(self, text: str) -> None:
        if not self.wishes.quiet:
            print(text, file=sys.stderr if self.wishes.json else sys.stdout, flush=True)

    def _tell_notes(self) -> None:
        for note in self.upscaler.notes:
            if note not in self._told:
                self._told.add(note)
                self._say(note)

    def prepare(self, jobs: list[Job]) -> None:
        """Sort out what is done or cannot be done, and plan the rest."""
        from foveal import images

        for job in jobs:
            if job.problem:
                self._fail(job, job.problem)
                continue
            state = self._record(job).state(job)
            if self.wishes.resume and state == "done":
                self._note(job, "skipped")
                continue
            if state != "missing" and not self.wishes.overwrite and not (self.wishes.resume and state == "stale"):
                self._fail(job, f"{job.target}: exists already; --overwrite replaces it")
                continue
            try:
                info = images.probe(job.source)
                if info.width * info.height > self.wishes.limit_pixels:
                    images.read(job.source, limit_pixels=self.wishes.limit_pixels)  # says why not
                plan = self.upscaler.plan(job.source, file_format=_format(job.target))
            except (images.PictureError, OSError) as error:
                self._fail(job, str(error))
                continue
            self._note(job, "planned", plan=plan.to_dict())
            self._plans.append((job, plan))
        self._tell_notes()

    def tell_plans(self) -> None:
        for job, plan in self._plans:
            self._say(f"{job.source} → {job.target}: {plan}")
        self._say(self._sum())

    def _sum(self) -> str:
        from foveal.cli._progress import duration, megapixels

        count = len(self._plans)
        threads = self.upscaler.threads
        skipped = f", {self.count('skipped')} skipped" if self.count("skipped") else ""
        return (
            f"{count} picture{'' if count == 1 else 's'}, {megapixels(self._megapixels)} MP "
            f"with {self.upscaler.name}, {self.upscaler.engine()}, {threads} thread{'' if threads == 1 else 's'}: "
            f"about {duration(self._seconds)}{skipped}"
        )

    @property
    def _megapixels(self) -> float:
        return sum(plan.megapixels for _, plan in self._plans)

    @property
    def _seconds(self) -> float:
        # Opening the engine is part of every plan and happens once.
        once = max((plan.start for _, plan in self._plans), default=0.0)
        return once + sum(plan.seconds - plan.start for _, plan in self._plans)

    def work(self) -> None:
        from foveal.cli._progress import Show, duration, megapixels
        from foveal.runtime.engines import EngineError

        if self._plans or not self.files:
            self._say(self._sum())
        elif self.count("skipped"):
            self._say(f"nothing to do: {self.count('skipped')} done already")
        with suppress(EngineError):  # it will come again with the picture it stops
            self.upscaler.prepare()
        start, done = time.monotonic(), 0.0
        with Show(
            len(self._plans), self._megapixels, self._seconds, quiet=self.wishes.quiet, json=self.wishes.json
        ) as show:
            for job, plan in self._plans:
                show.begin(job.source.name, plan.megapixels, plan.seconds)
                if self._one(job, show):
                    done += plan.megapixels
                show.end(plan.megapixels)
        self._tell_notes()
        if self.count("done") > 1:
            seconds = time.monotonic() - start
            self._say(
                f"{self.count('done')} pictures, {megapixels(done)} MP in {duration(seconds)} "
                f"({megapixels(done / seconds)} MP/s)"
            )

    def _one(self, job: Job, show: Show) -> bool:
        from foveal.cli._progress import duration, megapixels
        from foveal.images import PictureError
        from foveal.runtime.engines import EngineError

        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            result = self.upscaler.upscale_file(
                job.source,
                job.target,
                overwrite=self.wishes.overwrite or self.wishes.resume,
                limit_pixels=self.wishes.limit_pixels,
                background=self.wishes.background,
                progress=show.step,
            )
        except (PictureError, EngineError, OSError, MemoryError) as error:
            text = str(error) or type(error).__name__
            self._fail(
                job, text if str(job.source) in text or str(job.target) in text else f"{job.source}: {text}", show
            )
            return False
        except Exception as error:  # one bad file, however bad, does not stop the rest
            self._fail(job, f"{job.source}: {type(error).__name__}: {error}", show)
            return False
        if self.wishes.keep_record:
            self._record(job).add(job)
        self._note(job, "done", **{k: v for k, v in result.to_dict().items() if k not in ("source", "target")})
        frames = f", {result.frames} frames" if result.frames > 1 else ""
        show.line(
            f"{job.source} → {job.target}: {result.width}×{result.height}{frames}, {megapixels(result.megapixels)} MP "
            f"in {duration(result.seconds)} ({megapixels(result.megapixels / max(result.seconds, 1e-9))} MP/s)"
        )
        return True

    def compare(self, jobs: list[Job], out: str | None) -> None:
        """Write the page for all pictures that have a result."""
        from foveal import images
        from foveal.runtime.compare import MARK, make_pair, write_page

        shown = [job for job in jobs if self.files[job.source]["status"] in ("done", "skipped")]
        if not shown:
            return
        if len(jobs) == 1:
            page = shown[0].target.with_name(f"{shown[0].target.stem}_compare.html")
        else:
            page = (Path(out) if out is not None else shown[0].folder) / "compare.html"
        if page.exists() and not self.wishes.overwrite and MARK not in page.read_text("utf-8", "replace")[:400]:
            self.files[page] = {"source": "", "target": str(page), "status": "failed", "error": "exists already"}
            print(
                f"failed: {page}: exists already and is no page of foveal's; --overwrite replaces it", file=sys.stderr
            )
            return
        pairs = []
        for job in shown:
            picture = images.read(job.source, limit_pixels=self.wishes.limit_pixels).frame(0)
            pairs.append(
                make_pair(self.upscaler, picture, job.source.name, f"{self.upscaler.name}, ×{self.upscaler.scale}")
            )
        write_page(page, pairs)
        self._pages.append(str(page))
        self._say(f"before and after: {page}")

    def document(self, seconds: float, *, interrupted: bool) -> dict[str, Any]:
        """What `--json` prints."""
        import foveal

        return {
            "foveal": foveal.__version__,
            "bundle": self.upscaler.name,
            "scale": self.upscaler.scale,
            "engine": self.upscaler.engine(),
            "threads": self.upscaler.threads,
            "seconds": seconds,
            "interrupted": interrupted,
            "counts": {status: self.count(status) for status in ("planned", "done", "skipped", "failed")},
            "notes": list(self.upscaler.notes),
            "pages": self._pages,
            "files": list(self.files.values()),
        }


def _format(path: Path) -> str:
    from foveal.images.formats import SUFFIXES

    return SUFFIXES[path.suffix.lower()].name
