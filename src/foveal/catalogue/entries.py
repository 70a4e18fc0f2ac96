"""The 349 systems of the literature, carried as data.

`catalogue.jsonl` holds one row for each: which system it is (id, name, title, family, kind, tasks), how it works
(mechanism), what its paper says of it (claims), where else it can be had (code, library), how much work it is (effort,
tier), and what an implementation here must show (works_when). `clauses.jsonl` splits that bar into statements that
one measurement each can confirm or refute, numbered from 1. The split was made by hand. Its words are those of the
bar: `entries` refuses clauses that do not recompose to it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Entry", "Promise", "entries", "fold", "joined", "recomposed"]

# What may stand between two clauses: punctuation, a conjunction, or both.
_JOINT = re.compile(r"[,;:.] (?:(?:and|while|but),? )?| (?:and|while|but),? ")


@dataclass(frozen=True)
class Promise:
    """What a paper says of its system.

    Args:
        what: the quantity.
        value: the paper's figure, or its words.
        check: how it can be measured here.
    """

    what: str
    value: str
    check: str


@dataclass(frozen=True)
class Entry:
    """One row of the literature.

    Args:
        id: number of the row, the same for good.
        name: short name, as the paper writes it.
        title: title of the paper.
        family: subject it belongs to, such as "restore" or "tokens".
        kind: architecture, training, operator, inference, transform, theory, benchmark or application.
        tasks: uses of the system, such as "super-resolution".
        mechanism: how it works, in a few lines.
        claims: promises of the paper.
        code: address of the authors' code, "" when there is none.
        library: package and object that already provide it, "" when none is known.
        works_when: what an implementation here must show.
        clauses: statements of `works_when`, in its order; each can be confirmed or refuted on its own.
        effort: amount of work: "S", "M" or "L".
        tier: order of work, 1 (first) to 3.
    """

    id: int
    name: str
    title: str
    family: str
    kind: str
    tasks: tuple[str, ...]
    mechanism: str
    claims: tuple[Promise, ...]
    code: str
    library: str
    works_when: str
    clauses: tuple[str, ...]
    effort: str
    tier: int


def fold(name: str) -> str:
    """A name as it is compared: case, spaces, hyphens and underscores do not count.

    Args:
        name: of a method.

    Returns:
        The comparable form.
    """
    return "".join(c for c in name.casefold() if c not in " -_")


def _match(works_when: str, clauses: Sequence[str]) -> tuple[int, str]:
    """How many clauses match the bar, one after the other, and what of the bar is left behind them."""
    rest = works_when.removesuffix(".")
    for number, clause in enumerate(clauses):
        joint = _JOINT.match(rest) if number else None
        start = joint.end() if joint else 0
        if not clause or (number and not joint) or not rest.startswith(clause, start):
            return number, rest
        rest = rest[start + len(clause) :]
    return len(clauses), rest


def recomposed(works_when: str, clauses: Sequence[str]) -> bool:
    """Whether clauses are the bar, cut at its joints.

    Args:
        works_when: the bar of a row.
        clauses: pieces of it.

    Returns:
        True when the pieces follow each other word for word from the first word to the last, with nothing between two
        of them but punctuation and "and", "while" or "but", and without the final full stop.
    """
    return _match(works_when, clauses) == (len(clauses), "")


def _lines(text: str) -> Iterable[dict[str, Any]]:
    return map(json.loads, text.splitlines())


def joined(catalogue: str, clauses: str) -> dict[int, Entry]:
    """Rows and their clauses, put together.

    Args:
        catalogue: JSON lines, one for each row.
        clauses: JSON lines, {"id": …, "clauses": […]}, one for each row.

    Returns:
        id → row, ids ascending.

    Raises:
        ValueError: a row has no clauses, clauses have no row, or they do not recompose to the row's `works_when`.
    """
    pieces: dict[int, tuple[str, ...]] = {}
    for line in _lines(clauses):
        if line["id"] in pieces:
            raise ValueError(f"clauses.jsonl: wanted one line for each row, got two for row {line['id']}; keep one")
        pieces[line["id"]] = tuple(line["clauses"])
    found: dict[int, Entry] = {}
    for row in _lines(catalogue):
        number, bar = row["id"], row["works_when"]
        own = pieces.pop(number, ())
        if not own:
            raise ValueError(
                f"clauses.jsonl: wanted at least one clause for row {number}, {row['name']}, got none; "
                f"split its works_when: {bar}"
            )
        if not recomposed(bar, own):
            matched, rest = _match(bar, own)
            got = repr(own[matched]) if matched < len(own) else "no more clauses"
            raise ValueError(
                f"clauses.jsonl, row {number}, {row['name']}: behind {matched} matching clauses wanted pieces of "
                f"{rest!r}, got {got}; keep the words and the order of works_when"
            )
        found[number] = Entry(
            **{
                **row,
                "tasks": tuple(row["tasks"]),
                "claims": tuple(Promise(**claim) for claim in row["claims"]),
                "code": row["code"] or "",
                "library": row["library"] or "",
                "clauses": own,
            }
        )
    if pieces:
        raise ValueError(
            f"clauses.jsonl: wanted clauses of the catalogue's rows only, got some for {sorted(pieces)}; "
            "remove them, or add the rows to catalogue.jsonl"
        )
    return dict(sorted(found.items()))


@cache
def entries() -> dict[int, Entry]:
    """All rows.

    Returns:
        id → row, ids ascending.

    Raises:
        ValueError: clauses and rows of the package do not fit together, see `joined`.
    """
    folder = files("foveal.catalogue")
    catalogue, clauses = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("catalogue.jsonl", "clauses.jsonl")
    )
    return joined(catalogue, clauses)
