"""The common checks that every record must pass, one suite per kind of method.

`tests/test_methods.py` runs them on all records; `foveal claims` runs them too and records the result, because a row of
the catalogue has the status "works" only if they pass. `except_for` excuses a record from a check, with the reason.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from foveal.cases import Objective, Operator, Procedure, Transform
from foveal.evidence.checks import models, objectives, operators, procedures, transforms
from foveal.evidence.checks.common import CheckError, fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.record import Method

__all__ = ["SUITES", "CheckError", "check", "pairs", "run"]

SUITES: dict[str, dict[str, Callable[[Method, str], None]]] = {
    "model": models.CHECKS,
    "operator": operators.CHECKS,
    "transform": transforms.CHECKS,
    "objective": objectives.CHECKS,
    **dict.fromkeys(("procedure", "benchmark", "study", "application"), procedures.CHECKS),
}
CASES = {"operator": Operator, "transform": Transform, "objective": Objective}


def fields(method: Method, case: str = "") -> None:
    """The record has all required fields: a one-sentence summary, a paper, a case of its kind.

    Args:
        method: record to check.
        case: not used; this check looks at the record as a whole.

    Raises:
        CheckError: something is missing or malformed.
    """
    paper, said, suite = method.paper, method.summary.strip(), SUITES[method.kind]
    kind = CASES.get(method.kind, Procedure)
    sentence = said.endswith(".") and ". " not in said and not said[:1].islower()
    wrong = {
        "summary must be one sentence, with a capital letter and a full stop": not sentence,
        "paper needs a title, authors and an identifier": not all(
            text.strip() for text in (paper.title, paper.authors, paper.identifier)
        ),
        f"paper's year {paper.year} must be between 1950 and next year": not 1950
        <= paper.year
        <= datetime.datetime.now(datetime.UTC).year + 1,
        "a model needs at least one entry in `models` and a tiny one in `cases`": method.kind == "model"
        and not (method.models and method.cases),
        f"at least one case is needed, a foveal.cases.{kind.__name__}": method.kind != "model"
        and not (method.cases and all(isinstance(case, kind) for case in method.cases.values())),
        f"except_for names checks ({', '.join(suite)}) and gives a reason for each": not all(
            name in suite and reason.strip() for name, reason in method.except_for.items()
        ),
    }
    for text, is_wrong in wrong.items():
        if is_wrong:
            raise fail(method, case, text)


def pairs(method: Method) -> list[tuple[str, str]]:
    """Checks that apply to a record, each with the case it runs on ("" for the record as a whole).

    Args:
        method: record to check.

    Returns:
        Pairs of check name and case name; excused checks are left out.
    """
    found = [("fields", "")]
    for name in SUITES[method.kind]:
        cases = models.cases(method, name) if method.kind == "model" else list(method.cases)
        found += [(name, case) for case in cases]
    return [(name, case) for name, case in found if name not in method.except_for]


def check(method: Method, name: str, case: str) -> None:
    """Run one check; raises `CheckError` if the record fails it.

    Args:
        method: record to check.
        name: name of the check.
        case: one of the record's cases, "" for `fields`.
    """
    (fields if name == "fields" else SUITES[method.kind][name])(method, case)


def run(method: Method) -> dict[str, str]:
    """Run all checks of a record.

    Args:
        method: record to check.

    Returns:
        "passed", "excused: why" or "failed: what" by name of the check.
    """
    said = {name: f"excused: {reason}" for name, reason in method.except_for.items()}
    for name, case in pairs(method):
        if said.get(name, "passed") == "passed":
            said[name] = _outcome(method, name, case)
    return said


def _outcome(method: Method, name: str, case: str) -> str:
    try:
        check(method, name, case)
    except CheckError as error:
        return f"failed: {error}"
    except Exception as error:  # a method that raises fails the check; the others still run
        return f"failed: {method.name}, {case}: {type(error).__name__}: {error}"
    return "passed"
