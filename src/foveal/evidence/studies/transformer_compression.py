"""Prune, distil and int8 of a vision transformer by one command, in the orders that can work.

*Source*: Y. Tang et al., "A Survey on Transformer Compression", 2024 (arXiv:2402.05964), sections 2 and 6: its taxonomy
(method, modality, target, data) is that of `foveal catalogue --facet`, and its open question is in which order methods
combine.

    prune → distil → int8     cut the trained network, let the whole one teach what is left, quantise
    distil → prune → int8     train with the whole network as teacher first, cut, quantise

Whatever comes after int8 is refused by `foveal shrink` with the reason, so these are all orders of the three.

*Differs from the paper*: the survey compares published tables; here one small network is measured.
*Provenance*: written from the survey.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from foveal.cases import Procedure
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import compressing
from foveal.record import Method, Paper, bound, kept
from foveal.shrink.distill.distillation import Distil
from foveal.shrink.prune.structure import Prune
from foveal.shrink.quantize.int8 import Quantise
from foveal.shrink.steps import check_order, untouched

if TYPE_CHECKING:
    from foveal.shrink.step import Step

__all__ = ["ORDERS", "accuracy"]

TAUGHT = 300  # steps of distillation
ORDERS = (("prune", "distil", "int8"), ("distil", "prune", "int8"))
_FIGURES = ("latency", "size", "quality")


def _step(name: str) -> Step:
    steps: dict[str, Step] = {
        "prune": Prune(keep=0.6, scorer="taylor"),
        "distil": Distil(untouched, steps=compressing.steps(TAUGHT), lr=5e-4),
        "int8": Quantise(),
    }
    return steps[name]


@cached(maxsize=8)
def accuracy(order: tuple[str, ...], seed: int) -> float:
    """Accuracy after the last step.

    Args:
        order: names of the steps.
        seed: seed of the batches and of the calibration.

    Returns:
        Accuracy of the int8 file, percent.
    """
    return compressing.finished(compressing.vit(), [_step(name) for name in order], seed).accuracy


def _listed(*words: str) -> list[dict[str, str]]:
    command = "from foveal.cli.main import main; main()"
    facets = [part for word in words for part in ("--facet", word)]
    arguments = [sys.executable, "-c", command, "catalogue", "--all", "--json", *facets]
    return json.loads(subprocess.run(arguments, capture_output=True, check=True).stdout)


def _unclassified() -> float:
    """Rows of the families of compression that no method of the taxonomy lists, and methods that list nothing."""
    if rehearsing():  # the command has its own tests
        return 0.0
    families = {"distill", "prune", "quantize", "tokens"}
    methods = ("architecture", "distillation", "low-rank", "pruning", "quantization", "tokens")
    groups = [_listed(f"method={method}") for method in methods]
    classified = {row["id"] for group in groups for row in group}
    rows = [row for row in _listed() if row["family"] in families]
    return float(sum(row["id"] not in classified for row in rows) + sum(not group for group in groups) + (not rows))


def _reported() -> float:
    """Stages of `foveal shrink` with latency, size and quality, after prune, distil and int8."""
    if rehearsing():  # the command has its own tests
        return 0.0
    import torch
    from safetensors.torch import save_file

    with TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        from timm import create_model

        settings: dict[str, Any] = {
            "img_size": 32,
            "patch_size": 4,
            "embed_dim": 48,
            "depth": 2,
            "num_heads": 4,
            "num_classes": 10,
        }
        model = create_model("vit_tiny_patch16_224", **settings)
        save_file(model.state_dict(), folder / "vit.safetensors")
        steps = "".join(
            f'[[step]]\nname = "{step}"\n{more}\n'
            for step, more in (("prune", "keep = 0.5"), ("distil", "steps = 20"), ("quantise", ""))
        )
        (folder / "recipe.toml").write_text(steps)
        arguments = [
            "shrink", "vit_tiny_patch16_224", "--weights", str(folder / "vit.safetensors"), "--data", "cifar10",
            "--recipe", str(folder / "recipe.toml"), "-o", str(folder / "out"), "--limit", "200", "--insist",
            *(word for key, value in settings.items() for word in ("--arg", f"{key}={value}")),
        ]  # fmt: skip
        command = "from foveal.cli.main import main; main()"
        subprocess.run([sys.executable, "-c", command, *arguments], check=True, capture_output=True)
        lines = json.loads((folder / "out" / "report.json").read_text())["lines"]
    return float(sum(all(line["measured"].get(figure) is not None for figure in _FIGURES) for line in lines[1:]))


def _refused(seed: int) -> float:
    """Orders of the three steps that are refused, for the common suite."""
    from itertools import permutations

    count = 0
    for order in permutations(ORDERS[0]):
        try:
            check_order([_step(name) for name in order])
        except ValueError:
            count += 1
    return count + 0.0 * seed


METHOD = Method(
    id=18,
    name="Transformer-Compression-Survey",
    kind="study",
    summary="Prune, distil and int8 of a vision transformer by one command, in every order that can work.",
    paper=Paper("A Survey on Transformer Compression", "Y. Tang et al.", 2024, "arXiv:2402.05964"),
    cases={"orders": Procedure(_refused)},
)

CLAIMS = (
    bound(
        "The taxonomy lists every row of compression, and each of its methods lists some.",
        paper="pruning, quantisation, distillation, efficient architecture",
        value=_unclassified,
        at_most=0.0,
        unit="rows and methods without the other",
        needs=("minutes",),
        clause=1,
    ),
    bound(
        "`foveal shrink` with prune, distil and quantise reports latency, size and accuracy after each.",
        paper="methods combine",
        value=_reported,
        at_least=3.0,
        unit="stages",
        needs=compressing.NEEDS,
        clause=2,
    ),
    kept(
        "Cutting first and letting the whole network teach what is left is more accurate than teaching first.",
        paper="the order is an open question",
        quality=lambda seed: accuracy(ORDERS[0], seed) - accuracy(ORDERS[1], seed),
        at_least=0.0,
        unit="points",
        data=f"small ViT on CIFAR-10, {TAUGHT} steps of distillation, int8 files, the first 2,000 test pictures",
        needs=compressing.NEEDS,
        beyond="the order of methods",
    ),
)
