"""Status of each row, derived from code, clauses and recorded results, never entered by hand.

    planned  the row has no record
    written  it has a record, but not all claims of its evidence have been run
    runs     all claims have been run (except those that need a missing GPU), but a clause of the bar is not met
    works    every clause of the bar is met here, and the common checks passed

A clause is met if at least one claim answers it and every claim that answers it holds. A claim whose words or bounds
change counts as not run. An outcome is stale if the code it ran has changed since, see `foveal.evidence.closure`; stale
outcomes still count and are marked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveal._install import install_hint
from foveal.catalogue.collect import CatalogueError, Located, Missing, closest, records, unreadable
from foveal.catalogue.entries import Entry, entries, fold
from foveal.evidence import results

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["OWN", "SCALING", "STATUSES", "Clause", "Row", "exponents", "pick", "rows"]

STATUSES = ("works", "runs", "written", "planned")
SCALING = "SSM-Medical-Survey"  # row whose claims measure how a scan's cost grows
OWN = "foveal"  # family of the records without a row in the literature


@dataclass(frozen=True)
class Clause:
    """One statement of a row's bar.

    Args:
        number: number of the clause, from 1.
        text: statement.
        claims: indices of the claims that answer it, from 0.
        verdicts: recorded verdicts of these claims, "not run" if there is none.
    """

    number: int
    text: str
    claims: tuple[int, ...]
    verdicts: tuple[str, ...]

    @property
    def met(self) -> bool:
        """Whether at least one claim answers the clause and all that do hold."""
        return bool(self.verdicts) and all(verdict == "holds" for verdict in self.verdicts)


@dataclass(frozen=True)
class Row:
    """One line of the catalogue.

    Args:
        name: name of the method.
        title: title of its paper.
        family: family in the catalogue; "foveal" for its own work.
        status: planned, written, runs or works.
        entry: row of the literature; None for foveal's own work.
        record: record of the method; None if there is none or it cannot be read.
        claims: recorded outcome of each claim of its evidence, None if there is none.
        clauses: statements of the bar with the claims that answer them.
        checks: recorded result of each common check.
        note: reason why the record cannot be read, else "".
    """

    name: str
    title: str
    family: str
    status: str
    entry: Entry | None
    record: Located | None = None
    claims: tuple[Mapping[str, Any] | None, ...] = ()
    clauses: tuple[Clause, ...] = ()
    checks: Mapping[str, str] | None = None
    note: str = ""

    @property
    def hold(self) -> int:
        """Number of claims that were run and hold."""
        return sum(claim is not None and claim["verdict"] == "holds" for claim in self.claims)

    @property
    def missed(self) -> tuple[Clause, ...]:
        """The clauses that are not met here."""
        return tuple(clause for clause in self.clauses if not clause.met)

    @property
    def stale(self) -> bool:
        """Whether the code has changed since one of the outcomes was recorded."""
        record = self.record
        return record is not None and any(claim["source"] != record.source for claim in self.claims if claim)


def _passed(checks: Mapping[str, str]) -> bool:
    return bool(checks) and not any(said.startswith("failed") for said in checks.values())


def _clauses(entry: Entry | None, record: Located, claims: tuple[Mapping[str, Any] | None, ...]) -> tuple[Clause, ...]:
    said = tuple(claim["verdict"] if claim else "not run" for claim in claims)
    found = []
    for number, text in enumerate(entry.clauses if entry else (), start=1):
        answers = tuple(i for i, claim in enumerate(record.claims) if claim.clause == number)
        found.append(Clause(number, text, answers, tuple(said[i] for i in answers)))
    return tuple(found)


def _status(
    record: Located, claims: tuple[Mapping[str, Any] | None, ...], row: tuple[Clause, ...], passed: bool
) -> str:
    wanting = [claim for claim, outcome in zip(record.claims, claims, strict=True) if outcome is None]
    if any("gpu" not in claim.needs for claim in wanting) or not passed:
        return "written"
    # foveal's own work has no bar except its claims
    met = all(clause.met for clause in row) if row else all(claim and claim["verdict"] == "holds" for claim in claims)
    return "works" if met else "runs"


def _row(entry: Entry | None, record: Located | None, missing: Missing | None, where: Path | None) -> Row:
    if record is None:
        assert entry is not None
        note = f"its record needs {missing.package}: {install_hint('torch')}" if missing else ""
        return Row(entry.name, entry.title, entry.family, "written" if missing else "planned", entry, note=note)
    method = record.method
    content = results.load(method, where)
    claims = tuple(results.recorded(record.claims, content))
    clauses = _clauses(entry, record, claims)
    return Row(
        name=method.name if entry is None else entry.name,
        title=method.paper.title if entry is None else entry.title,
        family=OWN if entry is None else entry.family,
        status=_status(record, claims, clauses, _passed(content["checks"])),
        entry=entry,
        record=record,
        claims=claims,
        clauses=clauses,
        checks=content["checks"],
    )


def rows(
    *,
    among: Mapping[str, Located] | None = None,
    missing: Iterable[Missing] | None = None,
    where: Path | None = None,
) -> list[Row]:
    """The whole catalogue: the rows of the literature by id, then foveal's own work by name.

    Args:
        among: records by name; None for those of the package.
        missing: records that cannot be read; None for those of the package.
        where: folder of recorded results; None for the usual one.

    Returns:
        One row per method.
    """
    held = list((records() if among is None else among).values())
    absent = {item.indexed.id: item for item in (unreadable() if missing is None else missing)}
    by_id = {item.method.id: item for item in held if item.method.id is not None}
    own = [item for item in held if item.method.id is None]
    return [
        *(_row(entry, by_id.get(number), absent.get(number), where) for number, entry in entries().items()),
        *(_row(None, item, None, where) for item in own),
    ]


def exponents(among: Iterable[Row]) -> str:
    """How a selective scan grows with the number of tokens, as recorded for `SCALING`.

    Args:
        among: rows to search.

    Returns:
        A line that names the record, "" if it has no outcomes.
    """
    row = next((row for row in among if row.name == SCALING), None)
    claims = [claim for claim in row.claims if claim and "a selective scan" in claim["says"]] if row else []
    said = [f"{claim['says'].split()[0].lower()} ~ tokens^{claim['value']:.2f}" for claim in claims]
    return f"a selective scan's {', '.join(said)} (see {SCALING})" if said else ""


def pick(name: str, among: Iterable[Row]) -> Row:
    """Find a row by name, ignoring case, spaces, hyphens and underscores.

    Args:
        name: name of the method.
        among: rows to search.

    Returns:
        The row.

    Raises:
        CatalogueError: no row of that name; the text lists the three closest names.
    """
    by_name = {fold(row.name): row for row in among}
    if row := by_name.get(fold(name)):
        return row
    near = ", ".join(closest(name, [row.name for row in by_name.values()]))
    raise CatalogueError(f"nothing in the catalogue is called {name!r}; the closest are {near}")
