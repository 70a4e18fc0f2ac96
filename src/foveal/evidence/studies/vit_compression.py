"""Four compressions of a vision transformer and their pairs, in one table: accuracy, bytes, time, seeds.

*Source*: F. Chen et al., "Comprehensive Survey of Model Compression and Speed up for Vision Transformers", 2024
(arXiv:2404.10407), sections 2 and 3: quantisation, low rank, distillation and pruning, alone and together.

    prune      half of the widths of heads and MLPs (`Prune`), then training
    low rank   half of the multiply-adds of the linear layers (`LowRank`), then training
    distil     a student of half the width, trained by the whole network (`Distil`)
    int8       static int8 by ONNX Runtime (`Quantise`)

A pair does the first method, trains, does the second, trains. The whole network is trained as long as a pair is, so
that a cell gains nothing by its training alone. Orders that cannot work are left out: anything after int8.

*Differs from the paper*: the survey quotes tables of others; this one is measured anew, on one small network.
*Provenance*: written from the survey's taxonomy; every part is foveal's own.

    python -m foveal.evidence.studies.vit_compression     # prints the table
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import torch

from foveal.cases import Procedure
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import compressing
from foveal.record import Method, Paper, bound, kept
from foveal.shrink.data import Data
from foveal.shrink.distill.distillation import Distil
from foveal.shrink.lowrank.step import LowRank
from foveal.shrink.prune.structure import Prune
from foveal.shrink.quantize.int8 import Quantise
from foveal.shrink.recipe import shrink
from foveal.shrink.tune import Tune

if TYPE_CHECKING:
    from torch import nn

    from foveal.evidence.tasks.compressing import Finished
    from foveal.shrink.step import Step

__all__ = ["CELLS", "cell", "table"]

TUNED, TAUGHT = 200, 400  # steps of training after a cut, and of a student
SINGLE = ("prune", "low rank", "distil", "int8")
CELLS = (*((one,) for one in SINGLE), ("prune", "low rank"), ("prune", "int8"), ("low rank", "int8"),
         ("distil", "prune"), ("distil", "low rank"), ("distil", "int8"))  # fmt: skip
STUDENT = partial(small_vit, dim=48, depth=4, num_heads=4, patch=4)


def _steps(method: str) -> list[Step]:
    tune = Tune(compressing.steps(TUNED), lr=5e-4)
    steps: dict[str, list[Step]] = {
        "prune": [Prune(keep=0.5, scorer="taylor"), tune],
        "low rank": [LowRank(keep=0.9 if rehearsing() else 0.5), tune],
        "int8": [Quantise()],
        "distil": [],  # the student takes the network's place before the other steps
    }
    return steps[method]


@cached(maxsize=3)
def _student(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = STUDENT()
    return Distil(compressing.vit(), steps=compressing.steps(TAUGHT), lr=2e-3).apply(student, compressing.data(seed))


@cached(maxsize=64)
def cell(methods: tuple[str, ...], seed: int) -> Finished:
    """Measure one cell.

    Args:
        methods: methods in their order; none for the whole network, trained as long as a pair.
        seed: seed of the batches, of the calibration and of the student.

    Returns:
        Accuracy, bytes and time.
    """
    model = _student(seed) if "distil" in methods else compressing.vit()
    steps = [step for method in methods for step in _steps(method)]
    return compressing.finished(model, steps or [Tune(compressing.steps(2 * TUNED), lr=5e-4)], seed)


def table(seeds: tuple[int, ...] = (0, 1, 2)) -> str:
    """The whole table as Markdown.

    Args:
        seeds: seeds of every cell.

    Returns:
        One line for each cell: means and ranges over the seeds.
    """
    lines = ["| methods | accuracy, % | KB | ms a picture |", "|---|---|---|---|"]
    for methods in ((), *CELLS):
        cells = [cell(methods, seed) for seed in seeds]
        marks = [c.accuracy for c in cells]
        times = sorted(c.milliseconds for c in cells)
        name, spread = " + ".join(methods) or "whole", f"{min(marks):.2f} to {max(marks):.2f}"
        figures = f"{cells[0].size / 1e3:.1f} | {times[len(times) // 2]:.3f}"
        lines.append(f"| {name} | {sum(marks) / len(marks):.2f} ({spread}) | {figures} |")
    return "\n".join(lines)


def _whole_cells() -> float:
    """Cells with an accuracy above chance, bytes and a time."""
    cells = [cell(methods, 0) for methods in CELLS]
    return float(sum(c.accuracy > 10 and c.size > 0 and c.milliseconds > 0 for c in cells))


def _best_pair(seed: int) -> float:
    """Change of accuracy of the best of the pairs that are smaller than both of their members, points."""
    whole, found = cell((), seed).accuracy, []
    for pair in CELLS[5:6] if rehearsing() else CELLS:
        members = [cell((one,), seed).size for one in pair]
        own = cell(pair, seed)
        if len(pair) > 1 and own.size < min(members):
            found.append(own.accuracy - whole)
    return max(found, default=-100.0)


def _toy(seed: int) -> float:
    """Bytes of a tiny transformer after int8, for the common suite."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_vit(dim=16, depth=1, num_heads=2, img_size=8).eval()
        inputs = torch.randn(4, 3, 8, 8)
    data = Data(inputs, lambda _: 0.0)
    return float(shrink(model, [Quantise(by="onnxruntime")], data, insist=True, memory=False, seconds=0.05).last.size)


METHOD = Method(
    id=240,
    name="ViTCompressionSurvey",
    kind="study",
    summary="Pruning, low rank, distillation and int8 of a vision transformer, alone and in pairs, in one table.",
    paper=Paper(
        "Comprehensive Survey of Model Compression and Speed up for Vision Transformers", "F. Chen et al.", 2024,
        "arXiv:2404.10407",
    ),
    cases={"int8": Procedure(_toy)},
)  # fmt: skip

CLAIMS = (
    bound(
        "The four methods and six pairs have an accuracy above chance, bytes of a file and a measured time each.",
        paper="tables of accuracy, size and speed",
        value=_whole_cells,
        at_least=len(CELLS),
        unit="cells",
        needs=compressing.NEEDS,
        clause=1,
    ),
    kept(
        "The best pair that is smaller than both of its members loses less than 1 point against the whole network, "
        "trained as long.",
        paper="combinations balance accuracy and efficiency",
        quality=_best_pair,
        at_least=-1.0,
        unit="points",
        data="small ViT on CIFAR-10, files in their fastest form, the first 2,000 test pictures",
        needs=compressing.NEEDS,
        clause=2,
    ),
)

if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
