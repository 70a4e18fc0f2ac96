"""Says how far each row is; derived from code and recorded results, typed nowhere.

    planned  no record stands for the row
    written  a record does, but not all it promises has been run
    works    the record's common checks passed, and every claim it makes now was run and its outcome recorded

A claim that was run and did not hold counts as run: it is shown beside the status, and stays a result. A claim whose
words or bounds change is no longer the one that was run. Whether a row still does what was recorded is for the tests,
which run the common checks, and for `foveal claims`; a file that changed since is marked `stale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveal.catalogue import results
from foveal.catalogue.claims import source_hash
from foveal.catalogue.collect import CatalogueError, Located, Missing, closest, records, unreadable
from foveal.catalogue.entries import Entry, entries, fold

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["OWN", "STATUSES", "Row", "pick", "rows"]

STATUSES = ("works", "written", "planned")
OWN = "foveal"  # family of the records that have no row in the literature


@dataclass(frozen=True)
class Row:
    """One line of the catalogue.

    Args:
        name: of the method.
        title: of its paper.
        family: of the catalogue; "foveal" for its own work.
        status: planned, written or works.
        entry: row of the literature; None for foveal's own work.
        record: None when there is none, or it cannot be read.
        claims: recorded outcome of each claim of the record, None where there is none.
        checks: recorded result of each common check.
        stale: the record's file has changed since an outcome was recorded.
        note: why the record cannot be read, else "".
    """

    name: str
    title: str
    family: str
    status: str
    entry: Entry | None
    record: Located | None = None
    claims: tuple[Mapping[str, Any] | None, ...] = ()
    checks: Mapping[str, str] | None = None
    stale: bool = False
    note: str = ""

    @property
    def hold(self) -> int:
        """How many claims were run and hold."""
        return sum(claim is not None and claim["verdict"] == "holds" for claim in self.claims)


def _passed(checks: Mapping[str, str]) -> bool:
    return bool(checks) and not any(said.startswith("failed") for said in checks.values())


def _row(entry: Entry | None, record: Located | None, missing: Missing | None, where: Path | None) -> Row:
    if record is None:
        assert entry is not None
        note = f"its record needs {missing.package}: pip install foveal[torch]" if missing else ""
        status = "written" if missing else "planned"
        return Row(entry.name, entry.title, entry.family, status, entry, note=note)
    method = record.method
    content = results.load(method, where)
    claims = tuple(results.recorded(method, content))
    run = bool(claims) and None not in claims
    return Row(
        name=method.name if entry is None else entry.name,
        title=method.paper.title if entry is None else entry.title,
        family=OWN if entry is None else entry.family,
        status="works" if run and _passed(content["checks"]) else "written",
        entry=entry,
        record=record,
        claims=claims,
        checks=content["checks"],
        stale=any(claim["source"] != source_hash(record.path) for claim in claims if claim),
    )


def rows(
    *,
    among: Mapping[str, Located] | None = None,
    missing: Iterable[Missing] | None = None,
    where: Path | None = None,
) -> list[Row]:
    """The whole catalogue: the rows of the literature by id, then foveal's own work by name.

    Args:
        among: records; None for those of the package.
        missing: modules that cannot be read; None for those of the package.
        where: folder of recorded results; None for the usual one.

    Returns:
        One row for each.
    """
    held = list((records() if among is None else among).values())
    absent = {row: module for module in (unreadable() if missing is None else missing) for row in module.ids}
    by_id = {item.method.id: item for item in held if item.method.id is not None}
    own = [item for item in held if item.method.id is None]
    return [
        *(_row(entry, by_id.get(number), absent.get(number), where) for number, entry in entries().items()),
        *(_row(None, item, None, where) for item in own),
    ]


def pick(name: str, among: Iterable[Row]) -> Row:
    """One row by name; case, spaces, hyphens and underscores do not count.

    Args:
        name: of the method.
        among: rows to look through.

    Returns:
        The row.

    Raises:
        CatalogueError: no row of that name; the text gives the three closest.
    """
    by_name = {fold(row.name): row for row in among}
    if row := by_name.get(fold(name)):
        return row
    near = ", ".join(closest(name, [row.name for row in by_name.values()]))
    raise CatalogueError(f"nothing in the catalogue is called {name!r}; the closest are {near}")
