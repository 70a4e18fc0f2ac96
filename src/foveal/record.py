"""Records of methods and the vocabulary of claims: plain data, standard library only.

A method's file ends with `METHOD = Method(...)`, whose id, name, kind and model names are literals (`foveal.index`
reads the text). Its evidence, `foveal.evidence.<the same path>`, holds `CLAIMS = (...)`, claims built by these:

    params   the model has this many parameters
    macs     one forward pass at this shape takes this many multiply-adds
    equal    two computations give the same numbers
    faster   one thing takes less time than another, both timed in one run
    smaller  one number (bytes, parameters, multiply-adds) is less than another
    kept     a quality, measured over at least three seeds on named data, stays above a bound
    grows    a cost against a size follows a power law whose exponent lies between two numbers
    bound    one number is at least, or at most, a bound
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "KINDS",
    "Claim",
    "Method",
    "Paper",
    "bound",
    "equal",
    "faster",
    "grows",
    "kept",
    "macs",
    "params",
    "printed",
    "smaller",
]

KINDS = ("model", "operator", "transform", "objective", "procedure", "benchmark", "study", "application")
SEEDS = 3  # minimum number of seeds for a comparison of trained networks


@dataclass(frozen=True)
class Paper:
    """Source of a method.

    Args:
        title: title as printed.
        authors: authors; "First Author et al." is enough.
        year: year of publication.
        identifier: "arXiv:1609.05158", a DOI, or a venue if there is neither.
    """

    title: str
    authors: str
    year: int
    identifier: str


@dataclass(frozen=True)
class Claim:
    """One promise and its check. Built by the functions below, not by hand.

    Args:
        kind: name of the function that built it.
        says: promise, one sentence.
        paper: the paper's own value, in its own words; "" if it prints none.
        check: keyword arguments for the runner of that kind.
        needs: requirements besides the package: names of benchmark data, "minutes" of training, or a "gpu".
        clause: clause of the row's bar that it answers, from 1; 0 for none.
        beyond: promise of the paper that it checks if it answers no clause.

    Raises:
        ValueError: both a clause and a promise beyond the bar are given.
    """

    kind: str
    says: str
    paper: str
    check: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    clause: int = 0
    beyond: str = ""

    def __post_init__(self) -> None:
        if self.clause and self.beyond:
            raise ValueError(f"{self.says!r}: give clause or beyond, not both; got {self.clause} and {self.beyond!r}")
        object.__setattr__(self, "check", MappingProxyType(dict(self.check)))


@dataclass(frozen=True)
class Method:
    """One method of the literature, or one of foveal's own.

    Args:
        id: number of its row in the catalogue; None for foveal's own work, which has no row.
        name: name as the paper writes it.
        kind: model, operator, transform, objective, procedure, benchmark, study or application.
        summary: one sentence a stranger understands.
        paper: where it comes from.
        models: registered name → function that builds the model (keyword arguments only).
        cases: for a model, registered name → keyword arguments of a tiny instance; else name → case of `foveal.cases`.
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
    cases: Mapping[str, Any] = field(default_factory=dict)
    except_for: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in self.cases:
            if self.models and name not in self.models:
                raise ValueError(f"{self.name}: case {name!r} names no model; models are {', '.join(self.models)}")


_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def printed(text: str) -> tuple[float, float]:
    """Parse a number as a paper prints it, with its rounding error.

    Args:
        text: printed number, such as "4.6 G", "33 M", "239,520" or "0.063".

    Returns:
        The value and half a unit of its last digit; 0 for a whole number without a unit.

    Raises:
        ValueError: the text is not a number with an optional unit of K, M, G or T.
    """
    found = re.fullmatch(r"([\d,]+(?:\.(\d+))?) ?([KMGT]?)", text.strip())
    if found is None:
        raise ValueError(f"a printed number reads '4.6 G', '33 M' or '239,520', got {text!r}")
    number, decimals, unit = found.groups()
    scale = _UNITS[unit]
    exact = not decimals and not unit
    return float(number.replace(",", "")) * scale, 0.0 if exact else 0.5 * scale / 10 ** len(decimals or "")


def _expected(expect: float | str, tolerance: float) -> dict[str, Any]:
    if isinstance(expect, str):
        value, rounding = printed(expect)
        return {"expect": value, "tolerance": max(tolerance, rounding / value)}
    return {"expect": expect, "tolerance": tolerance}


class Words(TypedDict, total=False):  # what every claim may say besides; see `Claim`
    needs: tuple[str, ...]
    clause: int
    beyond: str


def params(
    says: str,
    *,
    paper: str,
    model: Callable[[], Any],
    expect: int | str,
    tolerance: float = 0.0,
    **words: Unpack[Words],
) -> Claim:
    """The model has `expect` parameters.

    Args:
        says: the promise.
        paper: the paper's value, or the source of an exact count: "layer sizes", "authors' code".
        model: builds the model; built on the meta device.
        expect: parameters: an exact number, or the number as the paper prints it ("33 M"), whose rounding is allowed.
        tolerance: relative, where the bar allows more than the rounding.
        **words: `needs`, `clause` or `beyond`, see `Claim`.

    Returns:
        The claim.
    """
    return Claim("params", says, paper, {"model": model, **_expected(expect, tolerance)}, **words)


def macs(
    says: str,
    *,
    paper: str,
    model: Callable[[], Any],
    shape: tuple[int, ...],
    expect: float | str,
    tolerance: float = 0.0,
    **words: Unpack[Words],
) -> Claim:
    """One forward pass at `shape` takes `expect` multiply-adds.

    Args:
        says: promise, one sentence.
        paper: the paper's value.
        model: builder of the model; built and run on the meta device.
        shape: shape of the input, (B, C, H, W).
        expect: multiply-adds: an exact number, or the number as the paper prints it ("4.6 G").
        tolerance: relative, where the bar allows more than the rounding.
        **words: `needs`, `clause` or `beyond`, see `Claim`.

    Returns:
        The claim.
    """
    check = {"model": model, "shape": shape, **_expected(expect, tolerance)}
    return Claim("macs", says, paper, check, **words)


def equal(
    says: str,
    *,
    paper: str = "exact",
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    tolerance: float = 1e-5,
    **words: Unpack[Words],
) -> Claim:
    """Two computations give the same numbers.

    Args:
        says: promise, one sentence.
        paper: the paper's value.
        ours: function that returns one tensor or array.
        theirs: function that returns the expected one.
        tolerance: largest absolute difference over the largest absolute value of `theirs`.
        **words: `needs`, `clause` or `beyond`, see `Claim`.

    Returns:
        The claim.
    """
    check = {"ours": ours, "theirs": theirs, "tolerance": tolerance}
    return Claim("equal", says, paper, check, **words)


def faster(
    says: str,
    *,
    paper: str,
    ours: Callable[[], Callable[[], Any]],
    theirs: Callable[[], Callable[[], Any]],
    at_least: float = 1.0,
    threads: int = 2,
    **words: Unpack[Words],
) -> Claim:
    """One computation takes less time than another; both are timed alternately in one run.

    Args:
        says: promise, one sentence.
        paper: the paper's value.
        ours: function that prepares and returns the function to time.
        theirs: function that prepares and returns the function to compare with.
        at_least: lower bound on the time of `theirs` over that of `ours`, median of the paired ratios.
        threads: processor threads.
        **words: `needs`, `clause` or `beyond`, see `Claim`.

    Returns:
        The claim.
    """
    check = {"ours": ours, "theirs": theirs, "at_least": at_least, "threads": threads}
    return Claim("faster", says, paper, check, **words)


def smaller(
    says: str,
    *,
    paper: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    at_least: float = 1.0,
    **words: Unpack[Words],
) -> Claim:
    """One number is less than another.

    Args:
        says: promise, one sentence.
        paper: the paper's value.
        ours: bytes, parameters or multiply-adds.
        theirs: what it is compared with.
        at_least: `theirs` over `ours`.
        **words: `needs`, `clause` or `beyond`, see `Claim`.

    Returns:
        The claim.
    """
    check = {"ours": ours, "theirs": theirs, "at_least": at_least}
    return Claim("smaller", says, paper, check, **words)


def kept(
    says: str,
    *,
    paper: str,
    quality: Callable[[int], float],
    at_least: float,
    unit: str = "dB",
    seeds: int = SEEDS,
    data: str = "",
    **words: Unpack[Words],
) -> Claim:
    """A quality, averaged over seeds on named data, is at least a bound.

    Args:
        says: promise, one sentence.
        paper: the paper's value.
        quality: function from a seed to the measured value, usually a difference to a rival with the same seed.
        at_least: lower bound on the mean over the seeds; "undecided" if within two standard errors of the mean.
        unit: unit of the value.
        seeds: number of seeds, from 0; at least 3.
        data: what it is measured on.
        **words: `needs`, `clause` or `beyond`, see `Claim`.

    Returns:
        The claim.

    Raises:
        ValueError: fewer than three seeds.
    """
    if seeds < SEEDS:
        raise ValueError(f"{says!r}: a comparison takes at least {SEEDS} seeds, got {seeds}; without seeds use bound")
    check = {"quality": quality, "at_least": at_least, "unit": unit, "seeds": seeds, "data": data}
    return Claim("kept", says, paper, check, **words)


def grows(
    says: str,
    *,
    paper: str,
    cost: Callable[[Any], float],
    sizes: Sequence[Any],
    of: Callable[[Any], float] = float,
    exponent: tuple[float, float] = (0.9, 1.1),
    rounds: int = 1,
    **words: Unpack[Words],
) -> Claim:
    """A cost follows a power of a size: cost ~ size^e with e between two numbers.

    Args:
        says: promise, one sentence.
        paper: the paper's value.
        cost: function from a size to bytes, multiply-adds or seconds.
        sizes: at least three sizes, ascending.
        of: size → the number whose power is fitted, such as pixels of a side.
        exponent: smallest and largest exponent; `float("inf")` for no upper bound.
        rounds: number of measurements of each cost, in turn over all sizes; the median counts.
        **words: `needs`, `clause` or `beyond`, see `Claim`.

    Returns:
        The claim.

    Raises:
        ValueError: fewer than three sizes.
    """
    if len(sizes) < 3:
        raise ValueError(f"{says!r}: an exponent takes at least three sizes, got {len(sizes)}")
    check = {"cost": cost, "sizes": tuple(sizes), "of": of, "exponent": tuple(exponent), "rounds": rounds}
    return Claim("grows", says, paper, check, **words)


def bound(
    says: str,
    *,
    paper: str,
    value: Callable[[], float],
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "",
    **words: Unpack[Words],
) -> Claim:
    """One number is at least, or at most, a bound.

    Args:
        says: promise, one sentence.
        paper: the paper's value.
        value: function that returns the number, the same each time.
        at_least: lower bound.
        at_most: upper bound.
        unit: unit of the number.
        **words: `needs`, `clause` or `beyond`, see `Claim`.

    Returns:
        The claim.

    Raises:
        ValueError: neither bound is given.
    """
    if at_least is None and at_most is None:
        raise ValueError(f"{says!r}: give at_least, at_most or both")
    check = {"value": value, "at_least": at_least, "at_most": at_most, "unit": unit}
    return Claim("bound", says, paper, check, **words)
