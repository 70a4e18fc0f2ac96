"""Recorded results of claims: one JSON file per record, described in `results/README.md`.

The files are in `results/claims` of the repository and are included in the wheel. A run replaces the recorded outcomes
of the claims it ran, whose value and verdict go into the outcome's history; a claim that could not run replaces
nothing. Only complete runs of committed code are recorded: no rehearsal, no quick run, no code that differs from its
commit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.errors import FovealError
from foveal.evidence import machine
from foveal.evidence.run import RECORDED, Outcome, key

if TYPE_CHECKING:
    from foveal.record import Claim, Method

__all__ = ["ResultsError", "file_name", "folder", "load", "plain", "recorded", "refusal", "save"]

FORMAT = 1
PAST = ("date", "here", "verdict", "value", "seconds", "commit", "source")  # fields of a run that the history keeps


class ResultsError(FovealError, ValueError):
    """A results file that cannot be read, or a run that must not be recorded."""


def file_name(method: Method) -> str:
    """Name of the results file of a record.

    Args:
        method: record of the method.

    Returns:
        The name in lower case, with underscores for everything but letters and digits, and ".json".
    """
    return re.sub(r"[^a-z0-9]+", "_", method.name.lower()).strip("_") + ".json"


def folder(*, write: bool = False) -> Path:
    """Folder of recorded results.

    Args:
        write: whether to return the folder for new results rather than the one to read from.

    Returns:
        `results/claims` of the checkout; for an installed package `results/claims` in the working folder if it exists
        or `write` is set, else the results included in the package.
    """
    root = machine.checkout()
    if root is not None:
        return root / "results" / "claims"
    here = Path("results", "claims")
    shipped = Path(__file__).resolve().parent.parent / "catalogue" / "results"
    return here if write or here.is_dir() else shipped


def load(method: Method, where: Path | None = None) -> dict[str, Any]:
    """Load the results of a record.

    Args:
        method: record of the method.
        where: folder of results; None for the default one.

    Returns:
        Content of the file; empty content if there is no file.

    Raises:
        ResultsError: the file was not written by `save`.
    """
    path = (where or folder()) / file_name(method)
    empty: dict[str, Any] = {"format": FORMAT, "method": method.name, "id": method.id, "checks": {}, "claims": []}
    if not path.is_file():
        return empty
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or not isinstance(content["checks"], dict):
            raise ValueError(f"format {content['format']!r} is not {FORMAT}")
        for claim in content["claims"]:
            if claim["verdict"] not in RECORDED:
                raise ValueError(f"a recorded claim has the verdict {claim['verdict']!r}")
            claim["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path} is no results file ({error}); delete it and record again with foveal claims {method.name} --save"
        ) from error
    return content


def recorded(claims: Iterable[Claim], content: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """Recorded outcomes of the current claims.

    Args:
        claims: claims of a method.
        content: result of `load`.

    Returns:
        One outcome per claim, in order; None if nothing is recorded or the claim has changed since.
    """
    by_key = {outcome["key"]: outcome for outcome in content["claims"]}
    return [by_key.get(key(claim)) for claim in claims]


def refusal(outcomes: Iterable[Outcome] = ()) -> str:
    """Reason why a run must not be recorded; before there are outcomes, judged by the state of the checkout.

    Args:
        outcomes: outcomes of the run.

    Returns:
        The reason and what to do, "" if it may be recorded.
    """
    outcomes = list(outcomes)
    if any(outcome.rehearsed for outcome in outcomes):
        return "a quick or shortened run is no record; run without --quick"
    if any(commit.endswith("+") for commit in ([o.commit for o in outcomes] or [machine.commit()])):
        return "the code differs from its commit, so nobody could run it again; commit first, then record"
    return ""


def plain(value: Any) -> Any:
    """Convert a value to plain JSON data.

    Args:
        value: nested mappings, lists and tuples of plain values.

    Returns:
        The same as dicts and lists; numbers that are not finite become None.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def save(
    method: Method,
    claims: Iterable[Claim],
    outcomes: Iterable[Outcome],
    *,
    checks: Mapping[str, str] | None = None,
    where: Path | None = None,
) -> Path:
    """Record a run; the file is replaced atomically.

    Args:
        method: record of the method.
        claims: all current claims of the method.
        outcomes: outcomes of the run; claims that could not run or were skipped are not recorded.
        checks: result of each common check; None keeps the recorded ones.
        where: folder of results; None for the default one.

    Returns:
        Path of the file.

    Raises:
        ResultsError: a quick run or a rehearsal, or code that differs from its commit.
    """
    outcomes = list(outcomes)
    if outcomes and (why := refusal(outcomes)):
        raise ResultsError(why)
    into = where or folder(write=True)
    content = load(method, into)
    by_key = {outcome["key"]: outcome for outcome in content["claims"]}
    for outcome in outcomes:
        if outcome.verdict in RECORDED:
            now, before = plain(dataclasses.asdict(outcome)), by_key.get(outcome.key)
            del now["rehearsed"], now["trace"]
            now["history"] = [*before.get("history", []), {word: before[word] for word in PAST}] if before else []
            by_key[outcome.key] = now
    # Claims that no longer exist are dropped; the others keep their order.
    content["claims"] = [by_key[key(claim)] for claim in claims if key(claim) in by_key]
    content["method"], content["id"] = method.name, method.id
    if checks is not None:
        content["checks"] = dict(checks)
    into.mkdir(parents=True, exist_ok=True)
    path = into / file_name(method)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path
