"""`foveal claims`: run the claims of papers on this machine and print paper, here and verdict."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli._options import Benchmarks, Json, data_folder, stop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from foveal.catalogue.collect import Located
    from foveal.evidence.run import Outcome
    from foveal.record import Claim

__all__ = ["claims"]


def claims(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Methods, such as ESPCN.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All methods with a record.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this kind: params, macs, equal, faster, smaller, kept, grows, bound; or checks, the common "
            "ones. Repeat it.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip claims that need minutes of training; fewer timings, one seed.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Record each outcome in results/claims at once; needs committed code.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Skip claims that have a recorded outcome of the current code."),
    ] = False,
    data: Benchmarks = None,
    as_json: Json = False,
) -> None:
    """Run the claims of methods on this machine and print the paper's value beside ours.

    The exit code is 1 if a claim does not hold or could not run, or a common check fails; claims skipped by --quick do
    not count. --save records each outcome with date, processor, threads and versions as soon as it is known, so
    --resume continues an interrupted run; a claim that could not run leaves its record unchanged.

    Args:
        names: names of methods.
        every: run all methods with a record.
        only: kinds of claims to run, or "checks".
        quick: skip claims that need minutes of training.
        save: record each outcome.
        resume: skip claims with a recorded outcome of the current code.
        data: folder of benchmark sets.
        as_json: print one JSON document.

    Raises:
        typer.Exit: a wrong call, or a claim or check that fails.

    Example:
        $ foveal claims sesr --only params
        SESR  2026-11-28  AMD EPYC, 2 cores, numpy 2.4.6, torch 2.15.0
        kind    claim               paper     here     verdict  threads  seconds
        params  M5 ×2, collapsed.   13.52 K   13,520   holds    2        0.1
        params  M11 ×2, collapsed.  27.34 K   27,344   holds    2        0.0
        params  XL ×2, collapsed.   105.37 K  105,376  holds    2        0.0
    """
    from rich.markup import escape

    from foveal.catalogue.collect import CatalogueError, find, records
    from foveal.cli._tables import console
    from foveal.evidence import checks, results
    from foveal.evidence.run import RUNNERS, run

    try:
        if every == bool(names):
            raise CatalogueError("name one or more methods, or pass --all; foveal catalogue lists them")
        if quick and save:
            raise CatalogueError("a quick run is no record; leave out --quick or --save")
        known = [*RUNNERS, "checks"]
        if wrong := next((kind for kind in only or () if kind not in known), None):
            raise CatalogueError(f"no kind of claim is called {wrong!r}; the kinds are {', '.join(known)}")
        kinds = set(only or known)
        if save and (why := results.refusal()):
            raise CatalogueError(why)
        chosen = list(records().values()) if every else [find(name) for name in names or ()]
    except (CatalogueError, results.ResultsError) as error:
        stop("claims", error)
    out, progress = console(), console(stderr=True)
    failed, reports = False, []
    with data_folder("claims", data):
        for record in chosen:
            with progress.status(f"{record.method.name}: common checks") as status:
                checked = checks.run(record.method) if "checks" in kinds else {}
                if save and checked:
                    results.save(record.method, record.claims, [], checks=checked)
                outcomes = run(
                    [claim for claim in (_left(record) if resume else record.claims) if claim.kind in kinds],
                    source=record.source,
                    quick=quick,
                    announce=lambda claim: status.update(escape(claim.says)),
                    done=partial(_record, record) if save else None,
                )
            failed |= any(outcome.verdict in ("does not hold", "could not run") for outcome in outcomes)
            failed |= any(said.startswith("failed") for said in checked.values())
            reports.append(_report(record, outcomes, checked))
            if not as_json:
                _show(out, record, outcomes, checked)
            if save:
                where = results.folder(write=True) / results.file_name(record.method)
                progress.print(f"recorded in {where}", markup=False, highlight=False)
    if as_json:
        out.print_json(json.dumps(results.plain(reports)))
    if failed:
        raise typer.Exit(1)


def _record(record: Located, outcome: Outcome) -> None:
    from foveal.evidence import results

    results.save(record.method, record.claims, [outcome])


def _left(record: Located) -> list[Claim]:
    """Claims without a recorded outcome of the current code."""
    from foveal.evidence import results

    recorded = results.recorded(record.claims, results.load(record.method))
    pairs = zip(record.claims, recorded, strict=True)
    return [claim for claim, outcome in pairs if outcome is None or outcome["source"] != record.source]


def _report(record: Located, outcomes: Sequence[Outcome], checked: Mapping[str, str]) -> dict[str, Any]:
    method = record.method
    claims_run = [dataclasses.asdict(outcome) for outcome in outcomes]
    return {"method": method.name, "id": method.id, "claims": claims_run, "checks": dict(checked)}


def _show(out: Console, record: Located, outcomes: Sequence[Outcome], checked: Mapping[str, str]) -> None:
    """Heading with date and hardware, the claims, the common checks."""
    from foveal.cli._tables import table
    from foveal.evidence import machine

    here, versions = machine.describe(), machine.versions()
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name in machine.PACKAGES)
    today = outcomes[0].date if outcomes else ""
    where = f"{here['processor']}, {here['cores']} cores, {packages}"
    out.print(f"{record.method.name}  {today}  {where}", markup=False, highlight=False, style="bold")
    lines = [
        (o.kind, o.says, o.paper or "–", o.here or o.reason, o.verdict, str(o.threads), f"{o.seconds:.1f}")
        for o in outcomes
    ]
    table(out, ("kind", "claim", "paper", "here", "verdict", "threads", "seconds"), lines)
    failed = [said for said in checked.values() if said.startswith("failed")]
    if checked:
        passed = f"common checks: {len(checked) - len(failed)} of {len(checked)} passed or excused"
        out.print(passed, markup=False, highlight=False)
    for said in failed:
        out.print(said, markup=False, highlight=False, style="red")
