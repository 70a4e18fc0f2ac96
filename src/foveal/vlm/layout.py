"""Layout trees of formulas: symbols, what hangs on them and where, and the steps in which a decoder takes them.

An edge says where its child stands: over, under, inside or to the right of its parent; a row of symbols is a chain of
"right". Steps go depth first, "right" last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RELATIONS", "RIGHT", "START", "Layout", "Steps", "blank", "grow", "mirror", "steps"]

RELATIONS = ("leftsup", "inside", "above", "below", "sub", "sup", "right")
RIGHT, START = len(RELATIONS) - 1, len(RELATIONS)  # START leads to the root


@dataclass(frozen=True)
class Layout:
    """A symbol and what hangs on it: a layout tree, by its root.

    Args:
        symbol: number of the symbol.
        branches: pairs of a relation, a place in `RELATIONS`, and the subtree there; ascending, so "right" is last.

    Raises:
        VlmError: relations that do not ascend or are unknown.
    """

    symbol: int
    branches: tuple[tuple[int, Layout], ...] = ()

    def __post_init__(self) -> None:
        found = [relation for relation, _ in self.branches]
        if found != sorted(set(found)) or not set(found) <= set(range(START)):
            raise VlmError(f"relations must ascend within 0 to {RIGHT}, each once at most, got {found}; sort them")


def mirror(tree: Layout) -> Layout:
    """The tree read from the right: every row's chain of "right" turned round.

    Args:
        tree: layout tree, or one that was flipped.

    Returns:
        The flipped tree; "right" now leads to the left. Flipped twice, it is the tree again.
    """
    node, root = tree, None
    while True:
        rest = dict(node.branches)
        following = rest.pop(RIGHT, None)
        own = tuple((relation, mirror(branch)) for relation, branch in rest.items())
        root = Layout(node.symbol, own if root is None else (*own, (RIGHT, root)))
        if following is None:
            return root
        node = following


@dataclass(frozen=True)
class Steps:
    """Trees as the steps of a decoder, depth first, padded behind.

    Args:
        symbols: (B, T), int64.
        parents: step of each symbol's parent, (B, T); −1 of the root.
        relations: relation to the parent, (B, T); `len(RELATIONS)` of the root.
        branches: relations in which a symbol has a branch, (B, T, relations), 0 or 1.
        real: whether a step is no padding, (B, T).
    """

    symbols: Tensor
    parents: Tensor
    relations: Tensor
    branches: Tensor
    real: Tensor


def steps(trees: Sequence[Layout]) -> Steps:
    """Lay out trees as steps.

    Args:
        trees: at least one.

    Returns:
        Their steps, as many as the largest tree has symbols.
    """
    rows = []
    for tree in trees:
        row: list[tuple[int, int, int, list[int]]] = []
        stack = [(tree, -1, START)]
        while stack:
            node, parent, relation = stack.pop()
            stack += [(branch, len(row), kind) for kind, branch in reversed(node.branches)]
            row.append((node.symbol, parent, relation, [kind for kind, _ in node.branches]))
        rows.append(row)
    lengths = torch.tensor([len(row) for row in rows])
    made = blank(len(rows), int(lengths.max()))
    real = torch.arange(made.real.shape[1]) < lengths[:, None]
    symbols, parents, relations = torch.tensor([step[:3] for row in rows for step in row]).unbind(1)
    at = torch.tensor([(n, kind) for n, step in enumerate(step for row in rows for step in row) for kind in step[3]])
    branches = torch.zeros(len(symbols), START)
    if len(at):
        branches[at[:, 0], at[:, 1]] = 1
    made.real[real] = True
    made.symbols[real], made.parents[real], made.relations[real], made.branches[real] = (
        symbols, parents, relations, branches,
    )  # fmt: skip
    return made


def grow(given: Steps) -> list[Layout]:
    """Trees of steps.

    Args:
        given: steps; `branches` is not read, so a tree that was cut short is one, too.

    Returns:
        The trees, B of them.
    """
    found = []
    for symbols, parents, relations, real in zip(
        *(x.tolist() for x in (given.symbols, given.parents, given.relations, given.real)), strict=True
    ):
        below: list[dict[int, Layout]] = [{} for _ in symbols]
        for t in reversed(range(sum(real))):  # children come behind their parents
            tree = Layout(symbols[t], tuple(sorted(below[t].items(), key=lambda pair: pair[0])))
            if t:
                below[parents[t]][relations[t]] = tree
        found.append(tree)
    return found


def blank(batch: int, longest: int) -> Steps:
    """Steps that are not known yet: a root each, the rest padding.

    Args:
        batch: B.
        longest: T.

    Returns:
        The steps.
    """
    shape, real = (batch, longest), torch.zeros(batch, longest, dtype=torch.bool)
    real[:, :1] = True
    symbols, parents, relations = (torch.full(shape, fill) for fill in (0, -1, START))
    return Steps(symbols, parents, relations, torch.zeros(*shape, START), real)
