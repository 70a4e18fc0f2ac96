"""`foveal restore`: find what is wrong with pictures, repair it at their own size, and say what was done."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from foveal.cli._options import (
    Background,
    Codec,
    Compare,
    Crf,
    Json,
    LimitMegapixels,
    Out,
    Quiet,
    Recursive,
    Resume,
    Threads,
    Tile,
    background_colour,
    stop,
)
from foveal.cli._signals import exit_code, like_ctrl_c
from foveal.cli._speech import say

__all__ = ["restore"]


def restore(
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Pictures, films, folders or globs.", show_default=False)
    ] = None,
    *,
    out: Out = None,
    fix: Annotated[
        str,
        typer.Option(
            "--fix",
            metavar="auto|NAMES",
            help="auto (JPEG, noise and darkness, where found), or of jpeg, noise, rain, snow, light, holes, blur or "
            "blur=SIGMA, exposure=STOPS, rolling-shutter.",
        ),
    ] = "auto",
    strength: Annotated[
        str,
        typer.Option(
            "--strength", metavar="auto|N", help="Of cleaning JPEG and noise: as much as needed, or 1 to 100."
        ),
    ] = "auto",
    infrared: Annotated[
        str | None,
        typer.Option(
            "--with", metavar="PICTURE", help="Infrared picture of the same scene and size, fused with INPUT."
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="The inputs are exposures of one scene; they become one picture.")
    ] = False,
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            metavar="PATH",
            help="Of holes: a picture, white where it is to be filled, or a folder of such with the inputs' names.  "
            "[default: transparent pixels]",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="auto (the fastest), onnxruntime, openvino or torch.")
    ] = "auto",
    threads: Threads = None,
    tile: Tile = "auto",
    file_format: Annotated[
        str,
        typer.Option(
            "--format", "-f", metavar="NAME", help="png, jpeg, webp, tiff, avif, gif or bmp.  [default: the source's]"
        ),
    ] = "",
    background: Background = "",
    codec: Codec = "",
    crf: Crf = None,
    suffix: Annotated[
        str | None,
        typer.Option(
            "--suffix",
            metavar="TEXT",
            help="Suffix of the results' names.  [default: _restored beside the source, else none]",
        ),
    ] = None,
    recursive: Recursive = False,
    resume: Resume = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what was found, engine, memory, seconds and problems.")
    ] = False,
    compare: Compare = False,
    limit_megapixels: LimitMegapixels = 400,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Repair damaged pictures and films at their own size.

    Every picture is looked at: the quality of a JPEG, in its file or in its pixels; noise; how dark it is. What is
    found is repaired in this order: holes, JPEG and noise, rain and snow, rolling shutter, blur, light, exposure. Only
    JPEG, noise and darkness are repaired unasked. Nothing found, nothing changed: the pixels are written as they were.

    --fix holes fills what --mask or transparency names; blur reads the width of a slight blur or takes it, as pixels or
    as blur=motion:LENGTH:ANGLE; exposure=+1 gives twice the light; rolling-shutter takes films, or the numbered frames
    of one in a folder, and after "=" the share of the time between frames in which rows are read.

    --merge makes one picture of several exposures of a scene, --with fuses a picture with its infrared twin; both want
    pictures that lie on each other, of one size. What comes of it is then repaired.

    Of a film five frames spread over it are looked at, what is usual among them decides, and all frames are treated
    alike; a film in which nothing is found is copied.

    Colour profile, metadata, orientation, transparency, 16 bits and animation are kept, as by foveal upscale, and of
    films sound, subtitles, timestamps and colour tags; a record .foveal.jsonl in the folder of the results lets
    --resume go on.

    The exit code is 0 if all pictures are done, 1 if one failed, 2 if nothing could start, 130 after Ctrl-C, 143 after
    SIGTERM.

    Args:
        pictures: files, folders and globs.
        out: folder, or file for one picture.
        fix: what to repair.
        strength: of cleaning.
        infrared: infrared picture to fuse one input with.
        merge: whether the inputs are exposures of one scene.
        mask: picture of the holes, or a folder of them.
        engine: inference engine.
        threads: processor threads.
        tile: side of a tile in pixels, or auto.
        file_format: file format of the results.
        background: colour behind transparent pixels, for formats without transparency.
        codec: codec of films.
        crf: rate factor of films.
        suffix: suffix of the results' names.
        recursive: search subfolders.
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
        $ foveal restore photo.jpg -o better.jpg
        1 picture, 0.24 MP with repair_clean+repair_light, onnxruntime, 2 threads: about 0.5 s
        photo.jpg → better.jpg: 500×480, 0.24 MP in 0.4 s (0.6 MP/s); JPEG of quality 40: cleaned at strength 62
        $ foveal restore scan.png -o new.png --fix holes,exposure=+0.5 --mask m.png
        1 picture, 0.24 MP with holes+exposure, numpy, 2 threads: about 0.8 s
        ...
    """
    from foveal.cli._film_run import FilmRun
    from foveal.cli._upscale_run import Run, Wishes
    from foveal.runtime.batch import find_jobs
    from foveal.runtime.engines import EngineError
    from foveal.runtime.film.encode import Coding
    from foveal.runtime.restorer import Restorer

    if tile not in ("auto", "0") and not tile.isdecimal():
        stop("restore", f"--tile must be auto or a number of pixels, got {tile!r}; leave it out for the best")
    below = background_colour("restore", background)
    passed_over: list[tuple[Path, str]] = []
    given = list(pictures or [])
    if infrared is not None and (merge or len(given) != 1 or Path(given[0]).is_dir()):
        stop(
            "restore", f"--with {infrared} fuses one picture with its infrared twin; name that picture, without --merge"
        )
    if merge and (len(given) < 2 or out is None):
        stop("restore", "--merge takes two or more exposures of one scene and -o FILE for the result")
    if merge or infrared is not None:
        _refuse_films([*given, *([] if infrared is None else [infrared])], "--merge" if merge else "--with")
    try:
        coding = Coding(codec or "h264", crf) if codec or crf is not None else None
        restorer = Restorer(
            fix,
            infrared=infrared,
            exposures=given[1:] if merge else (),
            mask=mask,
            strength=strength,
            engine=engine,
            threads=threads,
            tile="auto" if tile in ("auto", "0") else int(tile),
        )
        jobs = find_jobs(
            given[:1] if merge else given,
            out,
            scale=1,
            recursive=recursive,
            suffix="_restored" if suffix is None and out is None else suffix,
            file_format=file_format,
            pass_over=lambda path, what: passed_over.append((path, what)),
        )
        films, stills = [job for job in jobs if job.film], [job for job in jobs if not job.film]
        restorer.engine()
    except (ValueError, EngineError) as error:
        stop("restore", error)
    wishes = Wishes(
        overwrite=overwrite,
        resume=resume,
        keep_record=resume or len(jobs) > 1 or (out is not None and bool(jobs) and jobs[0].target != Path(out)),
        limit_pixels=int(limit_megapixels * 1e6),
        background=below,
        quiet=quiet,
        json=json,
        dry_run=dry_run,
    )
    started = time.monotonic()
    run = Run(restorer, wishes, passed_over)
    film_run = FilmRun(run, restorer, coding)
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


def _refuse_films(given: list[str], option: str) -> None:
    from foveal.runtime.film.film import is_film

    for name in given:
        if is_film(Path(name)):
            stop("restore", f"{option} takes pictures, and {name} is a film; take a frame of it, or leave {option} out")
