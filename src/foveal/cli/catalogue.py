"""`foveal catalogue`: every method foveal knows of, and how far each has come."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from foveal.catalogue.status import Row

__all__ = ["catalogue"]


def catalogue(
    name: Annotated[str | None, typer.Argument(help="Show one method: its paper, file, claims and results.")] = None,
    family: Annotated[str | None, typer.Option(help="Only this family, such as restore or tokens.")] = None,
    status: Annotated[str | None, typer.Option(help="Only works, written or planned.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods of the literature and foveal's own, with what stands and what was measured.

    A status is derived, never typed: "planned" has no code; "written" has code whose claims were not all run; "works"
    passed the common checks and had every claim run. Claims that did not hold are counted in the last column.

        $ foveal catalogue --family distill
        name         title                                                    family   status   claims
        DCKD         DCKD: Dynamic Contrastive Knowledge Distillation for i…  distill  planned
        MiPKD        MiPKD: multi-granularity mixture of prior knowledge di…  distill  planned
        AdaptConf    Vision superalignment: weak-to-strong generalization f…  distill  planned
        ...
        8 of 349 methods of the literature: 8 planned
    """
    from collections import Counter

    from foveal.catalogue.collect import CatalogueError
    from foveal.catalogue.status import STATUSES, pick, rows
    from foveal.cli._tables import console, table

    out = console()
    try:
        listed = rows()
        if name is not None:
            if family or status:
                raise CatalogueError("a name shows one method; leave out --family and --status, or the name")
            row = pick(name, listed)
            out.print_json(json.dumps(_details(row))) if as_json else _show(row, out)
            return
        families = sorted({row.family for row in listed})
        if family is not None and family not in families:
            raise CatalogueError(f"no family is called {family!r}; the families are {', '.join(families)}")
        if status is not None and status not in STATUSES:
            raise CatalogueError(f"no status is called {status!r}; it is one of {', '.join(STATUSES)}")
    except CatalogueError as error:
        typer.echo(f"foveal catalogue: {error}", err=True)
        raise typer.Exit(2) from None
    chosen = [row for row in listed if family in (None, row.family) and status in (None, row.status)]
    if as_json:
        out.print_json(json.dumps([_line(row) for row in chosen]))
        return
    lines = [
        (row.name, row.title, row.family, row.status, f"{row.hold}/{len(row.claims)}" if row.claims else "")
        for row in chosen
    ]
    table(out, ("name", "title", "family", "status", "claims"), lines, shorten="title")
    literature = [row for row in chosen if row.entry is not None]
    tally = Counter(row.status for row in literature)
    said = ", ".join(f"{tally[word]} {word}" for word in STATUSES if tally[word]) or "none"
    whole = sum(row.entry is not None for row in listed)
    own = len(chosen) - len(literature)
    out.print(
        f"{len(literature)} of {whole} methods of the literature: {said}" + (f"; {own} of foveal's own" if own else ""),
        highlight=False,
    )
    for note in sorted({row.note for row in chosen if row.note}):
        console(stderr=True).print(f"Some rows could not be read in full: {note}", markup=False, highlight=False)


def _line(row: Row) -> dict[str, Any]:
    """A row of the list, as JSON."""
    return {
        "id": row.entry.id if row.entry else None,
        "name": row.name,
        "title": row.title,
        "family": row.family,
        "status": row.status,
        "claims": len(row.claims),
        "run": sum(claim is not None for claim in row.claims),
        "hold": row.hold,
    }


def _details(row: Row) -> dict[str, Any]:
    """One row in full, as JSON."""
    found = _line(row) | {"note": row.note}
    if row.entry is not None:
        entry = row.entry
        found |= {"kind": entry.kind, "tasks": entry.tasks, "works_when": entry.works_when}
        found |= {"code": entry.code, "library": entry.library}
    if row.record is not None:
        method = row.record.method
        found |= {
            "summary": method.summary,
            "paper": {name: getattr(method.paper, name) for name in ("title", "authors", "year", "identifier")},
            "module": row.record.module,
            "models": sorted(method.models),
            "checks": dict(row.checks or {}),
            "stale": row.stale,
            "claims": [
                {
                    "kind": claim.kind,
                    "says": claim.says,
                    "paper": claim.paper,
                    "needs": claim.needs,
                    "recorded": outcome,
                }
                for claim, outcome in zip(method.claims, row.claims, strict=True)
            ],
        }
    return found


def _show(row: Row, out: Console) -> None:
    """One row in full, for people."""
    from foveal.cli._tables import table

    def say(label: str, text: str) -> None:
        if text:
            out.print(f"{label:<11}{text}", markup=False, highlight=False)

    out.print(row.name, style="bold", markup=False, highlight=False)
    say("title", row.title)
    say("family", row.family)
    if row.entry is not None:
        say("kind", row.entry.kind)
        say("tasks", ", ".join(row.entry.tasks))
        say("works when", row.entry.works_when)
        say("code", row.entry.code)
        say("also in", row.entry.library)
    say("status", row.status)
    say("note", row.note)
    if row.record is None:
        return
    method = row.record.method
    say("summary", method.summary)
    say("paper", f"{method.paper.authors}, {method.paper.year}, {method.paper.identifier}")
    say("file", str(row.record.path))
    say("models", ", ".join(sorted(method.models)))
    failed = [said for said in (row.checks or {}).values() if said.startswith("failed")]
    say(
        "checks", f"{len(row.checks) - len(failed)} of {len(row.checks)} passed or excused" if row.checks else "not run"
    )
    for text in failed:
        say("", text)
    out.print()
    lines = [
        (claim.kind, claim.says, claim.paper or "–", *_result(outcome))
        for claim, outcome in zip(method.claims, row.claims, strict=True)
    ]
    table(out, ("kind", "claim", "paper", "here", "verdict", "run"), lines)
    if row.stale:
        out.print(f"The file has changed since results were recorded: foveal claims {row.name} --save", highlight=False)


def _result(outcome: Any) -> tuple[str, str, str]:
    """Recorded value, verdict, and when and where."""
    if outcome is None:
        return "", "not run", ""
    processor = outcome["machine"]["processor"]
    return outcome["here"], outcome["verdict"], f"{outcome['date']}, {outcome['threads']} threads, {processor}"
