"""What a method says of itself: plain data, no machinery, no imports beyond the standard library.

A method's file ends with one constant, `METHOD = Method(...)`. The catalogue finds these constants by walking the
package; the file that holds one does not import what reads it.

Claims are built by six functions. The callables they hold do the work and are called only by `foveal claims`:

    params   the model has this many parameters
    macs     one forward pass at this shape takes this many multiply-adds
    equal    two computations give the same numbers
    faster   one thing takes less time than another, both timed in one run
    smaller  one number (bytes, parameters, multiply-adds) is less than another
    kept     a quality, measured over seeds on named data, stays above a bound
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Claim", "Method", "Paper", "equal", "faster", "kept", "macs", "params", "smaller"]

KINDS = ("model", "operator", "transform", "objective", "procedure", "benchmark")


@dataclass(frozen=True)
class Paper:
    """Where a method comes from.

    Args:
        title: as printed.
        authors: "First Author et al." is enough.
        year: of publication.
        identifier: "arXiv:1609.05158", a DOI, or a venue when there is neither.
    """

    title: str
    authors: str
    year: int
    identifier: str


@dataclass(frozen=True)
class Claim:
    """One promise of a paper and how to check it. Built by the functions below, not by hand.

    Args:
        kind: name of the function that built it.
        says: the promise, one sentence.
        paper: the paper's own value, in its own words; "" when it prints none.
        check: keyword arguments for the check of that kind.
        needs: what must be there besides the package: names of folders of benchmark data, or "minutes" of training.
    """

    kind: str
    says: str
    paper: str
    check: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "check", MappingProxyType(dict(self.check)))


@dataclass(frozen=True)
class Method:
    """One system of the literature, or one of foveal's own.

    Args:
        id: row of the catalogue; None for foveal's own work, which has no row.
        name: as the paper writes it.
        kind: model, operator, transform, objective, procedure or benchmark.
        summary: one sentence a stranger understands.
        paper: where it comes from.
        models: for models, registered name → function that builds it (keyword arguments only).
        cases: keyword arguments of tiny instances for the common tests, model name → arguments.
        claims: the paper's promises.
        except_for: common check → why this method is excused from it.

    Raises:
        ValueError: an unknown kind, or a case for a model that is not listed.
    """

    id: int | None
    name: str
    kind: str
    summary: str
    paper: Paper
    models: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    cases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    except_for: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in self.cases:
            if self.models and name not in self.models:
                raise ValueError(f"{self.name}: case {name!r} names no model; models are {', '.join(self.models)}")


def params(
    says: str, *, paper: str, model: Callable[[], Any], expect: int, tolerance: float = 0.0, needs: tuple[str, ...] = ()
) -> Claim:
    """The model has `expect` parameters.

    Args:
        says: the promise.
        paper: the paper's value.
        model: builds the model.
        expect: parameters.
        tolerance: relative, 0 for exact.
        needs: see `Claim`.

    Returns:
        The claim.
    """
    return Claim("params", says, paper, {"model": model, "expect": expect, "tolerance": tolerance}, needs)


def macs(
    says: str,
    *,
    paper: str,
    model: Callable[[], Any],
    shape: tuple[int, ...],
    expect: float,
    tolerance: float = 0.0,
    needs: tuple[str, ...] = (),
) -> Claim:
    """One forward pass at `shape` takes `expect` multiply-adds.

    Args:
        says: the promise.
        paper: the paper's value.
        model: builds the model.
        shape: of the input, (B, C, H, W).
        expect: multiply-adds.
        tolerance: relative, 0 for exact; use it when the paper rounds.
        needs: see `Claim`.

    Returns:
        The claim.
    """
    check = {"model": model, "shape": shape, "expect": expect, "tolerance": tolerance}
    return Claim("macs", says, paper, check, needs)


def equal(
    says: str,
    *,
    paper: str = "exact",
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    tolerance: float = 1e-5,
    needs: tuple[str, ...] = (),
) -> Claim:
    """Two computations give the same numbers.

    Args:
        says: the promise.
        paper: the paper's value.
        ours: computes one tensor or array.
        theirs: computes what it should equal.
        tolerance: largest absolute difference over the largest absolute value of `theirs`.
        needs: see `Claim`.

    Returns:
        The claim.
    """
    return Claim("equal", says, paper, {"ours": ours, "theirs": theirs, "tolerance": tolerance}, needs)


def faster(
    says: str,
    *,
    paper: str,
    ours: Callable[[], Callable[[], Any]],
    theirs: Callable[[], Callable[[], Any]],
    at_least: float = 1.0,
    threads: int = 2,
    needs: tuple[str, ...] = (),
) -> Claim:
    """One thing takes less time than another; both are timed in turn in one run.

    Args:
        says: the promise.
        paper: the paper's value.
        ours: prepares and returns the function to time.
        theirs: prepares and returns the function it is compared with.
        at_least: time of `theirs` over time of `ours`, median of the paired ratios.
        threads: processor threads.
        needs: see `Claim`.

    Returns:
        The claim.
    """
    check = {"ours": ours, "theirs": theirs, "at_least": at_least, "threads": threads}
    return Claim("faster", says, paper, check, needs)


def smaller(
    says: str,
    *,
    paper: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    at_least: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Claim:
    """One number is less than another.

    Args:
        says: the promise.
        paper: the paper's value.
        ours: bytes, parameters or multiply-adds.
        theirs: what it is compared with.
        at_least: `theirs` over `ours`.
        needs: see `Claim`.

    Returns:
        The claim.
    """
    return Claim("smaller", says, paper, {"ours": ours, "theirs": theirs, "at_least": at_least}, needs)


def kept(
    says: str,
    *,
    paper: str,
    quality: Callable[[int], float],
    at_least: float,
    unit: str = "dB",
    seeds: int = 1,
    data: str = "",
    needs: tuple[str, ...] = (),
) -> Claim:
    """A quality, averaged over seeds on named data, is at least a bound.

    Args:
        says: the promise.
        paper: the paper's value.
        quality: seed → measured value, usually a difference to a baseline trained or run with the same seed.
        at_least: bound on the mean over the seeds.
        unit: of the value.
        seeds: how many, from 0.
        data: what it is measured on.
        needs: see `Claim`.

    Returns:
        The claim.
    """
    check = {"quality": quality, "at_least": at_least, "unit": unit, "seeds": seeds, "data": data}
    return Claim("kept", says, paper, check, needs)
