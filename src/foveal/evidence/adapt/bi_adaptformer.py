"""Evidence for Bi-AdaptFormer: one bit a value beside fp16 in as many bytes, exact reloading, and the levels."""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from foveal.adapt.attach import LowRankPart
from foveal.adapt.bi_adaptformer import (
    BinaryPart,
    adaptformer_,
    bi_adaptformer,
    load_adapters_,
    save_adapters,
)
from foveal.adapt.coded import gaussian_levels
from foveal.adapt.delta import Delta, LowRank
from foveal.adapt.learned import attached
from foveal.adapt.methods import Pictures
from foveal.evidence.rehearsal import rehearsing
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import transfers
from foveal.record import bound, equal, kept, smaller

TASK, SHOTS, STEPS, BATCH, LR = "digits", 16, 60, 32, 3e-3
BITS_RANK, HALF_RANK = 14, 1
MATRICES = ((192, 64), (64, 64), (256, 64), (64, 256)) * 4  # of the transformer of `transfers`
MAX_1960 = {2: (0.4528, 1.510), 4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733)}


def _half(delta: Delta) -> Delta:
    """Low-rank factors rounded to fp16."""
    changes = {
        name: LowRank(change.up.half().float(), change.down.half().float()) if isinstance(change, LowRank) else change
        for name, change in delta.changes.items()
    }
    return Delta(changes, delta.base, delta.about)


def over_half(seed: int) -> float:
    """Accuracy with one bit a value less that with fp16 and a lower rank.

    Args:
        seed: seed of shots, batches and new parameters.

    Returns:
        Points.
    """
    model, pictures = transfers.base(), Pictures(*transfers.shots(TASK, SHOTS, seed=seed))
    steps, count = 2 if rehearsing() else STEPS, transfers.TRANSFERS[TASK]
    ours = bi_adaptformer(
        model, pictures, steps=steps, seed=seed, rank=BITS_RANK, lr=LR, batch=BATCH, num_classes=count
    )
    theirs = attached(
        model,
        pictures,
        partial(LowRankPart, rank=HALF_RANK),
        method="lora",
        steps=steps,
        lr=LR,
        seed=seed,
        batch=BATCH,
        num_classes=count,
    )
    return transfers.kept_right(ours, TASK) - transfers.kept_right(_half(theirs), TASK)


def _bytes(*, packed: bool) -> int:
    def change(rows: int, columns: int) -> Delta:
        if packed:
            return Delta({"weight": BinaryPart(torch.zeros(rows, columns), rank=BITS_RANK).change()})
        return Delta({"weight": LowRank(torch.zeros(rows, HALF_RANK).half(), torch.zeros(HALF_RANK, columns).half())})

    return sum(change(*shape).bytes for shape in MATRICES)


def differing_values() -> float:
    """Values that differ after a file was written and read: weights of a delta and outputs of adapters.

    Returns:
        Number of values.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        part = BinaryPart(torch.zeros(63, 37), rank=5)
        used = part(torch.zeros(63, 37)).detach()
        Delta({"weight": part.change()}).save(Path(folder) / "delta.safetensors")
        read = Delta.load(Path(folder) / "delta.safetensors").changes["weight"].difference()
        found = int((used != read).sum())
        models = [small_vit(dim=24, depth=2, num_heads=3, patch=8) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        for model in models:
            adaptformer_(model.eval(), hidden=5)
            for name, parameter in model.named_parameters():
                if name.endswith("up.weight"):
                    nn.init.normal_(parameter)
        save_adapters(models[0], Path(folder) / "adapters.safetensors")
        load_adapters_(models[1], Path(folder) / "adapters.safetensors")
        x = torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            return found + int((models[0](x) != models[1](x)).sum())


def _levels() -> Tensor:
    return torch.cat([gaussian_levels(1), gaussian_levels(2)[2:], gaussian_levels(4)[8:]])


CLAIMS = (
    kept(
        f"One bit a value at rank {BITS_RANK} is as right as fp16 at rank {HALF_RANK}, in as many bytes.",
        paper="1-bit adapters are best at equal storage",
        quality=over_half,
        at_least=0.0,
        unit="points",
        seeds=5,
        data=f"digits at 16×16, {SHOTS} pictures of each class",
        needs=transfers.NEEDS,
        clause=1,
    ),
    smaller(
        "The bits, with all numbers that are needed to read them, take no more bytes than the fp16 factors.",
        paper="",
        ours=lambda: _bytes(packed=True),
        theirs=lambda: _bytes(packed=False),
        at_least=1.0,
        clause=1,
    ),
    bound(
        "No weight of a delta and no output of a transformer with adapters differs after writing and reading a file.",
        paper="bits and two scalars a matrix",
        value=differing_values,
        at_most=0,
        unit="values",
        clause=2,
    ),
    equal(
        "The levels of 1, 2 and 4 bits are ±√(2/π) and those that Max printed in 1960.",
        paper="±√(2/π) for one bit",
        ours=_levels,
        theirs=lambda: torch.tensor([-math.sqrt(2 / math.pi), math.sqrt(2 / math.pi), *MAX_1960[2], *MAX_1960[4]]),
        tolerance=5e-4,
        clause=3,
    ),
)
