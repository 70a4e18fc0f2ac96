"""What does a budget save on a photograph of two megapixels, and what does it lose? APE, PCSR and CAMixerSR, ×2.

    python bench/routed_upscaling.py                    table on standard output
    python bench/routed_upscaling.py --save PATH        also PATH.md, PATH.json and maps of the work, PATH-<network>.png
    python bench/routed_upscaling.py --networks ape --budgets 1 0.8

The networks are those of `foveal claims`, trained here first (a minute each). The photograph is put together from
pictures of BSD100, 1920×1280 pixels at the larger size. Thresholds are found on its low resolution. Each round runs all
budgets in turn; a saving is the median over the rounds of paired ratios. Counted are the multiply-adds of convolutions,
linear layers and attention of that very pass.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NETWORKS = ("ape", "pcsr", "camixersr")
SCALE, SIDE = 2, 4  # the photograph is 4×4 pictures


def photograph() -> tuple[Any, Any]:
    """Low and high resolution, (h, w, 3) and (2h, 2w, 3) uint8."""
    import numpy as np

    from foveal.measure import benchmarks
    from foveal.measure.quality import benchmark_pairs

    pairs = [
        (low, high)
        for _, low, high in benchmark_pairs(benchmarks.find("BSD100"), SCALE)
        if high.shape[1] > high.shape[0]
    ]
    if len(pairs) < SIDE**2:
        raise SystemExit(f"the photograph needs {SIDE**2} landscape pictures, got {len(pairs)}; is BSD100 complete?")
    whole = []
    for i in (0, 1):
        rows = [np.concatenate([pair[i] for pair in pairs[SIDE * r : SIDE * (r + 1)]], 1) for r in range(SIDE)]
        whole.append(np.concatenate(rows))
    return whole[0], whole[1]


def measure(name: str, arguments: argparse.Namespace, low: Any, high: Any) -> list[dict[str, Any]]:
    import torch
    from PIL import Image
    from torch.utils.flop_counter import FlopCounterMode

    from foveal.measure.quality import from_torch, psnr
    from foveal.runtime.route import recording

    network = importlib.import_module(f"foveal.evidence.models.restore.{name}").trained(0)
    x = torch.from_numpy(low.copy()).permute(2, 0, 1)[None].float() / 255
    versions, rows = {}, []
    for budget in arguments.budgets:
        version = copy.deepcopy(network).eval()
        try:
            version.fit_budget_(budget, [x])
        except ValueError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        versions[budget] = version
        with recording() as routes, FlopCounterMode(display=False) as counter:
            out = from_torch(version)(low)
        row = {"network": name, "budget": budget, "psnr": psnr(out, high, shave=SCALE), "route": str(routes[0])}
        rows.append({**row, "macs": counter.get_total_flops() // 2})
        if arguments.save and budget == min(versions):
            arguments.save.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(routes[0].draw(low)).save(f"{arguments.save}-{name}.png")
    times: dict[float, list[float]] = {budget: [] for budget in versions}
    with torch.inference_mode():
        for round_ in range(-1, arguments.rounds):
            for budget, version in versions.items():
                begun = time.perf_counter()
                version(x)
                if round_ >= 0:
                    times[budget].append(time.perf_counter() - begun)
    first = next(iter(versions))
    for row in rows:
        taken = times[row["budget"]]
        row["milliseconds"] = 1e3 * statistics.median(taken)
        row["time"] = statistics.median(own / whole for own, whole in zip(taken, times[first], strict=True))
        row["counted"], row["gain"] = row["macs"] / rows[0]["macs"], row["psnr"] - rows[0]["psnr"]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | budget | counted | measured | ms | PSNR, dB | difference | route |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {row['budget']:g} | {row['counted']:.3f} | {row['time']:.3f} | "
        f"{row['milliseconds']:.0f} | {row['psnr']:.3f} | {row['gain']:+.3f} | {row['route']} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 0.75, 0.5], help="the first is compared with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--save", type=Path, help="path without suffix for .md, .json and the maps")
    arguments = parser.parse_args()

    import torch

    from foveal.evidence.machine import describe

    torch.set_num_threads(arguments.threads)
    machine = describe()
    low, high = photograph()
    heading = (
        f"{datetime.now(UTC).date().isoformat()} · {machine['processor']}, {machine['cores']} cores · "
        f"{arguments.threads} threads · {low.shape[1]}×{low.shape[0]} to {high.shape[1]}×{high.shape[0]}\n\n"
    )
    rows = [row for name in arguments.networks for row in measure(name, arguments, low, high)]
    text = heading + table(rows)
    print(text)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.with_suffix(".md").write_text(text)
        arguments.save.with_suffix(".json").write_text(json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
