"""Every bundle × every engine: seconds per output megapixel and quality, in one run.

    python bench/restore.py                          table on standard output
    python bench/restore.py --save results/restore   also results/restore.md and results/restore.json

Time is end to end, from array to array (uint8 RGB), on `--threads` threads; all rows are interleaved round by round, so
that a slow phase of the machine affects all of them, and the median and the quartiles of the rounds are printed. The
last rows are the alternatives without foveal: Pillow's bicubic, and the network of OpenCV's dnn_superres ESPCN ×4 (the
same graph with random weights, so time only) with bicubic colour, as in its `upsample`. Quality is luminance PSNR and
SSIM, with a border of `scale` pixels removed, on the pictures under FOVEAL_DATA. (int8) marks engines that ran the
bundle's int8 file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from foveal.evidence.machine import describe
from foveal.measure.benchmarks import find
from foveal.measure.quality import evaluate
from foveal.runtime.bundle import available as bundles
from foveal.runtime.engines import available, file_kind
from foveal.runtime.upscaler import Upscaler

SETS = {2: ("Set5", "Set14"), 3: ("Set5", "Set14"), 4: ("Set5", "Set14", "BSD100", "Urban100_20")}

Run = Callable[[np.ndarray], np.ndarray]


@dataclass
class Row:
    name: str
    engine: str
    scale: int
    parameters: int
    seconds: list[float]  # per output megapixel, one per round
    quality: dict[str, tuple[float, float]]  # set -> PSNR, SSIM
    file: str = ""  # kind of the bundle file that ran

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        first, _, third = statistics.quantiles(self.seconds, n=4)
        return first, third


def espcn_of_opencv(threads: int) -> Run | None:
    """OpenCV's pipeline for ESPCN ×4: the network on luminance, bicubic for colour."""
    try:
        import cv2
        import torch
    except ImportError:
        return None
    cv2.setNumThreads(threads)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(1, 64, 5, padding=2),
        torch.nn.Tanh(),
        torch.nn.Conv2d(64, 32, 3, padding=1),
        torch.nn.Tanh(),
        torch.nn.Conv2d(32, 16, 3, padding=1),
        torch.nn.PixelShuffle(4),
    ).eval()
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        torch.onnx.export(layers, (torch.rand(1, 1, 250, 250),), file.name, dynamo=False)
        net = cv2.dnn.readNetFromONNX(file.name)

    def run(image: np.ndarray) -> np.ndarray:
        y, cr, cb = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb))
        net.setInput(cv2.dnn.blobFromImage(y, 1 / 255.0))
        luma = np.clip(net.forward()[0, 0] * 255, 0, 255).astype(np.uint8)
        size = (luma.shape[1], luma.shape[0])
        planes = [luma, *(cv2.resize(c, size, interpolation=cv2.INTER_CUBIC) for c in (cr, cb))]
        return cv2.cvtColor(cv2.merge(planes), cv2.COLOR_YCrCb2RGB)

    return run


def bicubic_of_pillow(scale: int) -> Run:
    def run(image: np.ndarray) -> np.ndarray:
        size = (image.shape[1] * scale, image.shape[0] * scale)
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))

    return run


def quality(run: Run, scale: int, limit: int | None) -> dict[str, tuple[float, float]]:
    scores = [evaluate(run, find(name), scale, name=name, limit=limit) for name in SETS[scale]]
    return {score.name: (score.psnr, score.ssim or 0.0) for score in scores}


def onto_cards(rows: list[Row], date: str, processor: str, threads: int) -> None:
    """Write each shipped bundle's quality, and its time on its fastest engine, to its card."""
    for bundle in bundles():
        best = min((r for r in rows if r.name == bundle.card.name), key=lambda r: r.median)
        path = bundle.folder / "card.json"
        card = json.loads(path.read_text())
        card["measured"] = {
            **{name: {"psnr": round(p, 3), "ssim": round(q, 4)} for name, (p, q) in best.quality.items()},
            "seconds_per_megapixel": round(best.median, 4),
            "engine": best.engine,
            "threads": threads,
            "processor": processor,
            "date": date,
        }
        path.write_text(json.dumps(card, indent=2) + "\n")


def rows_to_measure(threads: int, scales: list[int]) -> list[tuple[Row, Run]]:
    rows: list[tuple[Row, Run]] = []
    for bundle in sorted(bundles(), key=lambda b: (b.card.scale, b.card.parameters)):
        card = bundle.card
        if card.scale in scales:
            for engine in available():
                upscaler = Upscaler(model=str(bundle.folder), engine=engine, threads=threads)
                file = file_kind(engine, "uint8", card.files)
                rows.append((Row(card.name, engine, card.scale, card.parameters, [], {}, file), upscaler))
    for scale in scales:
        rows.append((Row("bicubic", "Pillow", scale, 0, [], {}), bicubic_of_pillow(scale)))
    espcn = espcn_of_opencv(threads) if 4 in scales else None
    if espcn is not None:
        rows.append((Row("ESPCN (dnn_superres graph)", "OpenCV", 4, 24_784, [], {}), espcn))
    return rows


def table(rows: list[Row], heading: str) -> str:
    lines = [heading, ""]
    for scale in sorted({row.scale for row in rows}):
        sets = SETS[scale]
        lines += [
            f"### ×{scale}",
            "",
            "| bundle | engine | parameters | s per megapixel | quartiles | " + " | ".join(sets) + " |",
            "|---|---|---|---|---|" + "---|" * len(sets),
        ]
        for row in (r for r in rows if r.scale == scale):
            first, third = row.quartiles
            scores = [row.quality.get(s) for s in sets]
            figures = ["–" if score is None else f"{score[0]:.2f} / {score[1]:.4f}" for score in scores]
            cells = [
                row.name,
                f"{row.engine} (int8)" if row.file == "int8" else row.engine,
                f"{row.parameters:,}",
                f"{row.median:.4f}",
                f"{first:.4f}–{third:.4f}",
                *figures,
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--limit", type=int, help="number of pictures per set, for a quick run")
    parser.add_argument("--save", type=Path, help="path without suffix for .md and .json")
    parser.add_argument("--cards", action="store_true", help="write the figures to the cards of the shipped bundles")
    arguments = parser.parse_args()

    measured = rows_to_measure(arguments.threads, arguments.scales)
    rng = np.random.default_rng(0)
    pictures = {s: rng.integers(0, 256, (1000 // s, 1000 // s, 3), np.uint8) for s in arguments.scales}
    for round_ in range(-1, arguments.rounds):  # one round of warm-up
        for row, run in measured:
            # The previous engine's threads keep spinning for a while, and this one's are asleep.
            time.sleep(0.05)
            run(pictures[row.scale])
            begun = time.perf_counter()
            out = run(pictures[row.scale])
            taken = time.perf_counter() - begun
            if round_ >= 0:
                row.seconds.append(taken / (out.shape[0] * out.shape[1] / 1e6))
        print(f"round {round_ + 1}/{arguments.rounds}", end="\r", file=sys.stderr)
    for row, run in measured:
        if row.engine != "OpenCV":  # engines agree to within a few levels, which is measured, not assumed
            row.quality = quality(run, row.scale, arguments.limit)

    machine = describe()
    date = datetime.now(UTC).date().isoformat()
    heading = (
        f"{date} · {machine['processor']}, {machine['cores']} cores · "
        f"{arguments.threads} threads · {arguments.rounds} rounds"
    )
    text = table([row for row, _ in measured], heading)
    print(text)
    if arguments.cards:
        onto_cards([row for row, _ in measured], date, machine["processor"], arguments.threads)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.with_suffix(".md").write_text(text + "\n")
        document = {
            "date": date,
            "machine": machine,
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "rows": [asdict(row) | {"median": row.median, "quartiles": row.quartiles} for row, _ in measured],
        }
        arguments.save.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
