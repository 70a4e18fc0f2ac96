"""Every state-space model as ONNX: parity with torch at sizes other than the traced one, and time compared with torch.

    python bench/export.py                       table on standard output
    python bench/export.py --save results/export also results/export.md and results/export.json
    python bench/export.py vim_tiny vmamba_tiny  only these
    python bench/export.py --folder exported     keeps and reuses the ONNX files there; tracing takes minutes

Each is traced at 224×224 with dynamic height and width, exported with standard operators, and run by ONNX Runtime at
that size and at 160×288. Times are medians over interleaved rounds of ONNX Runtime, torch with the compiled kernels and
torch without them, batch 1, 224×224.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import torch

import foveal
from foveal.evidence.machine import describe
from foveal.export.onnx import ExportError, to_onnx
from foveal.ops.selective_scan import native

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = (
    *("vim_tiny", "plainmamba_l1", "vcmamba_s", "vmamba_tiny", "efficientvmamba_tiny", "groupmamba_tiny"),
    *("msvmamba_nano", "vssd_micro", "spatial_mamba_tiny", "a2mamba_n", "vim2_tiny", "mhs_unet"),
    *("efficientvim_m1", "mambaout_femto", "hi_mamba_small", "serpent"),
)
TRACED, OTHER = (1, 3, 224, 224), (1, 3, 160, 288)


class WithoutKernels:
    """Context in which scans run in vectorised torch."""

    def __enter__(self) -> None:
        self.library = native.library
        native.library = lambda: None

    def __exit__(self, *_: object) -> None:
        native.library = self.library


def seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def row(name: str, threads: int, rounds: int, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = foveal.create_model(name)
    found: dict[str, Any] = {"model": name, "parameters": sum(p.numel() for p in model.parameters())}
    path = folder / f"{name}.onnx"
    if not path.exists():
        try:
            to_onnx(model, path, torch.rand(TRACED), output="out")
        except ExportError as error:
            return {**found, "error": str(error).splitlines()[0]}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads would slow the next run
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    for shape in (TRACED, OTHER):
        x = torch.rand(shape)
        with torch.inference_mode():
            want = model(x)
        try:
            got = torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
        except Exception as error:  # report any error of the engine
            return {**found, "error": f"{shape[2]}×{shape[3]}: {str(error).splitlines()[0]}"}
        found[f"{shape[2]}×{shape[3]}"] = float((got - want).abs().max() / want.abs().max())
    x = torch.rand(TRACED)
    taken: dict[str, list[float]] = {"onnxruntime": [], "native": [], "eager": []}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for round_ in range(-1, rounds):
            runs = {
                "onnxruntime": seconds(lambda: session.run(None, {"image": x.numpy()})),
                "native": seconds(lambda: model(x)),
            }
            with WithoutKernels():
                runs["eager"] = seconds(lambda: model(x))
            if round_ >= 0:
                for key, value in runs.items():
                    taken[key].append(value)
    return {**found, "seconds": {key: statistics.median(value) for key, value in taken.items()}}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | parameters | difference 224×224 | 160×288 | ONNX Runtime, ms | torch native | torch eager |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in rows:
        start = f"| {found['model']} | {found['parameters'] / 1e6:.2f} M |"
        if "error" in found:
            lines.append(f"{start} {found['error']} | | | | |")
            continue
        times = found["seconds"]
        cells = [f"{found['224×224']:.1e}", f"{found['160×288']:.1e}"]
        cells += [f"{1e3 * times[key]:.0f}" for key in ("onnxruntime", "native", "eager")]
        lines.append(f"{start} " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", type=Path, help="path without suffix for .md and .json")
    parser.add_argument("--folder", type=Path, help="folder in which to keep ONNX files; by default they are deleted")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as passing:
        folder = arguments.folder or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.models:
            rows.append(row(name, arguments.threads, arguments.rounds, folder))
            print(rows[-1], file=sys.stderr)
    machine = describe()
    heading = (
        f"{datetime.now(UTC).date().isoformat()} · {machine['processor']}, {machine['cores']} cores · "
        f"{arguments.threads} threads · {arguments.rounds} rounds\n\n"
    )
    print(heading + table(rows))
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.with_suffix(".md").write_text(heading + table(rows))
        arguments.save.with_suffix(".json").write_text(json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
