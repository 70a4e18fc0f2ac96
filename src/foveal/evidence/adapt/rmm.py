"""Evidence for RMM: exact recovery, the error of Eckart and Young, and six adapters beside their average."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from foveal.adapt.attach import LowRankPart
from foveal.adapt.delta import Delta, LowRank
from foveal.adapt.rmm import PER, Reversible, bases_of, discarded_energy, merge
from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10, many_tasks
from foveal.evidence.tasks.corruptions import CORRUPTIONS
from foveal.record import equal, kept, smaller

RANK, BASES = 8, 2
SIDES = {"wide": (192, 64), "odd": (63, 7)}


def _drawn(count: int = 6, rank: int = 5) -> list[Delta]:
    generator = torch.Generator().manual_seed(0)

    def change(rows: int, columns: int) -> LowRank:
        return LowRank(torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator))

    return [Delta({name: change(*sides) for name, sides in SIDES.items()}) for _ in range(count)]


def _flat(deltas: list[Delta]) -> Tensor:
    return torch.cat([change.difference().flatten() for delta in deltas for change in delta.changes.values()])  # type: ignore[attr-defined]


def _recovered(per: str) -> Tensor:
    deltas = _drawn()
    merged = merge(deltas, len(deltas), per=per)
    return _flat([merged.recover(task) for task in range(len(deltas))])


def _collections() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((63, 6, 8), (1, 6, 512), (7, 5, 3), (1, 1, 9))
    ]


def errors() -> Tensor:
    """Squared errors of all collections for every p.

    Returns:
        (n,), float64.
    """
    found = []
    for x in _collections():
        for p in range(1, x.shape[-2] + 1):
            c, s = bases_of(x, p)
            found.append((x - c @ s).square().sum((-1, -2)))
    return torch.cat(found)


def energies() -> Tensor:
    """What the singular values of the same collections leave out.

    Returns:
        (n,), float64.
    """
    return torch.cat([discarded_energy(x, p) for x in _collections() for p in range(1, x.shape[-2] + 1)])


@cached(maxsize=4)
def _adapters(seed: int) -> list[Delta]:
    """Six adapters with the same first factors, as copies of one LoRA are."""
    return [many_tasks.learned(kind, partial(LowRankPart, rank=RANK), seed=seed) for kind in CORRUPTIONS]


def _merged(deltas: list[Delta]) -> Reversible:
    return merge([delta.only(many_tasks.body) for delta in deltas], BASES)


def average(deltas: list[Delta], merged: Reversible) -> Delta:
    """The mean change of every weight, of the highest rank that fits into the merged tasks' storage.

    Args:
        deltas: one of each task.
        merged: the same, merged.

    Returns:
        A low-rank delta.
    """
    changes = {}
    for name in merged.up:
        mean = sum(delta.changes[name].difference() for delta in deltas) / len(deltas)
        stored = sum(tensor.numel() for side in (merged.up, merged.down) for tensor in side[name])
        u, s, v = torch.linalg.svd(mean, full_matrices=False)  # type: ignore[arg-type]
        rank = min(len(s), stored // (u.shape[0] + v.shape[1]))
        changes[name] = LowRank(u[:, :rank] * s[:rank], v[:rank])
    return Delta(changes, merged.base)


def over_average(seed: int) -> float:
    """Mean accuracy of the recovered tasks less that of their average, each with the task's own head.

    Args:
        seed: seed of batches and new parameters.

    Returns:
        Points.
    """
    deltas = _adapters(seed)
    merged = _merged(deltas)
    mean = average(deltas, merged)
    gains = [
        many_tasks.judged(merged.recover(task), delta, kind)[1] - many_tasks.judged(mean, delta, kind)[1]
        for task, (kind, delta) in enumerate(zip(CORRUPTIONS, deltas, strict=True))
    ]
    return sum(gains) / len(gains)


CLAIMS = (
    *(
        equal(
            f"With as many bases as tasks every task is recovered, coefficients a {per}.",
            ours=partial(_recovered, per),
            theirs=lambda: _flat(_drawn()),
            tolerance=1e-5,
            clause=1,
        )
        for per in PER
    ),
    equal(
        "For every number of bases the squared error is the energy of the singular values left out.",
        paper="optimal by Eckart and Young",
        ours=errors,
        theirs=energies,
        tolerance=1e-10,
        clause=2,
    ),
    kept(
        f"Two bases of six adapters of rank {RANK}, 58 % of their values, give a higher mean accuracy than their "
        "average stored in as many.",
        paper="far above merging",
        quality=over_average,
        at_least=0.0,
        unit="points",
        data=many_tasks.DAMAGED,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    smaller(
        f"Two bases of six adapters of rank {RANK} take 58 % of the adapters' values.",
        paper="p (r + T) in place of T r a position",
        ours=lambda: merge(_drawn(rank=RANK), BASES).values,
        theirs=lambda: sum(delta.values for delta in _drawn(rank=RANK)),
        at_least=1.7,
        beyond="storage",
    ),
)
