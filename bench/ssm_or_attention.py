"""When is a state space worth it? ViT, convolutional networks and state-space backbones, 224² to 2048², in one run.

    python bench/ssm_or_attention.py                                    table on standard output
    python bench/ssm_or_attention.py --save results/ssm_or_attention    also .md, .json and .svg
    python bench/ssm_or_attention.py --train 180                        CIFAR-10 instead, 180 seconds each; with
                                                                        --save results/ssm_training, as in the docs

Models of 5 to 9 million parameters, batch 1, float32, plain torch on `--threads` threads. Latency is the median over
interleaved rounds of all models; memory is what one forward pass adds to the peak of a separate process. The CIFAR-10
comparison trains small versions of the same families with one recipe for the same time, and counts steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from foveal.evidence.machine import describe
from foveal.measure.cost import count_macs, count_parameters, high_water

SIDES = (224, 512, 1024, 2048)
MODELS = {
    "vit_tiny_patch16_224": "attention",
    "convnext_femto": "convolution",
    "mambaout_femto": "convolution",
    "vim_tiny": "state space",
    "plainmamba_l1": "state space",
    "msvmamba_nano": "state space",
    "efficientvmamba_tiny": "state space",
    "efficientvim_m1": "state space",
}
# Versions of about half a million parameters for 32×32 pictures in patches of 4×4.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3}),
    "MambaOut": ("mambaout_femto", {"dims": (24, 48, 96, 160), "depths": (1, 1, 3, 1)}),
    "Vim": ("vim_tiny", {"patch_size": 4, "dim": 96, "depth": 6}),
    "VMamba": ("vmamba_tiny", {"dim": 64, "depths": (2, 2)}),
}


def build(name: str, **kwargs: Any) -> torch.nn.Module:
    import timm

    import foveal.models.timm

    foveal.models.timm.register()

    if name.startswith("vit") and "img_size" not in kwargs:
        kwargs["dynamic_img_size"] = True
    return timm.create_model(name, **kwargs).eval()


def once(model: torch.nn.Module, side: int) -> float:
    x = torch.rand(1, 3, side, side)
    begun = time.perf_counter()
    with torch.inference_mode():
        model(x)
    return time.perf_counter() - begun


def memory(name: str, side: int, threads: int) -> int:
    """Peak memory above the loaded model, in bytes."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import ssm_or_attention as s; "
        f"print(s.peak({name!r}, {side}, {threads}))"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def peak(name: str, side: int, threads: int) -> int:
    torch.set_num_threads(threads)
    model = build(name)
    once(model, 64)
    before = high_water()
    once(model, side)
    return high_water() - before


def compare(sides: list[int], rounds: int, threads: int) -> list[dict[str, Any]]:
    models = {name: build(name) for name in MODELS}
    rows: list[dict[str, Any]] = [
        {
            "model": name,
            "kind": kind,
            "parameters": count_parameters(models[name]),
            "macs": {side: count_macs(models[name], (1, 3, side, side)) for side in sides},
            "seconds": {side: [] for side in sides},
            "memory": {},
        }
        for name, kind in MODELS.items()
    ]
    for side in sides:
        # Fewer rounds for larger pictures, whose times are less noisy.
        for round_ in range(-1, max(3, rounds * 512 // max(512, side))):
            for row in rows:
                seconds = once(models[row["model"]], side)
                if round_ >= 0:
                    row["seconds"][side].append(seconds)
            print(f"{side}: round {round_ + 1}", end="\r", file=sys.stderr)
        for row in rows:
            row["memory"][side] = memory(row["model"], side, threads)
    return rows


def tables(rows: list[dict[str, Any]], sides: list[int]) -> str:
    head = "| model | kind | parameters | " + " | ".join(f"{s}²" for s in sides) + " |"
    lines = ["### Milliseconds a picture, median (multiply-adds in G)", "", head, "|---|---|---|" + "---|" * len(sides)]
    for row in rows:
        cells = [f"{1e3 * statistics.median(row['seconds'][s]):,.0f} ({row['macs'][s] / 1e9:.1f})" for s in sides]
        lines.append(
            f"| {row['model']} | {row['kind']} | {row['parameters'] / 1e6:.2f} M | " + " | ".join(cells) + " |"
        )
    lines += ["", "### Peak memory of the pass, MiB", "", head, "|---|---|---|" + "---|" * len(sides)]
    for row in rows:
        cells = [f"{row['memory'][s] / 2**20:,.0f}" for s in sides]
        lines.append(
            f"| {row['model']} | {row['kind']} | {row['parameters'] / 1e6:.2f} M | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], sides: list[int], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    styles = {"attention": "--", "convolution": ":", "state space": "-"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True)
    for row in rows:
        style = styles[row["kind"]]
        times = [1e3 * statistics.median(row["seconds"][s]) for s in sides]
        left.loglog(sides, times, style, marker="o", markersize=3, label=row["model"])
        right.loglog(sides, [max(1, row["memory"][s] / 2**20) for s in sides], style, marker="o", markersize=3)
    left.set_title("ms a picture")
    right.set_title("peak memory, MiB")
    for axis in (left, right):
        axis.set_xlabel("side of the picture, pixels")
        axis.set_xticks(sides, [str(s) for s in sides])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def train(seconds: float) -> str:
    from foveal.evidence.tasks.cifar10 import accuracy, pictures, train_classifier

    pictures("train")
    lines = [f"### CIFAR-10, {seconds:.0f} s of training each, one recipe", ""]
    lines += ["| network | parameters | steps of 64 | top-1, first 2,000 of test |", "|---|---|---|---|"]
    for name, (model, arguments) in SMALL.items():
        steps = [0]

        def counted(model: str = model, arguments: dict[str, Any] = arguments, steps: list[int] = steps) -> Any:
            network = build(model, num_classes=10, **arguments)

            def count(*_: Any) -> None:
                steps[0] += network.training

            network.register_forward_pre_hook(count)
            return network

        network = train_classifier(counted, seconds=seconds)
        row = f"| {name} | {count_parameters(network) / 1e6:.2f} M | {steps[0]} | {accuracy(network):.1f} % |"
        print(row, file=sys.stderr)
        lines.append(row)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES))
    parser.add_argument("--save", type=Path, help="path without suffix for .md, .json and .svg")
    parser.add_argument("--train", type=float, metavar="SECONDS", help="compare by training on CIFAR-10 instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    machine = describe()
    heading = (
        f"{datetime.now(UTC).date().isoformat()} · {machine['processor']}, {machine['cores']} cores · "
        f"{arguments.threads} threads\n\n"
    )
    rows: list[dict[str, Any]] = []
    if arguments.train:
        text = heading + train(arguments.train)
    else:
        rows = compare(arguments.sides, arguments.rounds, arguments.threads)
        text = heading + tables(rows, arguments.sides)
    print(text)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.with_suffix(".md").write_text(text)
        if rows:
            arguments.save.with_suffix(".json").write_text(
                json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n"
            )
            plot(rows, arguments.sides, arguments.save.with_suffix(".svg"))


if __name__ == "__main__":
    main()
