"""Standing of a leaderboard's networks: each in its fastest engine, timed in turn, ranked as the challenge does."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from foveal.evidence.leaderboard.board import BASELINE, Board, BoardError, Settings, build_seeded, entrants
from foveal.evidence.rehearsal import rehearsing
from foveal.evidence.studies.ntire2024_esr import passes, score
from foveal.export.deployable import Collapsible, ExportError, Foldable
from foveal.measure import benchmarks
from foveal.measure.cost import count_macs, count_parameters
from foveal.measure.paired import interleaved
from foveal.shrink.measured import write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import nn

__all__ = ["Entry", "for_use", "small_board", "standings"]

RESULT = (720, 1280)  # sides of the result that is timed


@dataclass(frozen=True)
class Entry:
    """A line of the board.

    Args:
        name: name of the network.
        parameters: number of parameters.
        macs: multiply-adds for a result of 1280×720.
        steps: training steps of each seed; 0 for a network that came trained.
        psnr: PSNR of each seed, dB.
        similarity: MS-SSIM of each seed.
        engine: fastest engine.
        seconds: quartiles of the seconds per megapixel of the result.
        score: score of the challenge, less is better; None behind the gate or without a count.
        gated: whether its PSNR is too low for a score.
    """

    name: str
    parameters: int
    macs: int | None
    steps: int
    psnr: tuple[float, ...]
    similarity: tuple[float, ...]
    engine: str = ""
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    score: float | None = None
    gated: bool = False

    @property
    def mean(self) -> float:
        """Mean PSNR over the seeds, dB."""
        return float(np.mean(self.psnr))


def standings(
    board: Board, *, engines: Sequence[str] = (), threads: int = 2, shipped: Sequence[str] = ()
) -> list[Entry]:
    """Time the networks in turn and rank them.

    Args:
        board: the board, trained.
        engines: names of the engines to try, or parts of them; all that are installed without any.
        threads: processor threads.
        shipped: names or folders of bundles that stand beside them, as they are.

    Returns:
        Lines, those with the best scores first, then by PSNR.
    """
    found: dict[str, tuple[Entry, Callable[[], Any] | None]] = {}
    for name, build in board.networks.items():
        runs = board.runs.get(name, {})
        model = for_use(build_seeded(board.settings.scale, build, 0).eval())
        shape = (1, 3, RESULT[0] // board.settings.scale, RESULT[1] // board.settings.scale)
        entry = Entry(
            name,
            count_parameters(model),
            _macs(model, shape),
            next((run["steps"] for run in runs.values()), 0),
            tuple(run["psnr"] for run in runs.values()),
            tuple(run["similarity"] for run in runs.values()),
        )
        found[name] = entry, None
    for name in shipped:
        upscale, parameters = _bundle(name, board.settings.scale, threads)
        quality, similar = board.quality(upscale)
        low = np.random.default_rng(0).integers(0, 255, (*shape[2:], 3), np.uint8)
        entry = Entry(Path(name).name, parameters, None, 0, (quality,), (similar,), "as shipped")
        found[Path(name).name] = entry, partial(upscale, low)
    with TemporaryDirectory() as folder:
        return _timed(board, found, Path(folder), engines=engines, threads=threads)


def for_use(model: nn.Module) -> nn.Module:
    """A network as it runs after its training, with the branches that only training needs folded.

    Args:
        model: network in eval mode.

    Returns:
        Collapsed and folded if it offers that; its plain form, which wants a border, is left to bundles.
    """
    with torch.no_grad():
        if isinstance(model, Collapsible):
            model = model.collapse()
        return model.fold() if isinstance(model, Foldable) else model


def _macs(model: nn.Module, shape: tuple[int, ...]) -> int | None:
    try:
        return count_macs(model, shape)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # an operator that cannot be counted
        return None


def _bundle(name: str, scale: int, threads: int) -> tuple[Callable[..., NDArray[np.uint8]], int]:
    from foveal.runtime import Upscaler
    from foveal.runtime.bundle import Bundle

    upscaler: Any = Upscaler(model=name, threads=threads, clean="off")
    if upscaler.scale != scale:
        raise BoardError(f"{name} enlarges by {upscaler.scale}, the board is ×{scale}; leave it out")
    return upscaler, int(Bundle.load(name).card.parameters)


def _forms(board: Board, name: str, folder: Path, engines: Sequence[str], threads: int) -> dict[str, Callable[[], Any]]:
    """The network in every engine, each as a function without arguments."""
    scale = board.settings.scale
    example = torch.rand(1, 3, RESULT[0] // scale, RESULT[1] // scale)
    trained = str(0) in board.runs.get(name, {})
    model = for_use(board.trained(name) if trained else build_seeded(scale, board.networks[name], 0).eval())
    found: dict[str, Callable[[], Any]] = {}
    try:
        if set(engines) != {"torch"}:
            found.update(write(copy.deepcopy(model), folder, name, example).open(threads))
    except ExportError as error:
        board.say(f"{name}: no file for engines, timed in torch; {str(error).splitlines()[0]}")

    def run() -> Any:
        with torch.inference_mode():
            return model(example)

    found["torch"] = run
    wanted = {form: call for form, call in found.items() if not engines or any(part in form for part in engines)}
    if not wanted:
        raise BoardError(f"{name} runs in none of {', '.join(engines)}; it has {', '.join(found)}")
    return wanted


def _timed(
    board: Board,
    found: dict[str, tuple[Entry, Callable[[], Any] | None]],
    folder: Path,
    *,
    engines: Sequence[str] = (),
    threads: int = 2,
) -> list[Entry]:
    """Lines with times, in their order; `found` has None for a network that is to be timed in its engines."""
    calls: dict[str, tuple[str, Callable[[], Any]]] = {}
    for name, (entry, call) in found.items():
        forms = {entry.engine: call} if call else _forms(board, name, folder, engines, threads)
        times = interleaved(list(forms.values()), pairs=5, most=5.0) if len(forms) > 1 else ([0.0],)
        best = min(zip(forms, times, strict=True), key=lambda pair: median(pair[1]))[0]
        calls[name] = best, forms[best]
    board.say(f"timing {len(calls)} networks in turn")
    times = interleaved([call for _, call in calls.values()], most=20.0 * len(calls))
    size = RESULT[0] * RESULT[1] / 1e6
    lines = []
    for (name, (engine, _)), taken in zip(calls.items(), times, strict=True):
        lower, middle, upper = (float(n) / size for n in np.percentile(taken, (25, 50, 75)))
        lines.append(replace(found[name][0], engine=engine, seconds=(lower, middle, upper)))
    base = next(line for line in lines if line.name == BASELINE)
    ranked = [_ranked(line, base) for line in lines]
    return sorted(ranked, key=lambda line: (line.score is None, line.score or 0.0, -line.mean))


def _ranked(line: Entry, base: Entry) -> Entry:
    if not (line.psnr and base.psnr) or line.macs is None or base.macs is None:
        return line
    if not passes(line.mean, base.mean):
        return replace(line, gated=True)
    ours, theirs = (
        {"seconds": one.seconds[1], "macs": one.macs or 0, "parameters": one.parameters} for one in (line, base)
    )
    return replace(line, score=score(ours, theirs))


def small_board(only: Sequence[str], *, minutes: float) -> list[Entry]:
    """A board of one seed on bsds400 and Set5; in a rehearsal on drawn pictures, with two training steps.

    Args:
        only: names of networks, beside RLFN.
        minutes: processor minutes of each training.

    Returns:
        Its lines.
    """
    with TemporaryDirectory() as place:
        folder = Path(place)
        if rehearsing():
            (folder / "pictures").mkdir()
            for seed in range(2):
                coarse = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), np.uint8)
                drawn = np.kron(coarse, np.ones((16, 16, 1))).astype(np.uint8)
                Image.fromarray(drawn).save(folder / "pictures" / f"{seed}.png")
            pictures = test = str(folder / "pictures")
        else:
            pictures, test = str(benchmarks.find("bsds400")), str(benchmarks.find("Set5"))
        settings = Settings(4, minutes, 1, {Path(test).name: test}, pictures)
        board = Board(folder / "board", settings, entrants(4, only), say=lambda _: None)
        board.train()
        return standings(board, engines=("torch",))
