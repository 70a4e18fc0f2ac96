"""`foveal claims`: runs what papers promise, here, and prints paper | here | verdict."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path  # noqa: TC003  typer reads the annotation
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from foveal.catalogue.collect import Located
    from foveal.evidence.run import Outcome
    from foveal.record import Claim

__all__ = ["claims"]


def claims(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Methods, such as ESPCN.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All methods that have a record.")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="Only one kind: params, macs, equal, faster, smaller, kept, grows, bound; or checks, the common ones."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip what needs minutes of training; fewer timings, one seed.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Record each outcome in results/claims as it comes; wants committed code.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Leave out claims whose recorded outcome is that of the code as it is."),
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder of benchmark data; else FOVEAL_DATA, ./data or ../shared/data.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the claims of methods on this machine and print the paper's value beside ours.

    Exits with 1 when a claim does not hold or could not run, or a common check fails. What --quick skips counts neither
    way. With --save each outcome is recorded with date, processor, threads and versions as soon as it is there, so an
    interrupted run goes on with --resume; what could not run leaves the record as it was.

    \b
    $ foveal claims sesr --only equal
    SESR  2026-11-28  AMD EPYC, 2 cores, numpy 2.4.6, torch 2.15.0
    kind   claim                       paper  here                         verdict  threads  seconds
    equal  The collapsed network       exact  largest difference 2.7e-07   holds    2        0.5
           equals the expanded one.           of the largest value
    """  # noqa: D301  \b keeps the transcript's lines apart in the help
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
        if only not in {None, "checks", *RUNNERS}:
            kinds = ", ".join([*RUNNERS, "checks"])
            raise CatalogueError(f"no kind of claim is called {only!r}; the kinds are {kinds}")
        if data is not None and not data.is_dir():
            raise CatalogueError(f"--data must be a folder, and {data} is none")
        if save and (why := results.refusal()):
            raise CatalogueError(why)
        chosen = list(records().values()) if every else [find(name) for name in names or ()]
    except (CatalogueError, results.ResultsError) as error:
        typer.echo(f"foveal claims: {error}", err=True)
        raise typer.Exit(2) from None
    out, progress = console(), console(stderr=True)
    failed, reports = False, []
    with _data_folder(data):
        for record in chosen:
            with progress.status(f"{record.method.name}: common checks") as status:
                checked = checks.run(record.method) if only in {None, "checks"} else {}
                if save and checked:
                    results.save(record.method, record.claims, [], checks=checked)
                outcomes = []
                if only != "checks":
                    outcomes = run(
                        _left(record) if resume else record.claims,
                        source=record.source,
                        only=only,
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
    """Claims without a recorded outcome of the code as it is."""
    from foveal.evidence import results

    recorded = results.recorded(record.claims, results.load(record.method))
    pairs = zip(record.claims, recorded, strict=True)
    return [claim for claim, outcome in pairs if outcome is None or outcome["source"] != record.source]


@contextmanager
def _data_folder(folder: Path | None) -> Iterator[None]:
    """FOVEAL_DATA set to the folder, for the length of a run."""
    before = os.environ.get("FOVEAL_DATA")
    if folder is not None:
        os.environ["FOVEAL_DATA"] = str(folder)
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop("FOVEAL_DATA") if before is None else os.environ.update(FOVEAL_DATA=before)


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
