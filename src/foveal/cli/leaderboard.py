"""`foveal leaderboard`: super-resolution networks, trained for equal minutes and timed in turn."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from foveal.cli._options import Benchmarks, Json, Threads, data_folder, stop

__all__ = ["leaderboard"]

DEFAULT_SETS = ["Set5", "Set14", "BSD100"]


def leaderboard(
    scale: Annotated[str, typer.Argument(metavar="x2|x3|x4", help="How many times larger pictures become.")] = "x4",
    out: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder of the board.")] = Path(
        "leaderboard"
    ),
    minutes: Annotated[float, typer.Option(metavar="N", help="Processor minutes of each training.")] = 10.0,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Trainings of each network.")] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only networks with this name, or part of one; repeat it for more."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="BUNDLE",
            help="A bundle that stands beside them as it is, e.g. an imported model.  [default: the shipped ones]",
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this engine: onnxruntime, openvino, torch.  [default: the fastest]"),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder of training pictures.  [default: bsds400]")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME|PATH", help="Test pictures.  [default: Set5, Set14, BSD100]"),
    ] = None,
    data: Benchmarks = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train every super-resolution network for equal minutes, time all in turn with RLFN, and rank them on one page.

    The seconds are told before. What is finished stays in the folder: the same command goes on after an interruption,
    and with more names it trains only what is new. The score is that of the NTIRE 2024 challenge, less is better; a
    network whose PSNR is more than 0.08 dB below RLFN's is not scored.

    Args:
        scale: x2, x3 or x4.
        out: folder of the board.
        minutes: processor minutes of each training.
        seeds: trainings of each network.
        only: names of networks.
        beside: bundles that stand beside them.
        engine: engines to try.
        pictures: folder of training pictures.
        sets: test pictures.
        data: folder of benchmark data.
        threads: processor threads.
        as_json: print one JSON document.

    Raises:
        typer.Exit: an unknown scale or network, no pictures, or a folder that holds another board.

    Example:
        $ foveal leaderboard x4 --only espcn --minutes 2 --seeds 1 --pictures samples --set samples -t 2 --engine torch
        2 networks, 2 trainings of 2 processor minutes each: about 2 min, and the timing
        rlfn, seed 0: 240 steps; about 2 min left
        espcn, seed 0: 6,100 steps; about 1 min left
        timing 4 networks in turn
        ...
        leaderboard/leaderboard.html
    """
    from foveal.runtime.machine import cores

    if scale.lower().removeprefix("x").removeprefix("×") not in ("2", "3", "4"):
        stop("leaderboard", f"the scale must be x2, x3 or x4, got {scale!r}")
    try:
        with data_folder("leaderboard", data):
            _run(
                int(scale[-1]), out, minutes, seeds, only or [], beside, engine or [], pictures, sets or DEFAULT_SETS,
                threads or cores(), as_json=as_json,
            )  # fmt: skip
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        stop("leaderboard", error)


def _run(
    scale: int,
    out: Path,
    minutes: float,
    seeds: int,
    only: list[str],
    beside: list[str] | None,
    engine: list[str],
    pictures: Path | None,
    sets: list[str],
    threads: int,
    *,
    as_json: bool,
) -> None:
    import torch

    from foveal.cli._progress import duration
    from foveal.evidence.leaderboard.board import Board, Settings, entrants
    from foveal.evidence.leaderboard.page import to_markdown, write_board
    from foveal.evidence.leaderboard.standing import standings
    from foveal.measure.benchmarks import find
    from foveal.runtime.bundle import SHIPPED

    def say(text: str) -> None:
        if not as_json:
            print(text, flush=True)

    folders = {Path(name).name: str(Path(name) if Path(name).is_dir() else find(name)) for name in sets}
    settings = Settings(scale, minutes, seeds, folders, str(pictures or find("bsds400")))
    board = Board(out, settings, entrants(scale, only), say)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left = len(board.left())
        say(
            f"{len(board.networks)} networks, {left} trainings of {minutes:g} processor minutes each: about "
            f"{duration(60 * left * minutes / threads)}, and the timing"
        )
        board.train()
        own = [f"{quality}_x{scale}" for quality in ("fast", "balanced") if (SHIPPED / f"{quality}_x{scale}").is_dir()]
        entries = standings(board, engines=engine, threads=threads, shipped=own if beside is None else beside)
        page = write_board(board, entries, threads=threads)
    finally:
        torch.set_num_threads(before)
    if as_json:
        print(json.dumps([asdict(entry) | {"mean": entry.mean} for entry in entries], indent=1))
        return
    print(to_markdown(board, entries, threads=threads))
    print(page)
