"""The 349 methods of the literature, stored as data.

`catalogue.jsonl` contains one row per method: its identity (id, name, title, family, kind, tasks), how it works
(mechanism), what its paper promises (claims), other implementations (code, library), the amount of work (effort, tier),
and the acceptance bar for an implementation here (works_when). `clauses.jsonl` splits that bar into statements,
numbered from 1, that one measurement each can confirm or refute. The split was made by hand and keeps the words of the
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

# Allowed between two clauses: punctuation, a conjunction, or both.
_JOINT = re.compile(r"[,;:.] (?:(?:and|while|but),? )?| (?:and|while|but),? ")


@dataclass(frozen=True)
class Promise:
    """A promise of a paper about its method.

    Args:
        what: quantity.
        value: the paper's figure, or its words.
        check: way to measure it here.
    """

    what: str
    value: str
    check: str


@dataclass(frozen=True)
class Entry:
    """One row of the literature.

    Args:
        id: number of the row, which never changes.
        name: short name, as the paper writes it.
        title: title of the paper.
        family: subject area, such as "restore" or "tokens".
        kind: architecture, training, operator, inference, transform, theory, benchmark or application.
        tasks: uses of the method, such as "super-resolution".
        mechanism: explanation of how it works, in a few lines.
        claims: promises of the paper.
        code: address of the authors' code, "" if there is none.
        library: package and object that already provide it, "" if none is known.
        works_when: acceptance bar for an implementation here.
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
    """Normalise a name for comparison, without case, spaces, hyphens and underscores.

    Args:
        name: name of a method.

    Returns:
        Normalised name.
    """
    return "".join(c for c in name.casefold() if c not in " -_")


def _match(works_when: str, clauses: Sequence[str]) -> tuple[int, str]:
    """Number of clauses that match the bar in sequence, and the rest of the bar after them."""
    rest = works_when.removesuffix(".")
    for number, clause in enumerate(clauses):
        joint = _JOINT.match(rest) if number else None
        start = joint.end() if joint else 0
        if not clause or (number and not joint) or not rest.startswith(clause, start):
            return number, rest
        rest = rest[start + len(clause) :]
    return len(clauses), rest


def recomposed(works_when: str, clauses: Sequence[str]) -> bool:
    """Whether clauses recompose to the bar.

    Args:
        works_when: acceptance bar of a row.
        clauses: pieces of the bar.

    Returns:
        True if the pieces follow each other word for word from the first word to the last, with only punctuation and
        "and", "while" or "but" between two of them, and without the final full stop.
    """
    return _match(works_when, clauses) == (len(clauses), "")


def _lines(text: str) -> Iterable[dict[str, Any]]:
    return map(json.loads, text.splitlines())


def joined(catalogue: str, clauses: str) -> dict[int, Entry]:
    """Join rows and their clauses.

    Args:
        catalogue: JSON lines, one per row.
        clauses: JSON lines, {"id": …, "clauses": […]}, one per row.

    Returns:
        Row by id, ids ascending.

    Raises:
        ValueError: a row without clauses, clauses without a row, two lines for one row, or clauses that do not
            recompose to the row's `works_when`.
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
    """All rows of the catalogue.

    Returns:
        Row by id, ids ascending.

    Raises:
        ValueError: inconsistent clauses and rows, see `joined`.
    """
    folder = files("foveal.catalogue")
    catalogue, clauses = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("catalogue.jsonl", "clauses.jsonl")
    )
    return joined(catalogue, clauses)
