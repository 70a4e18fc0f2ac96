"""Counted against measured: from which size and batch does it pay to look hard only where it must?

    python bench/foveate.py                              every method at 224 and 384 pixels, 1 and 8 at a time
    python bench/foveate.py --methods merge turbo --budgets 0.7 --sizes 224
    python bench/foveate.py --save results/foveate       also results/foveate.md and .json
    python bench/foveate.py --where merge --save results/foveate_where    which operations take the rest

ViT-S/16 (Swin-T for windows, Vim-S for state space) in plain torch with fused attention, random weights: time does not
depend on them, and which tokens go hardly does. All versions of a network are timed in turn with the whole one; a
speed-up is the median of the paired ratios. Realised is (measured − 1) / (counted − 1). malloc keeps freed memory, as
`foveal.train` has it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from token_merging import MALLOC

# Methods by budget, and steps with settings of their own.
BUDGETED = ("merge", "drop", "turbo", "sparsevit", "topvim")
STEPS = ("tokenlearner", "sit", "mone")


def build(method: str, size: int, budget: float | None) -> Any:
    """A network whole (no budget), by a method at a budget, or with a step."""
    import timm
    import torch

    import foveal

    torch.manual_seed(0)
    if method == "sparsevit":
        network = timm.create_model("swin_tiny_patch4_window7_224", img_size=size, window_size=size // 32).eval()
    elif method == "topvim":
        network = foveal.create_model("vim_small", grid=(size // 16, size // 16)).eval()
    else:
        network = timm.create_model("vit_small_patch16_224", img_size=size).eval()
    if budget is None:
        return network
    if method in BUDGETED:
        return foveal.foveate(network, budget, method=method, shape=(1, 3, size, size))
    if method == "tokenlearner":
        from foveal.shrink.tokens.token_learner import TokenLearner

        return TokenLearner().apply(network).eval()
    if method == "sit":
        from foveal.shrink.tokens.sit import SiT

        return SiT().apply(network).eval()
    from foveal.shrink.tokens.mone import MoNE

    return MoNE(capacity=0.4).apply(network).eval()


def measure(arguments: argparse.Namespace, size: int, batch: int) -> list[dict[str, Any]]:
    """Rows of one size and batch."""
    import torch

    from foveal.measure.cost import count_macs
    from foveal.measure.paired import interleaved, ratio

    rows = []
    for wholes, methods in (
        ("sparsevit", ["sparsevit"]),
        ("topvim", ["topvim"]),
        ("merge", [m for m in arguments.methods if m not in ("sparsevit", "topvim")]),
    ):
        versions = [
            (method, budget)
            for method in methods
            if method in arguments.methods
            for budget in (arguments.budgets if method in BUDGETED else [0.0])
        ]
        if not versions:
            continue
        networks = [build(wholes, size, None), *(build(method, size, budget) for method, budget in versions)]
        x = torch.randn(batch, 3, size, size)
        counted = [count_macs(network, (1, 3, size, size)) for network in networks]
        with torch.inference_mode():
            calls = [partial(network, x) for network in networks]
            times = interleaved(calls, pairs=arguments.pairs, most=arguments.seconds)
        for (method, budget), macs, taken in zip(versions, counted[1:], times[1:], strict=True):
            found, saving = ratio(times[0], taken), counted[0] / macs
            rows.append(
                {
                    "size": size,
                    "batch": batch,
                    "method": method,
                    "budget": budget or None,
                    "counted": saving,
                    "measured": found.median,
                    "lower": found.lower,
                    "upper": found.upper,
                    "realised": (found.median - 1) / (saving - 1) if saving > 1 else None,
                }
            )
            print(f"{size} px, {batch}: {method} {budget}: {saving:.2f}, {found.median:.2f}", file=sys.stderr)
    return rows


GROUPS = {
    "products": ("aten::addmm", "aten::mm", "aten::bmm", "mkldnn::_linear_pointwise"),
    "patches": ("aten::mkldnn_convolution", "mkldnn::_convolution_pointwise"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "norms": ("aten::native_layer_norm", "aten::linalg_vector_norm"),
    "activation": ("aten::gelu",),
    "order": ("aten::sort", "aten::topk", "aten::max", "aten::argsort"),
    "moves": (
        "aten::gather", "aten::scatter_", "aten::scatter", "aten::scatter_add_", "aten::scatter_reduce",
        "aten::index_add_", "aten::index", "aten::index_select", "aten::cat", "aten::copy_",
    ),
}  # fmt: skip


def where(arguments: argparse.Namespace, size: int, batch: int) -> list[dict[str, Any]]:
    """Milliseconds of an image by kind of operation: the whole network, and the method at each budget.

    "Expected" in the table is the whole network's time times the share of its multiply-adds that is left.
    """
    import torch

    from foveal.measure.cost import count_macs

    rows: list[dict[str, Any]] = []
    x = torch.randn(batch, 3, size, size)
    kinds = {name: kind for kind, names in GROUPS.items() for name in names}
    for budget in (None, *arguments.budgets):
        network = build(arguments.where, size, budget)
        with torch.inference_mode():
            for _ in range(3):
                network(x)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                for _ in range(arguments.pairs):
                    network(x)
        taken = dict.fromkeys([*GROUPS, "other"], 0.0)
        for event in profile.key_averages():
            # What an operation calls is counted there; these have nothing below them that is.
            taken[kinds.get(event.key, "other")] += event.self_cpu_time_total / 1e3 / arguments.pairs / batch
        rows.append(
            {
                "size": size,
                "batch": batch,
                "budget": budget,
                "macs": count_macs(network, (1, 3, size, size)),
                "ms": taken,
            }
        )
    return rows


def table_of_parts(rows: list[dict[str, Any]]) -> str:
    """Where the time goes, as Markdown."""
    kinds = [*GROUPS, "other"]
    lines = [
        f"| pixels | batch | budget | {' | '.join(kinds)} | all | expected |",
        "|---|---|---|" + "---|" * (len(kinds) + 2),
    ]
    whole = rows[0]
    for row in rows:
        whole = row if row["budget"] is None else whole
        total, expected = sum(row["ms"].values()), sum(whole["ms"].values()) * row["macs"] / whole["macs"]
        values = " | ".join(f"{row['ms'][kind]:.2f}" for kind in kinds)
        budget = "whole" if row["budget"] is None else f"{row['budget']:g}"
        lines.append(f"| {row['size']} | {row['batch']} | {budget} | {values} | {total:.2f} | {expected:.2f} |")
    return "\n".join(lines) + "\n"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = [
        "| pixels | batch | method | budget | counted | measured (quartiles) | realised |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        realised = "" if row["realised"] is None else f"{100 * row['realised']:.0f} %"
        budget = "–" if row["budget"] is None else f"{row['budget']:g}"
        lines.append(
            f"| {row['size']} | {row['batch']} | {row['method']} | {budget} | {row['counted']:.2f} | "
            f"{row['measured']:.2f} ({row['lower']:.2f}–{row['upper']:.2f}) | {realised} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=(*BUDGETED, *STEPS), default=[*BUDGETED, *STEPS])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.75, 0.5])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60.0, help="most seconds of timing for a size and batch")
    parser.add_argument("--where", choices=BUDGETED, metavar="METHOD", help="profile this method instead")
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
        f"{arguments.threads} threads · ViT-S/16, Swin-T for sparsevit, Vim-S for topvim\n\n"
    )
    one = where if arguments.where else measure
    rows = [row for size in arguments.sizes for batch in arguments.batches for row in one(arguments, size, batch)]
    if arguments.where:
        heading = heading.replace(
            "ViT-S/16, Swin-T for sparsevit, Vim-S for topvim", f"{arguments.where}, ms an image, by torch's profiler"
        )
    text = heading + (table_of_parts if arguments.where else table)(rows)
    print(text)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.with_suffix(".md").write_text(text)
        arguments.save.with_suffix(".json").write_text(json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
