"""Seconds of `foveal upscale --ray` on one and two workers, what a picture costs besides its pixels, 100 on paper.

    python bench/many_machines.py --pictures 40

The same pictures go through the plain command (one process, one thread) and through local clusters of one and two
workers of one thread. The terms that a larger cluster would have are measured one by one:

    seconds(n, W) = start + n · plan + max(n · serial, n · work / W + tail)

start: Ray, and the first worker ready. plan: the starting machine reads a header and plans. serial: what the starting
machine does for a picture while others work (it gives it away, notes it, prints a line); no number of workers goes
below. work: one picture on one worker, message and all. tail: the last pictures are not done together, at most one
`work`. The drive that all share is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from pathlib import Path

from PIL import Image

import foveal
from foveal.cli._upscale_crew import order_for
from foveal.cli._upscale_run import Run, Wishes
from foveal.runtime.batch import find_jobs, settings_of
from foveal.runtime.crew import Setup
from foveal.runtime.many_machines import spread
from foveal.runtime.ray_batch import RayCrew
from foveal.runtime.upscaler import Upscaler

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
OPTIONS = {"scale": 4, "quality": "fast", "clean": "off", "threads": 1}


def album(folder: Path, count: int, width: int, height: int) -> None:
    """Crops of the samples."""
    folder.mkdir()
    pictures = sorted(SAMPLES.glob("*.png"))
    for index in range(count):
        with Image.open(pictures[index % len(pictures)]) as opened:
            opened.convert("RGB").resize((width, height)).save(folder / f"{index:05}.png")


def wishes() -> Wishes:
    return Wishes(False, False, True, 400_000_000, None, quiet=True, json=False)


def plain(source: Path, target: Path) -> tuple[float, float]:
    """Seconds of the whole, and of planning a picture."""
    upscaler = Upscaler(**OPTIONS)
    jobs = find_jobs([source], target, scale=upscaler.scale)
    run = Run(upscaler, wishes(), [])
    begun = time.perf_counter()
    run.prepare(jobs)
    planned = time.perf_counter()
    run.work()
    return time.perf_counter() - begun, (planned - begun) / len(jobs)


def together(source: Path, target: Path, workers: int) -> dict[str, float]:
    """Seconds of a batch on some workers, its start, and what the driver itself spent on a picture."""
    upscaler = Upscaler(**OPTIONS)
    jobs = find_jobs([source], target, scale=upscaler.scale)
    target.mkdir()
    begun = time.perf_counter()
    with RayCrew("local", 1) as crew:
        settled = upscaler.settled()
        setup = Setup(OPTIONS, settled, settings_of(upscaler), foveal.__version__, (source, target))
        names = crew.hire(setup, most=workers)
        assert len(names) == workers, f"{workers} workers take {workers} processors"
        events = []
        while len(events) < workers:
            events += crew.wait(1.0)
        started = time.perf_counter()

        class Ready:
            """The crew, whose workers have said already that they are ready."""

            def wait(self, seconds: float) -> list:
                return [events.pop()] if events else crew.wait(seconds)

            def __getattr__(self, name: str) -> object:
                return getattr(crew, name)

        run = Run(upscaler, wishes(), [])
        run.prepare(jobs)
        orders = [order_for(job, plan, wishes()) for job, plan in run._plans]
        begun_work, at = time.perf_counter(), time.process_time()  # of this process, whatever the workers take
        done = list(spread(orders, Ready(), names))
        worked, serial = time.perf_counter() - begun_work, time.process_time() - at
        assert not any(one.outcome.error for one in done)
        inside = sum(one.outcome.result.seconds for one in done if one.outcome.result) / len(done)
    return {
        "start": started - begun,
        "work": worked,
        "serial": serial / len(jobs),
        "inside": inside,
        "each": worked * workers / len(jobs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--size", default="400x300", help="of a source")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(name)
        album(folder / "in", args.pictures, width, height)
        plain(folder / "in", folder / "first")  # measures the engine, once
        whole, plan = plain(folder / "in", folder / "plain")
        one = together(folder / "in", folder / "one", 1)
        two = together(folder / "in", folder / "two", 2)
        for path in sorted((folder / "plain").glob("*.png")):
            same = {(folder / kind / path.name).read_bytes() == path.read_bytes() for kind in ("one", "two")}
            assert same == {True}, path.name
    count = args.pictures
    print(
        f"{count} pictures of {width}×{height} to ×4, `fast`; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    print("\n| | start (s) | work (s) | pictures/s | a picture inside a worker (ms) | besides (ms) |")
    print("|---|---|---|---|---|---|")
    print(f"| one process | – | {whole:.2f} | {count / whole:.2f} | – | – |")
    for label, got in (("1 worker", one), ("2 workers", two)):
        besides = got["each"] - got["inside"]
        print(
            f"| {label} | {got['start']:.1f} | {got['work']:.2f} | {count / got['work']:.2f} | "
            f"{got['inside'] * 1e3:.0f} | {besides * 1e3:.1f} |"
        )
    serial, work = max(one["serial"], two["serial"]), one["each"]
    print(f"\nplan {plan * 1e3:.2f} ms, serial {serial * 1e3:.2f} ms, work {work * 1e3:.0f} ms a picture")
    print("\n| workers | 10,000 pictures on paper (s) | times one worker |")
    print("|---|---|---|")
    alone = 0.0
    for workers in (1, 2, 10, 100):
        n = 10_000
        seconds = one["start"] + n * plan + max(n * serial, n * work / workers + work * (workers > 1))
        alone = alone or seconds
        print(f"| {workers} | {seconds:.0f} | {alone / seconds:.1f} |")


if __name__ == "__main__":
    main()
