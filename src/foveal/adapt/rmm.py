"""RMM: low-rank changes of many tasks kept as a few bases, from which each task comes back by a weighted sum.

*Source*: M. Alipour and M. Mohammadi Amiri, "Towards Reversible Model Merging For Low-rank Weights", 2025
(arXiv:2510.14163). T tasks have changes ΔW_t = up_t · down_t of one rank r. At each position of a layer, a row of `up`
or a column of `down`, the T vectors of r values are the rows of X: (T, r). Its p bases and their coefficients are

    min ‖X - C S‖²  over C: (T, p), S: (p, r)   →   C = first p eigenvectors of X Xᵀ,  S = Cᵀ X

so that the error is the sum of the squared singular values of X from p + 1 on (Eckart and Young), and p = T gives
every task back. No data are needed. Task t is used as up_t ≈ C_t S, down_t likewise, then folded as any other delta.

Stored are p·(r + T) values a position in place of T·r, which pays for T and r well above p. With `per="tensor"` all
positions of a factor share their coefficients: X: (T, C_out·r), p·(C_out·r + T) values, which is p tasks' worth.

*Differs from the paper*: X is not centred. `per="tensor"` is the other end of what may share coefficients.

*Provenance*: written from the abstract and summaries of the paper, which names no code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from foveal.adapt.delta import AdaptError, Delta, LowRank
from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Bases", "Reversible", "bases_of", "discarded_energy", "merge"]

PER = ("position", "tensor")
_KEY = "foveal.rmm"


class Bases(NamedTuple):
    """A truncated collection.

    Args:
        coefficients: C, (…, T, p), orthonormal columns.
        bases: S, (…, p, D).
    """

    coefficients: Tensor
    bases: Tensor


def bases_of(collection: Tensor, p: int) -> Bases:
    """The p bases and coefficients that restore a collection with the least squared error.

    Args:
        collection: X, (…, T, D); leading axes are collections of their own.
        p: number of bases, in 1…T.

    Returns:
        Coefficients and bases, in the collection's dtype.

    Raises:
        ValueError: p outside 1…T.
    """
    count = collection.shape[-2]
    if not 1 <= p <= count:
        raise ValueError(f"p must be in 1…{count} for {count} tasks, got {p}; {count} keeps all of them exactly")
    x = collection.double()
    # T is small, so the eigenvectors of X Xᵀ are cheap; C is orthonormal, so squaring X costs no accuracy at p = T
    coefficients = torch.linalg.eigh(x @ x.mT).eigenvectors.flip(-1)[..., :p]
    return Bases(coefficients.to(collection), (coefficients.mT @ x).to(collection))


def discarded_energy(collection: Tensor, p: int) -> Tensor:
    """The least squared error that p bases can have, by the singular values.

    Args:
        collection: X, (…, T, D).
        p: number of bases.

    Returns:
        Sum of the squared singular values from p + 1 on, (…).
    """
    return torch.linalg.svdvals(collection.double())[..., p:].square().sum(-1)


def _collection(factors: list[Tensor], per: str) -> Tensor:
    """(T, rows, r) → (rows, T, r) for coefficients a position, (1, T, rows·r) for coefficients a tensor."""
    stacked = torch.stack(factors)
    return stacked.transpose(0, 1) if per == "position" else stacked.flatten(1)[None]


@dataclass(frozen=True)
class Reversible:
    """Tasks merged so that each can be had back.

    Args:
        up: name of a tensor → bases of the outer factors, batches of rows.
        down: name → bases of the inner factors, transposed.
        rank: r.
        tasks: T.
        base: name → fingerprint of the weights that the deltas were made for.
    """

    up: Mapping[str, Bases]
    down: Mapping[str, Bases]
    rank: int
    tasks: int
    base: Mapping[str, str]

    @property
    def values(self) -> int:
        """Number of values that are stored, coefficients among them."""
        return sum(tensor.numel() for found in (*self.up.values(), *self.down.values()) for tensor in found)

    def recover(self, task: int) -> Delta:
        """One task again.

        Args:
            task: its number, from 0, in the order in which the deltas were merged.

        Returns:
            A low-rank delta of rank r.

        Raises:
            ValueError: no such task.
        """
        if not 0 <= task < self.tasks:
            raise ValueError(f"task must be in 0…{self.tasks - 1}, got {task}; they are numbered as they were merged")

        def factor(found: Bases) -> Tensor:
            rows = torch.einsum("bp,bpd->bd", found.coefficients[:, task], found.bases)
            return rows.reshape(-1, self.rank)

        changes = {
            name: LowRank(factor(found), factor(self.down[name]).T.contiguous()) for name, found in self.up.items()
        }
        return Delta(changes, self.base, {"method": "rmm", "task": task})

    def save(self, path: Path | str) -> None:
        """Write everything to one file.

        Args:
            path: .safetensors file.
        """
        from safetensors.torch import save_file

        tensors = {
            f"{side}::{name}::{word}": getattr(found, word).contiguous()
            for side in ("up", "down")
            for name, found in getattr(self, side).items()
            for word in Bases._fields
        }
        said = {"rank": self.rank, "tasks": self.tasks, "base": dict(self.base)}
        save_file(tensors, path, metadata={_KEY: json.dumps(said)})

    @classmethod
    def load(cls, path: Path | str) -> Reversible:
        """Read what `save` wrote.

        Args:
            path: .safetensors file.

        Returns:
            The merged tasks.

        Raises:
            AdaptError: another kind of file.
        """
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if text is None:
            raise AdaptError(f"{path}: no merged tasks; give a file written by Reversible.save")
        said = json.loads(text)
        up, down = (
            {
                name: Bases(*(tensors[f"{side}::{name}::{word}"] for word in Bases._fields))
                for name in sorted({key.split("::")[1] for key in tensors if key.startswith(f"{side}::")})
            }
            for side in ("up", "down")
        )
        return cls(up, down, said["rank"], said["tasks"], said["base"])


def merge(deltas: Sequence[Delta], p: int, *, per: str = "position") -> Reversible:
    """Merge low-rank deltas of one model so that each can be recovered.

    Args:
        deltas: T deltas of the same tensors and one rank, of nothing but low-rank changes.
        p: number of bases, in 1…T.
        per: what has coefficients of its own: "position", as the paper has it, or "tensor".

    Returns:
        The merged tasks.

    Raises:
        ValueError: no delta, or another `per`.
        AdaptError: deltas that are not alike, or with other changes than low-rank ones.
    """
    if not deltas or per not in PER:
        raise ValueError(f"merge takes at least one delta and per one of {', '.join(PER)}, got {len(deltas)}, {per!r}")
    first = deltas[0]
    sides: tuple[dict[str, Bases], dict[str, Bases]] = ({}, {})
    ranks = set()
    for name in first.changes:
        found = [delta.changes.get(name) for delta in deltas]
        low = [change for change in found if isinstance(change, LowRank)]
        if len(low) < len(found):
            raise AdaptError(f"{name!r} is not low-rank in every delta; leave it out with `only` and keep it apart")
        if len({(change.up.shape, change.down.shape) for change in low}) > 1:
            raise AdaptError(f"{name!r} has changes of several ranks or shapes; adapt one model with one rank")
        if len({delta.base.get(name) for delta in deltas}) > 1:
            raise AdaptError(f"{name!r} was changed from different weights; adapt one and the same model")
        ranks.add(low[0].up.shape[1])
        sides[0][name] = bases_of(_collection([change.up for change in low], per), p)
        sides[1][name] = bases_of(_collection([change.down.T for change in low], per), p)
    if len(ranks) != 1 or any(set(delta.changes) != set(first.changes) for delta in deltas):
        raise AdaptError("the deltas must change the same tensors, each by one rank; adapt one model with one rank")
    return Reversible(*sides, ranks.pop(), len(deltas), dict(first.base))


def _merged(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    deltas = [Delta({"weight": LowRank(draw(5, 3), draw(3, 7))}) for _ in range(4)]
    return merge(deltas, 2).recover(1).changes["weight"].difference()


METHOD = Method(
    id=313,
    name="RMM",
    kind="procedure",
    summary="Low-rank changes of many tasks kept as a few bases, from which each task is recovered in closed form.",
    paper=Paper(
        "Towards Reversible Model Merging For Low-rank Weights",
        "M. Alipour and M. Mohammadi Amiri",
        2025,
        "arXiv:2510.14163",
    ),
    cases={"recover": Procedure(_merged, lambda: merge([], 1), "merge takes at least one delta")},
)
