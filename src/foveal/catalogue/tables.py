"""Markdown made from the catalogue: the docs page, and the counts that README shows.

Nothing of it is kept by hand. `python -m foveal.catalogue README.md` writes the counts between their markers.
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

__all__ = ["BEGIN", "END", "claims_table", "counts", "page", "refreshed"]

BEGIN, END = "<!-- catalogue counts -->", "<!-- /catalogue counts -->"

_HEAD = """\
# Catalogue

Every system of efficient vision that foveal knows of, and how far each has come here. This page is made from the
catalogue, from the records beside the code and from recorded results; nobody types a status.

- **works**: the method's common checks passed, and every claim it makes was run and its outcome recorded. A claim that
  did not hold here is shown as not holding: that is a result too.
- **written**: its code and record are there; not all it promises has been run.
- **planned**: a row of the literature, no code yet.

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
    """How many rows of the literature work, are written and are planned, kind by kind.

    Args:
        rows: of the catalogue; foveal's own work is not counted.

    Returns:
        A Markdown table, the largest kind first.
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


def claims_table(outcomes: Iterable[Mapping[str, Any]]) -> str:
    """Paper against here, claim by claim.

    Args:
        outcomes: recorded, as in a results file.

    Returns:
        A Markdown table.
    """
    lines = [
        (
            outcome["says"],
            outcome["paper"] or "–",
            outcome["here"] or outcome["reason"],
            outcome["verdict"],
            f"{outcome['date']}, {outcome['threads']} threads",
        )
        for outcome in outcomes
    ]
    return _table(("claim", "paper", "here", "verdict", "run"), lines)


def _record(row: Row) -> str:
    """One record: where it stands, and its claims."""
    assert row.record is not None
    method = row.record.method
    paper = f"{method.paper.authors}, “{method.paper.title}”, {method.paper.year} ({method.paper.identifier})"
    parts = [f"### {row.name}", f"{method.summary} *{paper}.* `{row.record.module}`"]
    run = [outcome for outcome in row.claims if outcome]
    if run:
        parts.append(claims_table(run))
        machines = sorted(
            {f"{outcome['machine']['processor']}, {outcome['machine']['cores']} cores" for outcome in run}
        )
        parts.append(f"Measured on {'; '.join(machines)}.")
    waiting = [claim.says for claim, outcome in zip(method.claims, row.claims, strict=True) if outcome is None]
    if waiting:
        parts.append("Not run yet: " + "; ".join(said.rstrip(".") for said in waiting) + ".")
    return "\n\n".join(parts)


def _held(row: Row) -> str:
    return f"{row.hold} of {len(row.claims)}" if row.claims else "–"


def page(rows: Iterable[Row]) -> str:
    """The docs page.

    Args:
        rows: of the whole catalogue.

    Returns:
        Markdown: counts, records with their claims, then every family.
    """
    listed = list(rows)
    written = [row for row in listed if row.record is not None]
    parts = [_HEAD, counts(listed)]
    if written:
        lines = [(f"[{row.name}](#{_anchor(row.name)})", row.family, row.status, _held(row)) for row in written]
        parts += [
            "## What stands",
            _table(("method", "family", "status", "claims that hold"), lines),
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
    """The address Markdown gives a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", name).strip().lower())


def refreshed(text: str, rows: Iterable[Row]) -> str:
    """A text with the counts between its markers renewed.

    Args:
        text: Markdown that has the markers, each on a line of its own.
        rows: of the whole catalogue.

    Returns:
        The text, unchanged but for the lines between the markers.

    Raises:
        CatalogueError: the markers are missing or there is more than one pair.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise CatalogueError(
            f"the counts go between one {BEGIN} and one {END}; found {text.count(BEGIN)} and {text.count(END)}"
        )
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{counts(rows)}\n{END}{after}"
