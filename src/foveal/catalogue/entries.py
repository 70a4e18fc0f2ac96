"""The 349 systems of the literature, carried as data.

Of the working catalogue the package keeps what says which system a row is (id, name, title, family, kind, tasks), what
it must do here to count (works_when), and where else it can be had (code, library). The free-text mechanism and claims
are left out: a record beside the code says both, checked; so are the planning columns (effort, tier).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["Entry", "entries", "fold"]


@dataclass(frozen=True)
class Entry:
    """One row of the literature.

    Args:
        id: number of the row, the same for good.
        name: short name, as the paper writes it.
        title: of the paper.
        family: subject it belongs to, such as "restore" or "tokens".
        kind: architecture, training, operator, inference, transform, theory, benchmark or application.
        tasks: what it is for.
        works_when: what an implementation here must show.
        code: address of the authors' code, "" when there is none.
        library: package and object that already provide it, "" when none is known.
    """

    id: int
    name: str
    title: str
    family: str
    kind: str
    tasks: tuple[str, ...]
    works_when: str
    code: str
    library: str


def fold(name: str) -> str:
    """A name as it is compared: case, spaces, hyphens and underscores do not count.

    Args:
        name: of a method.

    Returns:
        The comparable form.
    """
    return "".join(c for c in name.casefold() if c not in " -_")


@cache
def entries() -> dict[int, Entry]:
    """All rows.

    Returns:
        id → row, ids ascending.
    """
    found = {}
    text = files("foveal.catalogue").joinpath("catalogue.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        row = json.loads(line)
        found[row["id"]] = Entry(
            **{**row, "tasks": tuple(row["tasks"]), "code": row["code"] or "", "library": row["library"] or ""}
        )
    return dict(sorted(found.items()))
