"""Runs the claims of a record and reports the outcomes with the machine they ran on.

Each kind of claim has one runner: plain numbers in, a `Measured` out. A claim whose data is missing, or that raises,
could not run; it is reported with the reason, counts as not passed, and does not prevent the others from running.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import statistics
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foveal.evidence import machine
from foveal.evidence.rehearsal import rehearsing
from foveal.measure import benchmarks
from foveal.measure.paired import paired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from foveal.record import Claim

__all__ = ["RECORDED", "RUNNERS", "VERDICTS", "Measured", "Outcome", "key", "run", "run_one"]

RECORDED = ("holds", "does not hold", "undecided")
VERDICTS = (*RECORDED, "could not run", "skipped")
MINUTES, GPU = "minutes", "gpu"  # needs other than data


@dataclass(frozen=True)
class Measured:
    """Result of a runner.

    Args:
        holds: whether the claim's bound is met; None if the measurement cannot decide.
        here: value in words.
        value: number that was compared with the bound.
        detail: further figures to keep.
        threads: number of processor threads it ran on; None for the default.
    """

    holds: bool | None
    here: str
    value: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Outcome of one claim.

    Args:
        key: hash of the claim's text and bounds.
        kind: kind of the claim.
        says: promise.
        paper: the paper's value.
        here: our value in words, "" if the claim could not run.
        verdict: holds, does not hold, undecided, could not run or skipped.
        reason: reason why it could not run or was skipped, else "".
        value: number compared with the bound, None if there is none.
        detail: further figures: ratios, times, values per seed.
        date: date of the run, year-month-day.
        seconds: duration of the run, seconds.
        threads: number of processor threads it ran on.
        machine: processor, cores and system.
        versions: versions of Python and of the packages involved.
        commit: commit of the checkout, "" outside one; with "+" if the code differed from it.
        source: hash of the code it ran, see `foveal.evidence.closure`.
        rehearsed: whether it ran with two steps on synthetic data and must not be recorded.
        trace: traceback of its error, "" without one.
    """

    key: str
    kind: str
    says: str
    paper: str
    here: str
    verdict: str
    reason: str
    value: float | None
    detail: Mapping[str, Any]
    date: str
    seconds: float
    threads: int
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str
    source: str
    rehearsed: bool = False
    trace: str = ""


def key(claim: Claim) -> str:
    """Key of a claim in recorded results: a hash of its words and bounds, not of its code.

    Args:
        claim: claim to identify.

    Returns:
        Twelve hexadecimal digits.
    """
    bounds = {name: value for name, value in claim.check.items() if not callable(value)}
    text = json.dumps([claim.kind, claim.says, claim.paper, claim.needs, bounds], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _number(value: float) -> str:
    """A count with thousands separators, other numbers with four digits."""
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def _counted(here: float, check: Mapping[str, Any]) -> Measured:
    allowed = check["tolerance"] * abs(check["expect"])
    detail = {"expect": check["expect"], "tolerance": check["tolerance"]}
    return Measured(abs(here - check["expect"]) <= allowed, _number(here), here, detail)


def _cost() -> tuple[Callable[..., int], Callable[..., int]]:
    """`count_parameters` and `count_macs` of `foveal.measure`."""
    from foveal.measure.cost import count_macs, count_parameters

    return count_parameters, count_macs


def _on_meta(build: Callable[[], Any]) -> Any:
    """A network without storage."""
    from foveal.measure.meta import without_storage

    with without_storage():
        return build()


def _params(check: Mapping[str, Any], *, quick: bool) -> Measured:  # noqa: ARG001  a count is as quick as it gets
    return _counted(_cost()[0](_on_meta(check["model"])), check)


def _macs(check: Mapping[str, Any], *, quick: bool) -> Measured:  # noqa: ARG001
    return _counted(_cost()[1](_on_meta(check["model"]), check["shape"]), check)


def _array(value: Any) -> Any:
    """A tensor or array as a float64 (or complex) NumPy array."""
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError("an `equal` claim compares one tensor or array with another, got values of uneven shapes")
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _equal(check: Mapping[str, Any], *, quick: bool) -> Measured:  # noqa: ARG001
    import numpy as np

    ours, theirs = _array(check["ours"]()), _array(check["theirs"]())
    if ours.shape != theirs.shape:
        return Measured(False, f"shapes {ours.shape} and {theirs.shape} differ", float("inf"))
    if not ours.size:
        raise ValueError("both computations gave nothing to compare")
    largest = float(np.abs(theirs).max()) or 1.0
    gap = float(np.abs(ours - theirs).max()) / largest
    here = "exactly equal" if gap == 0 else f"largest difference {gap:.2g} of the largest value"
    return Measured(gap <= check["tolerance"], here, gap, {"tolerance": check["tolerance"], "values": ours.size})


def _smaller(check: Mapping[str, Any], *, quick: bool) -> Measured:  # noqa: ARG001
    ours, theirs = float(check["ours"]()), float(check["theirs"]())
    if ours <= 0 or theirs <= 0:
        raise ValueError(f"sizes must be above 0, got {ours:g} for ours and {theirs:g} for theirs")
    ratio = theirs / ours
    here = f"{ratio:.3g}× ({_number(ours)} against {_number(theirs)})"
    return Measured(ratio >= check["at_least"], here, ratio, {"ours": ours, "theirs": theirs, **_bound(check)})


def _bound(check: Mapping[str, Any]) -> dict[str, Any]:
    return {"at_least": check["at_least"]}


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Limit torch, if it is loaded, to a number of threads; restored afterwards."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _faster(check: Mapping[str, Any], *, quick: bool) -> Measured:
    ours, theirs = check["ours"](), check["theirs"]()
    with _torch_threads(check["threads"]):
        a, b = paired(ours, theirs, pairs=5 if quick else 15, clock=time.perf_counter)
    ratios = sorted(second / first for first, second in zip(a, b, strict=True))
    low, ratio, high = statistics.quantiles(ratios, n=4)
    here = (
        f"{ratio:.2f}× (quartiles {low:.2f}–{high:.2f}; {_time(statistics.median(a))} against "
        f"{_time(statistics.median(b))})"
    )
    detail = {
        "pairs": len(ratios),
        "smallest": ratios[0],
        "lower_quartile": low,
        "upper_quartile": high,
        "largest": ratios[-1],
        "ours_seconds": statistics.median(a),
        "theirs_seconds": statistics.median(b),
        **_bound(check),
    }
    return Measured(ratio >= check["at_least"], here, ratio, detail, check["threads"])


def _kept(check: Mapping[str, Any], *, quick: bool) -> Measured:
    values = [float(check["quality"](seed)) for seed in range(1 if quick or rehearsing() else check["seeds"])]
    mean = statistics.fmean(values)
    data = f" on {check['data']}" if check["data"] else ""
    detail: dict[str, Any] = {"values": values, "data": check["data"], "unit": check["unit"], **_bound(check)}
    if len(values) == 1 or math.isnan(mean):
        here = f"{mean:.3f} {check['unit']}, one seed{data}"
        return Measured(mean >= check["at_least"], here, mean, detail)
    # Two standard errors of the mean: the smallest distance from the bound that this number of seeds can detect.
    sees = 2 * statistics.stdev(values) / math.sqrt(len(values))
    detail |= {"standard_deviation": statistics.stdev(values), "sees": sees}
    holds = None if abs(mean - check["at_least"]) < sees else mean >= check["at_least"]
    spread = f"{min(values):.3f} to {max(values):.3f} over {len(values)} seeds, sees {sees:.2g}"
    return Measured(holds, f"{mean:.3f} {check['unit']} ({spread}){data}", mean, detail)


def _grows(check: Mapping[str, Any], *, quick: bool) -> Measured:
    sizes, rounds = check["sizes"], 1 if quick else check["rounds"]
    measured = [[float(check["cost"](size)) for size in sizes] for _ in range(rounds)]
    costs = [statistics.median(column) for column in zip(*measured, strict=True)]
    if min(costs) <= 0:
        raise ValueError(f"costs must be above 0, got {min(costs):g}")
    numbers = [float(check["of"](size)) for size in sizes]
    slope, _ = statistics.linear_regression([math.log(n) for n in numbers], [math.log(c) for c in costs])
    least, most = check["exponent"]
    here = f"exponent {slope:.3f} from {_number(numbers[0])} to {_number(numbers[-1])}"
    detail = {"sizes": numbers, "costs": costs, "exponent": [least, most], "rounds": rounds}
    return Measured(least <= slope <= most, here, slope, detail)


def _bounded(check: Mapping[str, Any], *, quick: bool) -> Measured:  # noqa: ARG001
    value, least, most = float(check["value"]()), check["at_least"], check["at_most"]
    if math.isnan(value):
        raise ValueError("the value is not a number")
    holds = (least is None or value >= least) and (most is None or value <= most)
    detail = {"at_least": least, "at_most": most, "unit": check["unit"]}
    return Measured(holds, f"{_number(value)} {check['unit']}".strip(), value, detail)


RUNNERS: dict[str, Callable[..., Measured]] = {
    "params": _params,
    "macs": _macs,
    "equal": _equal,
    "faster": _faster,
    "smaller": _smaller,
    "kept": _kept,
    "grows": _grows,
    "bound": _bounded,
}


def _threads_now() -> int:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else machine.cores()


def _lacking(claim: Claim) -> str:
    """Reason why the claim cannot run here, "" if all its requirements are met."""
    for need in claim.needs:
        if need == GPU:
            import torch

            if not torch.cuda.is_available():
                return "needs a GPU; run it on a machine that has one"
        elif need != MINUTES:
            try:
                benchmarks.find(need)
            except benchmarks.DataError as error:
                return str(error)
    return ""


def run_one(claim: Claim, *, source: str = "", quick: bool = False) -> Outcome:
    """Run one claim.

    Args:
        claim: claim to run.
        source: hash of the code it runs.
        quick: whether to skip claims that need minutes of training, with fewer timings and one seed.

    Returns:
        The outcome; errors are part of it and never raised.
    """
    start = time.perf_counter()
    measured, verdict, reason, trace = None, "could not run", "", ""
    if quick and MINUTES in claim.needs:
        verdict, reason = "skipped", "needs minutes of training; run without --quick"
    elif not (reason := "" if rehearsing() else _lacking(claim)):
        try:
            measured = RUNNERS[claim.kind](claim.check, quick=quick)
            verdict = "undecided" if measured.holds is None else "holds" if measured.holds else "does not hold"
        except Exception as error:  # one broken claim must not prevent the others from running
            reason, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    return Outcome(
        key=key(claim),
        kind=claim.kind,
        says=claim.says,
        paper=claim.paper,
        here=measured.here if measured else "",
        verdict=verdict,
        reason=reason,
        value=measured.value if measured and math.isfinite(measured.value) else None,
        detail=dict(measured.detail) if measured else {},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        seconds=round(time.perf_counter() - start, 3),
        threads=(measured.threads if measured else None) or _threads_now(),
        machine=machine.describe(),
        versions=machine.versions(),
        commit=machine.commit(),
        source=source,
        rehearsed=rehearsing() or quick,
        trace=trace,
    )


def run(
    claims: Iterable[Claim],
    *,
    source: str = "",
    only: str | None = None,
    quick: bool = False,
    announce: Callable[[Claim], None] | None = None,
    done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run claims in their order.

    Args:
        claims: claims of a method.
        source: hash of the code they run.
        only: kind of claim to run; None runs all.
        quick: whether to skip claims that need minutes of training, with fewer timings and one seed.
        announce: function called with each claim before it runs.
        done: function called with each outcome, so that an interrupted run keeps the finished ones.

    Returns:
        One outcome per claim run.

    Raises:
        ValueError: an unknown kind of claim in `only`.
    """
    if only is not None and only not in RUNNERS:
        raise ValueError(f"no kind of claim is called {only!r}; the kinds are {', '.join(RUNNERS)}")
    outcomes = []
    for claim in claims:
        if only in (None, claim.kind):
            if announce:
                announce(claim)
            outcomes.append(run_one(claim, source=source, quick=quick))
            if done:
                done(outcomes[-1])
    return outcomes
