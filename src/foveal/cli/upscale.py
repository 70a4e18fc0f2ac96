"""`foveal upscale`: upscale pictures and keep colour profile, metadata, transparency and bit depth."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from foveal.cli._options import (
    Background,
    Codec,
    Compare,
    Crf,
    LimitMegapixels,
    Out,
    Quiet,
    Recursive,
    Resume,
    Tile,
    background_colour,
)
from foveal.cli._signals import exit_code, like_ctrl_c
from foveal.cli._speech import say

if TYPE_CHECKING:
    from foveal.runtime.ray_batch import RayCrew

__all__ = ["upscale"]


def upscale(
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Pictures, folders or globs.", show_default=False)
    ] = None,
    *,
    more: Annotated[
        list[str] | None, typer.Option("--input", "-i", metavar="INPUT", help="Another input, as an option.")
    ] = None,
    out: Out = None,
    scale: Annotated[
        int | None,
        typer.Option(
            "--scale", "-s", metavar="N", help="Upscaling factor: 2, 3 or 4.  [default: 4]", show_default=False
        ),
    ] = None,
    quality: Annotated[
        str,
        typer.Option(
            "--quality",
            metavar="NAME",
            help="fast, balanced or best; with --model, best averages over flips of the picture.",
        ),
    ] = "balanced",
    model: Annotated[
        str | None,
        typer.Option("--model", "-n", metavar="NAME|PATH", help="Bundle, instead of --scale and --quality."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option("--engine", metavar="NAME", help="auto (the fastest), native, onnxruntime, openvino or torch."),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", "-t", metavar="N", min=1, help="Processor threads.  [default: all]", show_default=False
        ),
    ] = None,
    tile: Tile = "auto",
    gpu: Annotated[int, typer.Option("--gpu", "-g", metavar="ID", help="GPU id; only -1 (CPU) is supported.")] = -1,
    clean: Annotated[
        str,
        typer.Option(
            "--clean",
            metavar="auto|off|N",
            help="Remove JPEG artefacts and noise: as much as needed, never, or at a strength of 0 to 100.",
        ),
    ] = "auto",
    content: Annotated[
        str,
        typer.Option("--content", metavar="auto|pixel", help="pixel keeps pixel art crisp, without a new colour."),
    ] = "auto",
    wrap: Annotated[
        bool, typer.Option("--wrap", help="The picture is a texture that tiles; so will the result.")
    ] = False,
    perception: Annotated[
        float,
        typer.Option(
            "--perception",
            metavar="P",
            help="How natural results look, 0 to 1, at the price of fidelity; 0 is the highest PSNR.",
        ),
    ] = 0.0,
    budget: Annotated[
        float,
        typer.Option(
            "--budget",
            metavar="SHARE",
            help="Share of the network's work, in (0, 1]; below 1 a smaller network makes the places that need least.",
        ),
    ] = 1.0,
    map_file: Annotated[
        Path | None,
        typer.Option(
            "--map", metavar="FILE", help="Write where the work of --budget went as a PNG.", show_default=False
        ),
    ] = None,
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="NAME",
            help="png, jpeg, webp, tiff, avif, gif or bmp.  [default: the source's, png for heic, jxl and dng]",
        ),
    ] = "",
    pages: Annotated[
        str,
        typer.Option(
            "--pages", metavar="keep|split", help="A TIFF of several pages stays one, or becomes a file for each page."
        ),
    ] = "keep",
    background: Background = "",
    codec: Codec = "",
    crf: Crf = None,
    suffix: Annotated[
        str | None,
        typer.Option(
            "--suffix",
            metavar="TEXT",
            help="Suffix of the results' names.  [default: _x4 beside the source, else none]",
        ),
    ] = None,
    recursive: Recursive = False,
    ray: Annotated[
        str,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="Spread the pictures over the machines of a Ray cluster: HOST:PORT of its head, or auto for the one "
            "that runs here. Without an address over the processors of this machine.",
            show_default=False,
        ),
    ] = "",
    resume: Resume = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print engine, tiles, memory, time estimate and problems.")
    ] = False,
    compare: Compare = False,
    limit_megapixels: LimitMegapixels = 400,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    quiet: Quiet = False,
) -> None:
    """Upscale pictures and films two, three or four times.

    Colour profile, metadata, orientation, transparency, 16 bits and animation are kept; what a format cannot store is
    reported. Large pictures are processed in tiles and streamed to disk. The first run of a bundle benchmarks each
    engine on this machine for about a second. "-" stands for standard input, and as --output for standard output.

    A run with several pictures, or into a folder, writes a record .foveal.jsonl there. --resume uses it: a picture is
    skipped if its result was made from the same source (size and modification time) by the same bundle on the same
    background. Results listed in the record are not upscaled again.

    A JPEG below quality 95, a picture that was one, and a noisy picture are cleaned as much as they need; clean
    pictures are left as they are. --dry-run reads each picture and reports what was found and what will be done.

    With --budget 0.5 a picture takes half of the work that its network would do: places with detail go to that network,
    the others to the next smaller one, and the line of the picture says how much went where. At 1 nothing changes.

    With --ray each machine runs as many workers as it has processors for, with --threads (4 by default) each. All
    machines must see the pictures and the results under the same paths. The pictures of a worker that dies are given to
    others.

    The exit code is 0 if all pictures are done, 1 if one failed, 2 if nothing could start, 130 after Ctrl-C, 143 after
    SIGTERM.

    Args:
        pictures: files, folders and globs.
        more: further files, folders and globs.
        out: folder, or file for one picture.
        scale: upscaling factor.
        quality: quality of the bundle.
        model: bundle, instead of scale and quality.
        engine: inference engine.
        threads: processor threads.
        tile: side of a tile in pixels, or auto.
        gpu: GPU id; only -1.
        clean: auto, off or a strength.
        content: auto or pixel.
        wrap: whether the picture is a texture that tiles.
        perception: how natural results look, from 0 to 1.
        budget: share of the network's work.
        map_file: PNG that shows where the work went.
        file_format: file format of the results.
        pages: keep or split.
        background: colour behind transparent pixels, for formats without transparency.
        codec: codec of films.
        crf: rate factor of films.
        suffix: suffix of the results' names.
        recursive: search subfolders.
        ray: address of a Ray cluster, "local" for one of this machine alone, "" for none.
        resume: skip finished pictures.
        overwrite: replace existing files.
        dry_run: only print the plans.
        compare: write the comparison page.
        limit_megapixels: largest size of a source.
        json: print one JSON document.
        quiet: print nothing but errors.

    Raises:
        typer.Exit: with the exit code.

    Example:
        $ foveal upscale photo.png -o large.png
        1 picture, 3.8 MP with balanced_x4, native, 2 threads: about 0.5 s
        photo.png → large.png: 2000×1920, 3.8 MP in 0.4 s (10.4 MP/s)

        $ foveal upscale photos -o large --ray 10.0.0.1:6379
        2 pictures, 2.5 MP with balanced_x4, native, 2 workers on 2 machines, each with 4 threads: about 0.2 s
        photos/a.png → large/a.png: 1280×960, 1.2 MP in 0.2 s (8.1 MP/s); by north/1
        photos/b.png → large/b.png: 1280×960, 1.2 MP in 0.2 s (8.0 MP/s); by south/1
        2 pictures, 2.5 MP in 0.2 s (15.8 MP/s)
    """
    arguments = dict(locals())
    from foveal.cli._crew_run import CrewRun
    from foveal.cli._film_run import FilmRun
    from foveal.cli._pipe import pipes, through_pipes
    from foveal.cli._upscale_run import Run, Wishes
    from foveal.runtime.batch import find_jobs
    from foveal.runtime.crew import CrewError
    from foveal.runtime.engines import EngineError
    from foveal.runtime.film.encode import Coding
    from foveal.runtime.upscaler import Upscaler

    if gpu >= 0:
        _stop(f"no engine here computes on a GPU, and -g {gpu} asks for one; leave -g out or say -g -1")
    if tile not in ("auto", "0") and not tile.isdecimal():
        _stop(f"--tile must be auto or a number of pixels, got {tile!r}; leave it out for the best")
    if pages not in ("keep", "split"):
        _stop(f"--pages must be keep or split, got {pages!r}; split writes a file for each page of a TIFF")
    given = [*(pictures or []), *(more or [])]
    if pipes(given, out):
        if ray:
            _stop("--ray takes files, and - is a pipe; leave one of them out")
        raise typer.Exit(through_pipes(upscale, arguments))
    below = background_colour("upscale", background)
    passed_over: list[tuple[Path, str]] = []
    options: dict[str, Any] = {
        "scale": scale or 4,
        "quality": quality,
        "model": model,
        "engine": engine,
        "threads": threads,
        "tile": "auto" if tile in ("auto", "0") else int(tile),
        "clean": clean,
        "content": content,
        "wrap": wrap,
        "perception": perception,
        "budget": budget,
    }
    with ExitStack() as stack:
        crew: RayCrew | None = None
        try:
            upscaler = Upscaler(**options)
            if scale not in (None, upscaler.scale):
                _stop(
                    f"-n {model} makes pictures {upscaler.scale} times larger, and -s {scale} asks for another size; "
                    "leave one of them out"
                )
            coding = Coding(codec or "h264", crf) if codec or crf is not None else None
            jobs = find_jobs(
                given,
                out,
                scale=upscaler.scale,
                recursive=recursive,
                suffix=suffix,
                file_format=file_format,
                split=pages == "split",
                pass_over=lambda path, what: passed_over.append((path, what)),
            )
            films = [job for job in jobs if job.film]
            stills = [job for job in jobs if not job.film]
            if films and budget < 1:
                _stop(
                    f"{films[0].source} is a film, and --budget would share each of its frames otherwise, which "
                    "flickers; leave --budget out, or say --quality fast"
                )
            if map_file is not None:
                _check_map(map_file, budget, len(jobs), ray=bool(ray), wrap=wrap, overwrite=overwrite)
            if films and ray:
                _stop(f"{films[0].source} is a film, and --ray spreads pictures; leave --ray out")
            filmer = upscaler
            if films and clean == "auto":
                filmer = Upscaler(**options | {"clean": "off"})  # a look at each frame would flicker
            if films and not stills:
                upscaler = filmer
            if ray:
                crew = stack.enter_context(_crew(ray, threads))
                options["threads"] = crew.threads
                upscaler = Upscaler(**options)
            upscaler.engine()
        except (ValueError, EngineError, CrewError) as error:
            _stop(str(error))
        wishes = Wishes(
            overwrite=overwrite,
            resume=resume,
            # A single picture leaves nothing but its result.
            keep_record=resume or len(jobs) > 1 or (out is not None and bool(jobs) and jobs[0].target != Path(out)),
            limit_pixels=int(limit_megapixels * 1e6),
            background=below,
            quiet=quiet,
            json=json,
            dry_run=dry_run,
            map_file=map_file,
        )
        started = time.monotonic()
        run = CrewRun(upscaler, wishes, passed_over, crew, options) if crew else Run(upscaler, wishes, passed_over)
        film_run = FilmRun(run, filmer, coding)
        code = 0
        with like_ctrl_c():
            try:
                if stills or not films:
                    run.prepare(stills)
                    if dry_run:
                        run.tell_plans()
                    else:
                        run.work()
                        if compare:
                            run.compare(stills, out)
                elif passed_over:
                    run.tell_passed_over()
                for job in films:
                    film_run.one(job)
            except KeyboardInterrupt as error:
                code = exit_code(error)
                hint = "; --resume goes on from there" if wishes.keep_record else ""
                if films and not hint:
                    hint = "; the same command goes on from there"
                say(f"interrupted: {run.count('done')} of {len(jobs)} done{hint}", sys.stderr)
        if code := run.finish(time.monotonic() - started, code):
            raise typer.Exit(code)


def _crew(address: str, threads: int | None) -> RayCrew:
    from foveal.runtime.ray_batch import RayCrew

    return RayCrew(address, threads)


def _check_map(path: Path, budget: float, pictures: int, *, ray: bool, wrap: bool, overwrite: bool) -> None:
    """Stop where no map can be drawn."""
    if budget == 1:
        _stop(f"--map {path} shows where the work of --budget went; give a budget below 1, such as --budget 0.5")
    if pictures != 1 or ray or wrap:
        _stop(f"--map {path} takes one picture, without --ray and --wrap, got {pictures}; name one, or leave --map out")
    if path.suffix.lower() != ".png":
        _stop(f"--map writes a PNG, got {path}; end its name in .png")
    if path.exists() and not overwrite:
        _stop(f"--map {path}: exists already; --overwrite replaces it")


def _stop(message: str) -> NoReturn:
    say(f"foveal upscale: {message}", sys.stderr)
    raise typer.Exit(2)
