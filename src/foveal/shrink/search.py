"""Searching a recipe's strengths for a budget, by measurement; a journal lets an interrupted search go on.

Every share `keep` and `heads` of the recipe is raised to a common power, its strength: at 1 the recipe is as written,
at 0.5 it is milder (0.5 becomes 0.71), at 2 stronger (0.25). Each candidate is run and measured as a whole, in floats
and in int8. The search walks up a ladder of strengths to the budget and then halves the gap twice.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from foveal.measure.cost import Latency
from foveal.measure.paired import Ratio
from foveal.shrink.measured import FormTime, Measured
from foveal.shrink.quantize.int8 import Quantise
from foveal.shrink.report import Line, write_pages
from foveal.shrink.step import ShrinkError
from foveal.shrink.steps import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from foveal.shrink.data import Data
    from foveal.shrink.recipe import Shrunk
    from foveal.shrink.step import Step

__all__ = ["BudgetError", "Found", "Point", "at_strength", "frontier", "search"]

LADDER = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Point:
    """One candidate, run and measured.

    Args:
        strength: power of the recipe's shares.
        int8: whether int8 is its last step.
        recipe: its steps, as text.
        measured: cost and quality.
        first: cost and quality of the untouched model in the same run.
        seconds: seconds that it took.
    """

    strength: float
    int8: bool
    recipe: str
    measured: Measured
    first: Measured
    seconds: float

    @property
    def latency(self) -> float:
        """Time, as a share of the untouched model's in its fastest form."""
        return self.measured.untouched.median

    @property
    def change(self) -> float:
        """Quality minus that of the untouched model."""
        return self.measured.quality - self.first.quality


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Args:
        chosen: the result of the recipe that meets the budget.
        point: its point.
        points: all candidates that were measured.
    """

    chosen: Shrunk
    point: Point
    points: tuple[Point, ...]


class BudgetError(ShrinkError):
    """A budget that no candidate meets.

    Args:
        text: the message, with the nearest that can be met.
        points: all candidates that were measured.
    """

    def __init__(self, text: str, points: Sequence[Point] = ()) -> None:
        super().__init__(text)
        self.points = tuple(points)


def at_strength(steps: Sequence[Step], strength: float, *, int8: bool) -> list[Step]:
    """A recipe at another strength.

    Args:
        steps: the recipe.
        strength: power of its shares, above 0.
        int8: whether int8 is the last step.

    Returns:
        Steps.
    """
    made: list[Step] = []
    for step in steps:
        if isinstance(step, Quantise):
            continue
        shares = {f.name: getattr(step, f.name) for f in fields(step) if f.name in ("keep", "heads")}  # type: ignore[arg-type]
        changed = {
            n: round(max(0.02, v**strength), 3) for n, v in shares.items() if isinstance(v, float | int) and 0 < v < 1
        }
        made.append(replace(step, **changed) if changed else step)  # type: ignore[type-var]
    given = next((step for step in steps if isinstance(step, Quantise)), Quantise())
    return [*made, given] if int8 else made


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both latency and quality.

    Args:
        points: candidates.

    Returns:
        The frontier, from the fastest.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency, -p.change)):
        if not best or point.change > best[-1].change:
            best.append(point)
    return best


def _measured(plain: dict[str, Any]) -> Measured:
    def ratio(value: dict[str, Any] | None) -> Any:
        return None if value is None else Ratio(**value)

    forms = tuple(FormTime(f["name"], Latency(**f["latency"]), Ratio(**f["ratio"])) for f in plain["forms"])
    given = plain | {
        "latency": Latency(**plain["latency"]),
        "untouched": ratio(plain["untouched"]),
        "previous": ratio(plain["previous"]),
        "forms": forms,
    }
    return Measured(**given)


class _Journal:
    """Measured points in a file, one JSON document a line; a line cut off by an interruption is passed over."""

    def __init__(self, path: Path | None, key: str) -> None:
        self.path = path
        self.points: list[Point] = []
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []
        for line in lines:
            try:
                plain = json.loads(line)
                if plain.pop("key") == key:
                    both = {n: _measured(plain[n]) for n in ("measured", "first")}
                    self.points.append(Point(**plain | both))
            except (ValueError, KeyError, TypeError):
                continue
        self.key = key

    def add(self, points: Sequence[Point]) -> None:
        self.points += points
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(asdict(point) | {"key": self.key}) + "\n" for point in points))


def search(
    model: nn.Module,
    steps: Sequence[Step],
    data: Data,
    *,
    budget: float | None = None,
    keep: float | None = None,
    threads: int = 2,
    batch: int = 1,
    folder: Path | None = None,
    key: str = "",
    memory: bool = True,
    seconds: float = 20.0,
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """Run a recipe at several strengths, with int8 and without, and choose by measurement.

    With a budget the candidate of the best quality that meets it is chosen, else the fastest that keeps the quality.

    Args:
        model: network.
        steps: the recipe.
        data: data to train and score on.
        budget: latency to reach, as a share of the untouched model's in its best engine, in (0, 1).
        keep: smallest change of quality allowed, such as -1.0.
        threads: processor threads.
        batch: number of inputs of one call.
        folder: folder for journal.jsonl and frontier.html, .md and .json; None keeps no journal.
        key: name of what is searched, beside the recipe; a journal's points of another are not used.
        memory: whether peak memory is measured.
        seconds: seconds that one timing should take at most.
        tell: function called with one line after each candidate, with the seconds left.

    Returns:
        The chosen result and all points.

    Raises:
        BudgetError: no candidate meets the budget; the nearest is named, and the frontier is written all the same.
        ShrinkError: a budget outside its range, or a recipe without a strength.
    """
    from foveal.shrink.recipe import shrink

    options: dict[str, Any] = {
        "threads": threads,
        "batch": batch,
        "memory": memory,
        "seconds": seconds,
        "insist": True,
    }
    if budget is not None and not 0 < budget < 1:
        raise ShrinkError(f"the latency budget is a share of the untouched model's, in (0, 1), got {budget}")
    whole = [step for step in steps if not isinstance(step, Quantise)]
    scaled = any(describe(a) != describe(b) for a, b in zip(whole, at_strength(whole, 2.0, int8=False), strict=True))
    ladder = LADDER if scaled else (1.0,)
    ours = "; ".join(map(describe, steps)) + f"; {threads} threads, {batch} inputs, {data.name}; {key}"
    journal = _Journal(folder / "journal.jsonl" if folder else None, ours)
    made: dict[tuple[float, bool], Shrunk] = {}

    def measure(strength: float, left: int) -> list[Point]:
        """The candidate in floats and in int8: one run gives both."""
        points = [p for p in journal.points if p.strength == strength]
        if not points:
            begun = time.perf_counter()
            both = _run(model, at_strength(steps, strength, int8=True), data, options)
            taken = time.perf_counter() - begun
            for found in both:
                int8 = len(found.written.files) > 1
                text = ", ".join(map(describe, at_strength(steps, strength, int8=int8))) or "as it is"
                points.append(Point(strength, int8, text, found.last, found.first, taken / len(both)))
                made[strength, int8] = found
            journal.add(points)
        runs = {p.strength for p in journal.points}
        rest = left * sum(p.seconds for p in journal.points) / len(runs)
        for point in points:
            tell(
                f"strength {strength:g}{', int8' if point.int8 else ''}: {point.latency:.2f} of untouched, "
                f"{point.change:+.2f} {data.unit}; about {rest:.0f} s left"
            )
        if folder:
            _write(journal.points, data, folder, threads=threads, batch=batch)
        return points

    def meets(point: Point) -> bool:
        return (budget is None or point.latency <= budget) and (keep is None or point.change >= keep)

    def enough(point: Point) -> bool:
        """Whether a stronger candidate is not needed: fast enough, or, without a budget, no longer good enough."""
        return point.latency <= budget if budget is not None else keep is not None and point.change < keep

    def over(points: list[Point]) -> bool:
        return any(map(enough, points)) if budget is not None else all(map(enough, points))

    below, above = 0.0, 0.0
    for i, strength in enumerate(ladder):
        if over(measure(strength, len(ladder) - i - 1)):
            above = strength
            break
        below = strength
    for left in (1, 0) if above and below else ():
        strength = round((below + above) / 2, 3)
        below, above = (below, strength) if over(measure(strength, left)) else (strength, above)
    fitting = [point for point in journal.points if meets(point)]
    if not fitting:
        raise BudgetError(_nearest(journal.points, budget, keep, data.unit), journal.points)
    best = max(fitting, key=lambda p: p.change if budget is not None else -p.latency)
    if (best.strength, best.int8) not in made:  # known from the journal
        recipe = at_strength(steps, best.strength, int8=best.int8)
        made[best.strength, best.int8] = shrink(model, recipe, data, **options)
    return Found(made[best.strength, best.int8], best, tuple(journal.points))


def _run(model: nn.Module, recipe: Sequence[Step], data: Data, options: dict[str, Any]) -> list[Shrunk]:
    """Run a recipe that ends in int8; the result in floats, and in int8 if that works."""
    from foveal.shrink.recipe import StepError, shrink

    try:
        found = shrink(model, recipe, data, **options)
    except StepError as error:
        if error.reached is None or len(error.reached.stages) < len(recipe):
            raise
        return [error.reached]
    files = {"float": found.written.files["float"]}
    opened = {name: one for name, one in found.written.opened.items() if "int8" not in name}
    floats = replace(found.written, files=files, opened=opened)
    return [replace(found, stages=found.stages[:-1], written=floats), found]


def _nearest(points: Sequence[Point], budget: float | None, keep: float | None, unit: str) -> str:
    asked = " and ".join(
        filter(None, [f"latency {budget:g}" if budget else "", f"{keep:+g} {unit}" if keep is not None else ""])
    )
    fastest = min(points, key=lambda p: p.latency)
    good = [p for p in points if keep is None or p.change >= keep]
    parts = []
    if good:
        near = min(good, key=lambda p: p.latency)
        parts.append(f"the fastest that keeps the quality has latency {near.latency:.2f} at {near.change:+.2f} {unit}")
    quick = [p for p in points if budget is not None and p.latency <= budget]
    if quick:
        near = max(quick, key=lambda p: p.change)
        parts.append(f"the best that is fast enough has latency {near.latency:.2f} at {near.change:+.2f} {unit}")
    if not parts:
        parts.append(f"the fastest has latency {fastest.latency:.2f} at {fastest.change:+.2f} {unit}")
    return f"no recipe of {len(points)} tried meets {asked}; {'; '.join(parts)}; ask for that, or train for more steps"


def _write(points: Sequence[Point], data: Data, folder: Path, *, threads: int, batch: int) -> None:
    best = frontier(points)
    lines = [Line("untouched", points[0].first)]
    ordered = sorted(points, key=lambda p: p.latency)
    lines += [Line(p.recipe, p.measured, p in best, (), p.seconds, "off the frontier") for p in ordered]
    about = {"data": data.name, "unit": data.unit, "threads": threads, "batch": batch}
    write_pages(lines, folder, "frontier", name="frontier", about=about)
