"""Evidence for the survey of quantised vision transformers: an integer-only ViT, and facets of the catalogue."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10
from foveal.evidence.trained_once import trained_once
from foveal.record import bound, kept
from foveal.shrink.quantize.integer import gelu, normalized, softmax
from foveal.shrink.quantize.integer_vit import IntegerOnly

if TYPE_CHECKING:
    from torch import nn

VIT = partial(small_vit, dim=64, depth=4, num_heads=2)
STEPS = 600
DATA = f"{STEPS} steps on CIFAR-10, the first 2,000 test pictures"


def _listed(*words: str) -> set[int]:
    """Ids of the rows that `foveal catalogue --facet …` lists."""
    command = "from foveal.cli.main import main; main()"
    facets = [part for word in words for part in ("--facet", word)]
    found = subprocess.run(
        [sys.executable, "-c", command, "catalogue", "--all", "--json", *facets], capture_output=True, check=True
    )
    return {row["id"] for row in json.loads(found.stdout)}


def _unfiltered() -> float:
    """Quantisers that a filter by when they quantise does not find, or finds twice."""
    if rehearsing():  # the command has its own tests
        return 0.0
    everything, after, during = (
        _listed("method=quantization", *more) for more in ((), ("when=post-training",), ("when=quantization-aware",))
    )
    return float(len(everything ^ (after | during)) + len(after & during) + 100 * (not everything))


@cached(maxsize=3)
def _trained(seed: int) -> nn.Module:
    return trained_once(
        VIT,
        lambda: cifar10.train_classifier(VIT, steps=STEPS, seed=seed),
        modules=[cifar10.__name__, small_vit.__module__],
        key=f"small_vit 64 4 2 steps {STEPS} seed {seed}",
    )


def _difference(seed: int) -> float:
    model = _trained(seed)
    count = 20 if rehearsing() else 256
    twin = IntegerOnly().apply(model, cifar10.pictures("train")[0][:count])
    return cifar10.accuracy(twin) - cifar10.accuracy(model)


def _error(operator: str) -> float:
    """Largest error of an integer operator over the largest value of the exact one, on seeded activations."""
    x = 3 * torch.randn(64, 197, generator=torch.Generator().manual_seed(0))
    bits = 12 if operator == "gelu" else 16
    scale = float(x.abs().max()) / (2 ** (bits - 1) - 1)
    q = (x / scale).round().long()
    found, exact = {
        "gelu": lambda: (gelu(q, scale), F.gelu(x)),
        "softmax": lambda: (softmax(q, scale), x.softmax(-1)),
        "normalisation": lambda: (normalized(q), F.layer_norm(x, (197,))),
    }[operator]()
    return float((found[0] * found[1] - exact).abs().max() / exact.abs().max())


CLAIMS = (
    bound(
        "Filtered by the survey's axes, the catalogue lists every quantiser exactly once.",
        paper="a taxonomy of quantisers",
        value=_unfiltered,
        at_most=0.0,
        unit="rows missing or double",
        needs=("minutes",),
        clause=1,
    ),
    kept(
        "In integer arithmetic alone a small trained ViT loses at most one point of accuracy.",
        paper="I-BERT: within 1 point of floating point on GLUE",
        quality=_difference,
        at_least=-1.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    *(
        bound(
            f"Integer {operator} is within {most:.1%} of the largest value.",
            paper=paper,
            value=partial(_error, operator),
            at_most=most,
            unit="of the largest value",
            beyond="integer forms of the non-linear operators",
        )
        for operator, most, paper in (
            ("softmax", 0.005, "exp within 1.9e-3"),
            ("gelu", 0.02, "GELU within 1.8e-2"),
            ("normalisation", 0.005, ""),
        )
    ),
)
