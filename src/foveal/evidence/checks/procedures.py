"""Checks of all other kinds: "procedure", "benchmark", "study" and "application", cases `Procedure`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveal.evidence.checks.common import fail, outputs, same

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.record import Method

__all__ = ["CHECKS"]


def seeded(method: Method, case: str) -> None:
    """Run twice with one seed, it gives identical results.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: different results, or none.
    """
    procedure = method.cases[case]
    first, again = procedure.run(0), procedure.run(0)
    if not outputs(first):
        raise fail(method, case, "gives no number, array or tensor")
    if not same(first, again):
        raise fail(method, case, "run twice with one seed, it gives two results")


def empty(method: Method, case: str) -> None:
    """With empty input it raises the promised error, or returns.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: another error, or none.
    """
    procedure = method.cases[case]
    if procedure.empty is None:
        return
    try:
        procedure.empty()
    except ValueError as error:
        if not procedure.refuses or procedure.refuses not in str(error):
            wanted = procedure.refuses or "no error"
            raise fail(method, case, f"with nothing to work on it raises {error}, wanted {wanted!r}") from error
    else:
        if procedure.refuses:
            raise fail(method, case, f"with nothing to work on it must raise {procedure.refuses!r}, and does not")


CHECKS: dict[str, Callable[[Method, str], None]] = {"seeded": seeded, "empty": empty}
