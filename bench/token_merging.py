"""How much of the counted saving of token merging is real? ViT-S/16 at 224², against itself with fused attention.

    python bench/token_merging.py                       table on standard output
    python bench/token_merging.py --save PATH           also PATH.md and PATH.json
    python bench/token_merging.py --model deit_base_patch16_224 --r 16 --batches 1

Plain torch, float32, random weights: time does not depend on them. Each round runs the network and all of its merging
versions in turn; a speed-up is the median over the rounds of paired ratios. Realised is (measured − 1) / (counted − 1),
from the multiply-adds of convolutions, linear layers and attention. malloc keeps freed memory (glibc's thresholds are
raised, as `foveal.train` does), because returning it to the system after each layer costs as much as the layer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "268435456",
}


def build(model: str, words: dict[str, Any] | None) -> Any:
    import timm
    import torch

    from foveal.shrink.tokens.merge import Merge

    torch.manual_seed(0)
    network = timm.create_model(model).eval()
    return network if words is None else Merge(**words).apply(network)


def measure(arguments: argparse.Namespace, batch: int) -> list[dict[str, Any]]:
    import torch

    from foveal.measure.cost import count_macs

    versions: dict[str, dict[str, Any] | None] = {"whole": None}
    for r in arguments.r:
        for multiple in arguments.multiples:
            versions[f"r={r}, multiple={multiple}"] = {"r": r, "multiple": multiple}
        versions[f"r={r}, without sizes"] = {"r": r, "proportional": False}
    networks = {name: build(arguments.model, words) for name, words in versions.items()}
    size = networks["whole"].pretrained_cfg["input_size"]
    counted = {name: count_macs(network, (1, *size)) for name, network in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    x = torch.randn(batch, *size)
    with torch.inference_mode():
        for round_ in range(-2, arguments.rounds):
            for name, network in networks.items():
                begun = time.perf_counter()
                network(x)
                if round_ >= 0:
                    times[name].append(time.perf_counter() - begun)
            print(f"batch {batch}: round {round_ + 1}", end="\r", file=sys.stderr)
    rows = []
    for name, taken in times.items():
        ratio = statistics.median(whole / own for whole, own in zip(times["whole"], taken, strict=True))
        saving = counted["whole"] / counted[name]
        rows.append(
            {
                "batch": batch,
                "version": name,
                "milliseconds": 1e3 * statistics.median(taken),
                "least": 1e3 * min(taken),
                "counted": saving,
                "measured": ratio,
                "realised": (ratio - 1) / (saving - 1) if saving > 1 else None,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| batch | version | ms median / least | counted | measured | realised |", "|---|---|---|---|---|---|"]
    for row in rows:
        realised = "" if row["realised"] is None else f"{100 * row['realised']:.0f} %"
        lines.append(
            f"| {row['batch']} | {row['version']} | {row['milliseconds']:.1f} / {row['least']:.1f} | "
            f"{row['counted']:.3f} | {row['measured']:.3f} | {realised} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224", help="vision transformer of timm")
    parser.add_argument("--r", type=int, nargs="+", default=[8, 13], help="tokens merged per block")
    parser.add_argument("--multiples", type=int, nargs="+", default=[1, 8, 16], help="rounding of the token counts")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--save", type=Path, help="path without suffix for .md and .json")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):  # malloc reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})  # noqa: S606 - this file again

    import torch

    from foveal.evidence.machine import describe

    torch.set_num_threads(arguments.threads)
    machine = describe()
    heading = (
        f"{datetime.now(UTC).date().isoformat()} · {machine['processor']}, {machine['cores']} cores · "
        f"{arguments.threads} threads · {arguments.model}\n\n"
    )
    rows = [row for batch in arguments.batches for row in measure(arguments, batch)]
    text = heading + table(rows)
    print(text)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.with_suffix(".md").write_text(text)
        arguments.save.with_suffix(".json").write_text(json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
