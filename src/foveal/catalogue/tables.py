"""Markdown generated from the catalogue: the docs page, and the sentence in README.

Nothing is maintained by hand. `python -m foveal.catalogue README.md` writes the sentence between its markers.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from foveal.catalogue.collect import CatalogueError
from foveal.catalogue.status import OWN, STATUSES, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

__all__ = ["BEGIN", "END", "claims_table", "counts", "page", "refreshed", "sentence"]

BEGIN, END = "<!-- catalogue -->", "<!-- /catalogue -->"

_HEAD = """\
# Catalogue

Every system of efficient vision that foveal knows of, and how far each has come here. This page is made from the
catalogue, from the records beside the code and from recorded results; nobody types a status.

- **works**: every clause of the row's bar is met here, and the method's common checks passed.
- **runs**: all its claims were run and recorded, and a clause of the bar is not met; which one is shown. That is a
  result too.
- **written**: its code, record and evidence are there; not all that is claimed has been run.
- **planned**: a row of the literature, no code yet.

A verdict is *undecided* where the bound lies within two standard errors of the mean over the seeds: the smallest
difference that the comparison could see.

`foveal catalogue NAME` shows one of them; `foveal claims NAME` runs its claims on your machine.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], lines: Iterable[Sequence[object]], *, right: Iterable[int] = ()) -> str:
    """A Markdown table; `right` are the columns aligned to the right."""
    numbers = set(right)
    rule = ["---:" if i in numbers else "---" for i in range(len(head))]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in (head, rule, *lines))


def counts(rows: Iterable[Row]) -> str:
    """Numbers of rows of the literature by kind and status.

    Args:
        rows: rows of the catalogue; foveal's own work is not counted.

    Returns:
        Markdown table, the largest kind first.
    """
    kinds: dict[str, Counter[str]] = {}
    for row in rows:
        if row.entry is not None:
            kinds.setdefault(row.entry.kind, Counter())[row.status] += 1
    ordered = sorted(kinds.items(), key=lambda item: (-item[1].total(), item[0]))
    total = sum((count for _, count in ordered), Counter())
    lines = [
        (kind, *(count[status] for status in STATUSES), count.total()) for kind, count in [*ordered, ("**all**", total)]
    ]
    return _table(("kind", *STATUSES, "all"), lines, right=range(1, len(STATUSES) + 2))


def sentence(rows: Iterable[Row]) -> str:
    """Summary of the catalogue in one sentence.

    Args:
        rows: rows of the whole catalogue.

    Returns:
        Plain text.
    """
    listed = [row for row in rows if row.entry is not None]
    tally = Counter(row.status for row in listed)
    here = len(listed) - tally["planned"]
    claims = [claim for row in listed for claim in row.claims if claim]
    hold = sum(claim["verdict"] == "holds" for claim in claims)
    return (
        f"{here} of {len(listed)} published methods are implemented; {tally['works']} meet every clause of their bar "
        f"on the machine that measured them, and {hold} of {len(claims)} recorded claims hold."
    )


def claims_table(outcomes: Iterable[Mapping[str, Any]], clauses: Iterable[int] | None = None) -> str:
    """Table of claims: the paper's value and the value measured here.

    Args:
        outcomes: recorded outcomes, as in a results file.
        clauses: number of the clause that each outcome answers, 0 for none; None leaves the column out.

    Returns:
        Markdown table.
    """
    listed = list(outcomes)
    lines = [
        (
            outcome["says"],
            outcome["paper"] or "–",
            outcome["here"] or outcome["reason"],
            outcome["verdict"],
            f"{outcome['date']}, {outcome['threads']} threads",
        )
        for outcome in listed
    ]
    head = ("claim", "paper", "here", "verdict", "run")
    if clauses is None:
        return _table(head, lines)
    numbers = [str(number or "–") for number in clauses]
    return _table(("clause", *head), [(n, *line) for n, line in zip(numbers, lines, strict=True)])


def _record(row: Row) -> str:
    """Section of one record: its location, its bar and its claims."""
    assert row.record is not None
    method, claims = row.record.method, row.record.claims
    paper = f"{method.paper.authors}, “{method.paper.title}”, {method.paper.year} ({method.paper.identifier})"
    parts = [f"### {row.name}", f"{method.summary} *{paper}.* `{row.record.module}`, `{row.record.evidence}`"]
    if row.clauses:
        parts.append(f"Status: **{row.status}**. Its bar:")
        said = [
            f"{clause.number}. {clause.text}: "
            + ("met" if clause.met else f"**{', '.join(sorted(set(clause.verdicts))) or 'not answered'}**")
            for clause in row.clauses
        ]
        parts.append("\n".join(said))
    run = [(outcome, claim.clause) for outcome, claim in zip(row.claims, claims, strict=True) if outcome]
    if run:
        parts.append(claims_table([outcome for outcome, _ in run], [number for _, number in run]))
        machines = sorted(
            {f"{outcome['machine']['processor']}, {outcome['machine']['cores']} cores" for outcome, _ in run}
        )
        parts.append(f"Measured on {'; '.join(machines)}.")
    waiting = [claim.says for claim, outcome in zip(claims, row.claims, strict=True) if outcome is None]
    if waiting:
        parts.append("Not run yet: " + "; ".join(said.rstrip(".") for said in waiting) + ".")
    return "\n\n".join(parts)


def _held(row: Row) -> str:
    return f"{row.hold} of {len(row.claims)}" if row.claims else "–"


def _clauses(row: Row) -> str:
    return f"{len(row.clauses) - len(row.missed)} of {len(row.clauses)}" if row.clauses else "–"


def page(rows: Iterable[Row]) -> str:
    """The docs page.

    Args:
        rows: rows of the whole catalogue.

    Returns:
        Markdown: counts, records with their claims, then every family.
    """
    listed = list(rows)
    written = [row for row in listed if row.record is not None]
    parts = [_HEAD, counts(listed)]
    if written:
        lines = [
            (f"[{row.name}](#{_anchor(row.name)})", row.family, row.status, _clauses(row), _held(row))
            for row in written
        ]
        parts += [
            "## Implemented methods",
            _table(("method", "family", "status", "clauses met", "claims that hold"), lines),
            *(_record(row) for row in written),
        ]
    parts.append("## The literature, family by family")
    families: dict[str, list[Row]] = {}
    for row in listed:
        if row.family != OWN:
            families.setdefault(row.family, []).append(row)
    for family in sorted(families):
        held = families[family]
        cells = [(row.entry.id if row.entry else "", row.name, row.title, row.status) for row in held]
        parts += [f"### {family} ({len(held)})", _table(("id", "name", "paper", "status"), cells, right=(0,))]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _anchor(name: str) -> str:
    """Anchor that Markdown gives a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", name).strip().lower())


def refreshed(text: str, rows: Iterable[Row]) -> str:
    """Update the sentence between its markers in a text.

    Args:
        text: Markdown with the markers, each on its own line.
        rows: rows of the whole catalogue.

    Returns:
        The text with only the lines between the markers changed.

    Raises:
        CatalogueError: the markers are missing or occur more than once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise CatalogueError(
            f"the sentence goes between one {BEGIN} and one {END}; found {text.count(BEGIN)} and {text.count(END)}"
        )
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{sentence(rows)}\n{END}{after}"
