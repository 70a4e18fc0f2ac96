"""`foveal catalogue`: published methods and their status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli._options import Json, stop

if TYPE_CHECKING:
    from rich.console import Console

    from foveal.catalogue.status import Row

__all__ = ["catalogue"]


def catalogue(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show one method: paper, file, clauses, claims, results.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this family, such as restore or tokens.")
    ] = None,
    status: Annotated[str | None, typer.Option(metavar="NAME", help="Only works, runs, written or planned.")] = None,
    facet: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only rows with this facet, such as method=pruning; may be repeated."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List planned methods too.")] = False,
    as_json: Json = False,
) -> None:
    """List published methods and which are implemented, with their status and what was measured.

    The status is derived from recorded results: "works" meets every clause of its acceptance bar on the machine that
    recorded it, "runs" has had all its claims run and misses a clause, "written" has code whose claims were not all
    run, "planned" has no code. The last column counts the claims that hold.

    Args:
        name: method to show in full.
        family: family to list.
        status: status to list.
        facet: facets to list, of the taxonomies of compression in `foveal.catalogue.facets`.
        every: list planned methods too.
        as_json: print one JSON document.

    Raises:
        typer.Exit: an unknown method, family, status or facet.

    Example:
        $ foveal catalogue --family backbone-conv
        name        title                                                             family         status  claims
        GhostNetV3  GhostNetV3: Exploring the Training Strategies for Compact Models  backbone-conv  runs    5/9
        ...
        MambaOut    MambaOut: Do We Really Need Mamba for Vision?                     backbone-conv  runs    11/14
        ...
        2 of 349 methods of the literature: 2 runs
        19 more are planned; --all lists them too
    """
    from collections import Counter

    from foveal.catalogue.collect import CatalogueError, some
    from foveal.catalogue.facets import chosen as with_facets
    from foveal.catalogue.status import SCALING, STATUSES, exponents, pick, rows
    from foveal.cli._tables import console, table

    out = console()
    try:
        if name is not None:
            if family or status or facet or every:
                raise CatalogueError(
                    "a name shows one method; leave out --family, --status, --facet and --all, or the name"
                )
            located, missing = some([name, SCALING])
            listed = rows(among=located, missing=missing)
            row, scaling = pick(name, listed), exponents(listed)
            out.print_json(json.dumps(_details(row, scaling))) if as_json else _show(row, out, scaling)
            return
        listed = rows()
        families = sorted({row.family for row in listed})
        if family is not None and family not in families:
            raise CatalogueError(f"no family is called {family!r}; the families are {', '.join(families)}")
        if status is not None and status not in STATUSES:
            raise CatalogueError(f"no status is called {status!r}; it is one of {', '.join(STATUSES)}")
        ids = with_facets(facet) if facet else None
    except CatalogueError as error:
        stop("catalogue", error)
    scaling = exponents(listed)
    chosen = [
        row
        for row in listed
        if family in (None, row.family)
        and status in (None, row.status)
        and (ids is None or (row.entry is not None and row.entry.id in ids))
    ]
    hidden = 0
    if not (every or status or as_json):
        hidden = sum(row.status == "planned" for row in chosen)
        chosen = [row for row in chosen if row.status != "planned"]
    if as_json:
        out.print_json(json.dumps([_line(row, scaling) for row in chosen]))
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
    if hidden:
        out.print(f"{hidden} more are planned; --all lists them too", highlight=False)
    for note in sorted({row.note for row in chosen if row.note}):
        console(stderr=True).print(f"Some rows could not be read in full: {note}", markup=False, highlight=False)


def _line(row: Row, scaling: str) -> dict[str, Any]:
    """A row of the list, as JSON."""
    from foveal.catalogue.facets import facets

    found = facets().get(row.entry.id, {}) if row.entry else {}
    return {
        "id": row.entry.id if row.entry else None,
        "name": row.name,
        "title": row.title,
        "family": row.family,
        "status": row.status,
        "claims": len(row.claims),
        "run": sum(claim is not None for claim in row.claims),
        "hold": row.hold,
        "facets": found,
        "scales": scaling if found.get("scan", "none") != "none" else "",
    }


def _details(row: Row, scaling: str) -> dict[str, Any]:
    """One row in full, as JSON."""
    found = _line(row, scaling) | {"note": row.note}
    if row.entry is not None:
        entry = row.entry
        found |= {"kind": entry.kind, "tasks": entry.tasks, "works_when": entry.works_when}
        found |= {"mechanism": entry.mechanism}
        found |= {"code": entry.code, "library": entry.library}
    if row.record is not None:
        method = row.record.method
        found |= {
            "summary": method.summary,
            "paper": {name: getattr(method.paper, name) for name in ("title", "authors", "year", "identifier")},
            "module": row.record.module,
            "evidence": row.record.evidence,
            "models": sorted(method.models),
            "checks": dict(row.checks or {}),
            "stale": row.stale,
            "clauses": [
                {"number": clause.number, "text": clause.text, "met": clause.met, "claims": clause.claims}
                for clause in row.clauses
            ],
            "claims": [
                {
                    "kind": claim.kind,
                    "says": claim.says,
                    "paper": claim.paper,
                    "needs": claim.needs,
                    "clause": claim.clause,
                    "beyond": claim.beyond,
                    "recorded": outcome,
                }
                for claim, outcome in zip(row.record.claims, row.claims, strict=True)
            ],
        }
    return found


def _show(row: Row, out: Console, scaling: str) -> None:
    """Print one row in full."""
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
        say("code", row.entry.code)
        say("also in", row.entry.library)
        line = _line(row, scaling)
        say("facets", ", ".join(f"{name}={value}" for name, value in line["facets"].items()))
        say("scales", line["scales"])
    say("status", row.status)
    say("note", row.note)
    if row.record is None:
        say("mechanism", row.entry.mechanism if row.entry else "")
        for number, text in enumerate(row.entry.clauses if row.entry else (), start=1):
            say("works when" if number == 1 else "", f"{number}. {text}")
        return
    method = row.record.method
    say("summary", method.summary)
    say("paper", f"{method.paper.authors}, {method.paper.year}, {method.paper.identifier}")
    say("file", str(row.record.path))
    say("evidence", row.record.evidence)
    say("models", ", ".join(sorted(method.models)))
    failed = [said for said in (row.checks or {}).values() if said.startswith("failed")]
    say(
        "checks", f"{len(row.checks) - len(failed)} of {len(row.checks)} passed or excused" if row.checks else "not run"
    )
    for text in failed:
        say("", text)
    for clause in row.clauses:
        met = "met" if clause.met else ", ".join(sorted(set(clause.verdicts))) or "no claim answers it"
        say("works when" if clause.number == 1 else "", f"{clause.number}. {clause.text}: {met}")
    out.print()
    lines = [
        (str(claim.clause or "–"), claim.kind, claim.says, claim.paper or "–", *_result(outcome))
        for claim, outcome in zip(row.record.claims, row.claims, strict=True)
    ]
    table(out, ("clause", "kind", "claim", "paper", "here", "verdict", "run"), lines)
    if row.stale:
        out.print(
            f"The code has changed since results were recorded: foveal claims {row.name} --save --resume",
            highlight=False,
        )


def _result(outcome: Any) -> tuple[str, str, str]:
    """Recorded value, verdict, and date and machine of the run."""
    if outcome is None:
        return "", "not run", ""
    processor = outcome["machine"]["processor"]
    return outcome["here"], outcome["verdict"], f"{outcome['date']}, {outcome['threads']} threads, {processor}"
