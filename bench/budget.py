"""What does `foveal upscale --budget` save on photographs of two megapixels, and what does it lose? ×4 by default.

    python bench/budget.py                                table on standard output
    python bench/budget.py --save results/budget          also results/budget.md and .json
    python bench/budget.py --pictures FOLDER --no-timing  your own photographs; PSNR only

Photographs: the four wallpapers of Debian's lomiri packages that no network of foveal was trained on (fetched with
apt-get into --packages), and one put together from 16 pictures of BSD100 if that is on this machine. Each is reduced
to about two megapixels, which removes most of what JPEG left, then `scale` times by bicubic `imresize`, and enlarged.
`random` is the same budget with the places drawn, in squares of four cells a side: the floor. All versions are timed in
turn; a share of the time is the median over rounds of ratios to the full network. "over a mix" is what a budget gains
over giving some pictures to the full network and the others to `fast`, so that both take equally long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from foveal.evidence.machine import commit, describe
from foveal.images.resize import imresize
from foveal.measure.benchmarks import DataError, find
from foveal.measure.paired import interleaved, ratio
from foveal.measure.quality import benchmark_pairs, psnr
from foveal.runtime import difficulty
from foveal.runtime.route import recording
from foveal.runtime.upscaler import Upscaler
from foveal.train.restore.debian import PHOTOGRAPHS, SAMPLES, fetch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

PIXELS = 2.1e6
TIME, LOSS = 0.6, 0.03  # what a budget of a half is meant to cost at most


def unseen(packages: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Wallpapers that are left out of the training set, by name."""
    archives = fetch(packages, tuple(package for package in PHOTOGRAPHS if package.skip == SAMPLES))
    with tempfile.TemporaryDirectory() as folder:
        for archive in archives:
            subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True)
        for path in sorted(p for sample in SAMPLES for p in Path(folder).rglob(f"{sample}*")):
            yield path.stem, np.asarray(Image.open(path).convert("RGB"))


def together(side: int = 4) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Pictures of BSD100 side by side, if they are here."""
    try:
        folder = find("BSD100")
    except DataError:
        return
    wide = [high for _, _, high in benchmark_pairs(folder, 4) if high.shape[1] > high.shape[0]]
    rows = [np.concatenate(wide[side * row : side * (row + 1)], 1) for row in range(side)]
    yield f"BSD100, {side**2} together", np.concatenate(rows)


def photographs(arguments: argparse.Namespace) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Names and pictures, reduced and cut to a multiple of the scale."""
    if arguments.pictures:
        paths = sorted(
            p for p in arguments.pictures.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
        )
        found = ((path.stem, np.asarray(Image.open(path).convert("RGB"))) for path in paths)
    else:
        found = (one for some in (unseen(arguments.packages), together()) for one in some)
    for name, picture in found:
        times = max(1.0, round(2 * (picture.shape[0] * picture.shape[1] / PIXELS) ** 0.5) / 2)
        high = imresize(picture, 1 / times) if times > 1 else picture
        height, width = (length // arguments.scale * arguments.scale for length in high.shape[:2])
        yield name, high[:height, :width]


def drawn(image: NDArray, cell: tuple[int, int], *, alpha: bool = False, seed: int = 0) -> NDArray[np.float64]:  # noqa: ARG001
    """Gains drawn for squares of four cells a side, in place of `expected_gain`."""
    rows, columns = (-(-length // side) for length, side in zip(image.shape[:2], cell, strict=True))
    squares = np.random.default_rng(seed).random((-(-rows // 4), -(-columns // 4))) ** 4
    return squares.repeat(4, 0).repeat(4, 1)[:rows, :columns]


def measure(name: str, high: NDArray[np.uint8], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one photograph: the full network first, then `fast`, then every budget, whole and drawn."""
    low = imresize(high, 1 / arguments.scale)
    make = partial(Upscaler, arguments.scale, threads=arguments.threads, engine=arguments.engine, clean="off")
    versions = {"full": make(), "fast": make("fast")}
    versions |= {f"budget {budget:g}": make(budget=budget) for budget in arguments.budgets}
    rows: list[dict[str, Any]] = []
    for version, upscale in versions.items():
        for random in (False, True) if version.startswith("budget") else (False,):
            gain = drawn if random else difficulty.expected_gain
            with patch.object(difficulty, "expected_gain", gain), recording() as routes:
                found = psnr(upscale(low), high, shave=arguments.scale)
            called = version + (", random" if random else "")
            row: dict[str, Any] = {"picture": name, "size": [*high.shape[1::-1]], "version": called}
            if routes:
                row |= {"area": float((routes[0].work == 1).mean()), "counted": routes[0].share}
            rows.append({**row, "psnr": found, "loss": rows[0]["psnr"] - found if rows else 0.0})
    if arguments.timing:
        calls = [partial(upscale, low) for upscale in versions.values()]
        times = interleaved(calls, pairs=arguments.pairs, most=arguments.seconds)
        timed: dict[str, list[float]] = dict(zip(versions, times, strict=True))
        for row in rows:
            if (taken := timed.get(row["version"])) is not None:
                share = ratio(taken, timed["full"])
                row |= {
                    "milliseconds": 1e3 * statistics.median(taken),
                    "time": share.median,
                    "quartiles": [share.lower, share.upper],
                }
        quick = rows[1]
        for row in rows[2:]:
            if "time" in row:
                mix = quick["loss"] * (1 - row["time"]) / (1 - quick["time"])
                row["over_a_mix"] = mix - row["loss"]
    return rows


def mean(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the photographs, one row for each version."""
    found = []
    for version in dict.fromkeys(row["version"] for row in rows):
        some = [row for row in rows if row["version"] == version]
        numbers = [key for key, value in some[0].items() if isinstance(value, float)]
        found.append(
            {"picture": "mean", "version": version} | {k: statistics.mean(row[k] for row in some) for k in numbers}
        )
    return found


def line(row: dict[str, Any]) -> str:
    """A row of the table."""

    def said(key: str, form: str) -> str:
        return format(row[key], form) if key in row else ""

    spread = " ({:.2f}–{:.2f})".format(*row["quartiles"]) if "quartiles" in row else ""
    return (
        f"| {row['picture']} | {row['version']} | {said('area', '.0%')} | {said('counted', '.3f')} | "
        f"{said('time', '.3f')}{spread} | {said('milliseconds', '.0f')} | {row['psnr']:.3f} | {row['loss']:+.3f} | "
        f"{said('over_a_mix', '+.3f')} |"
    )


def verdict(means: list[dict[str, Any]]) -> str:
    """Whether a budget of a half costs as little as was wished."""
    half = next((row for row in means if row["version"] == "budget 0.5"), None)
    if half is None or "time" not in half:
        return ""
    met = half["time"] <= TIME and half["loss"] <= LOSS
    so = "met, so `balanced` may do so by itself" if met else "not met, so `balanced` goes on taking its whole network"
    return (
        f"\nA budget of 0.5 takes {half['time']:.2f} of the time and loses {half['loss']:.3f} dB. "
        f"Wished were {TIME} and {LOSS} dB: {so}.\n"
    )


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder of photographs, instead of those above")
    parser.add_argument("--packages", type=Path, default=Path("data/packages"), help="where Debian's packages are kept")
    parser.add_argument("--scale", type=int, default=4, choices=(2, 3, 4))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60.0, help="most seconds of timing for a photograph")
    parser.add_argument("--no-timing", dest="timing", action="store_false")
    parser.add_argument("--save", type=Path, help="path without suffix for .md and .json")
    arguments = parser.parse_args()
    machine = describe()
    heading = (
        f"{datetime.now(UTC).date().isoformat()} · {machine['processor']}, {machine['cores']} cores · "
        f"{arguments.threads} threads · ×{arguments.scale} · {commit()}\n\n"
    )
    rows = [row for name, high in photographs(arguments) for row in measure(name, high, arguments)]
    means = mean(rows)
    head = "| photograph | version | area | counted | time (quartiles) | ms | PSNR, dB | loss | over a mix |\n"
    text = heading + head + "|---|---|---|---|---|---|---|---|---|\n" + "\n".join(map(line, means + rows)) + "\n"
    text += verdict(means)
    print(text)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.with_suffix(".md").write_text(text)
        found = {"heading": heading.strip(), "means": means, "rows": rows}
        arguments.save.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
