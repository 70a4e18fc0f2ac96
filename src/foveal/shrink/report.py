"""Reports of a shrinking: Markdown, JSON and one HTML page with a plot, all from the same lines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from foveal.measure.frontier import Point, scatter
from foveal.runtime.engines import library_version
from foveal.runtime.machine import cpu_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from foveal.shrink.measured import Measured
    from foveal.shrink.recipe import Shrunk

__all__ = ["Line", "plot", "to_html", "to_json", "to_markdown", "write_pages", "write_report"]

HEAD = ("step", "form", "ms", "spread", "of untouched", "memory", "file", "MACs", "quality", "change")


@dataclass(frozen=True)
class Line:
    """One line of a report.

    Args:
        step: the step or the recipe, as text.
        measured: cost and quality.
        kept: False for a step that was undone, or a recipe off the frontier.
        notes: what is to be said.
        seconds: seconds that it took.
        mark: word for a line that is not kept.
    """

    step: str
    measured: Measured
    kept: bool = True
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    mark: str = "undone"


def _size(count: int | None) -> str:
    if count is None:
        return "–"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def _cells(line: Line, first: Measured) -> tuple[str, ...]:
    found = line.measured
    t = found.latency
    return (
        line.step if line.kept else f"{line.step} ({line.mark})",
        found.form,
        f"{1e3 * t.median:.3g}",
        f"{1e3 * t.lower:.3g}–{1e3 * t.upper:.3g}",
        f"{found.untouched.median:.2f}",
        _size(found.memory),
        _size(found.size),
        "–" if found.macs is None else f"{found.macs / 1e6:.4g} M",
        f"{found.quality:.2f}",
        f"{found.quality - first.quality:+.2f}",
    )


def to_json(lines: Sequence[Line], *, name: str, about: dict[str, Any], notes: Sequence[str] = ()) -> dict[str, Any]:
    """A report as plain data.

    Args:
        lines: the untouched model first.
        name: name of the result.
        about: data, unit and threads.
        notes: what is to be said of the whole.

    Returns:
        Machine, date, data and every line with all its figures.
    """
    engines = sorted({form.name.split()[0] for line in lines for form in line.measured.forms})
    return {
        "name": name,
        **about,
        "date": datetime.now(UTC).date().isoformat(),
        "processor": cpu_model(),
        "engines": {engine: library_version(engine) for engine in engines},
        "lines": [asdict(line) for line in lines],
        "notes": list(notes),
    }


def _under(found: dict[str, Any]) -> str:
    engines = ", ".join(f"{name} {version}" for name, version in found["engines"].items())
    return (
        f"{found['date']}, {found['processor']}, {found['threads']} threads, {found['batch']} input(s) a call; "
        f"{engines}. Quality: {found['unit']} on {found['data']}, of the file in the engine named. Times: median and "
        "quartiles, timed in turn with the untouched model in its fastest form, which “of untouched” compares with."
    )


def to_markdown(lines: Sequence[Line], found: dict[str, Any]) -> str:
    """A report as Markdown.

    Args:
        lines: the untouched model first.
        found: the report as plain data, from `to_json`.

    Returns:
        Text with a table.
    """
    first = lines[0].measured
    text = [f"# {found['name']}", "", f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    text += [f"| {' | '.join(_cells(line, first))} |" for line in lines]
    text += ["", _under(found)]
    said = [*(f"{line.step}: {note}" for line in lines for note in line.notes), *found["notes"]]
    text += ["", *(f"- {note}" for note in said)] if said else []
    text += ["", "Every engine, milliseconds (share of the untouched model in the same engine):", ""]
    for line in lines:
        parts = (f"{f.name} {1e3 * f.latency.median:.3g} ({f.ratio.median:.2f})" for f in line.measured.forms)
        text.append(f"- {line.step}: {', '.join(parts)}")
    return "\n".join(text) + "\n"


def plot(lines: Sequence[Line], unit: str) -> str:
    """Quality against latency, as SVG.

    Args:
        lines: points; those not kept are hollow.
        unit: unit of the quality.

    Returns:
        An SVG element.
    """
    points = []
    for line in lines:
        t, quality = line.measured.latency, line.measured.quality
        says = f"{line.step}: {1e3 * t.median:.3g} ms, {quality:.2f}"
        name = line.step.partition("(")[0]
        points.append(Point(name, 1e3 * t.median, quality, 1e3 * t.lower, 1e3 * t.upper, line.kept, says))
    return scatter(points, quality=unit)


def to_html(lines: Sequence[Line], found: dict[str, Any]) -> str:
    """A report as one page that loads nothing.

    Args:
        lines: the untouched model first.
        found: the report as plain data, from `to_json`.

    Returns:
        HTML.
    """
    first = lines[0].measured
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(line, first)) + "</tr>" for line in lines
    )
    said = [*(f"{line.step}: {note}" for line in lines for note in line.notes), *found["notes"]]
    notes = "\n".join(f"<li>{escape(note)}</li>" for note in said)
    head = "".join(f"<th>{word}</th>" for word in HEAD)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(found["name"])}</title>\n'
        "<style>body{font:15px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
        "td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}td:first-child,th:first-child,"
        "td:nth-child(2),th:nth-child(2){text-align:left}</style></head>\n"
        f"<body><h1>{escape(found['name'])}</h1>\n{plot(lines, found['unit'])}\n<table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table>\n<p>{escape(_under(found))}</p>\n<ul>\n{notes}\n</ul>\n</body></html>\n"
    )


def write_pages(
    lines: Sequence[Line], folder: Path, stem: str, *, name: str, about: dict[str, Any], notes: Sequence[str] = ()
) -> None:
    """Write a report as STEM.md, STEM.json and STEM.html.

    Args:
        lines: the untouched model first.
        folder: folder to write to.
        stem: name of the files.
        name: name of the result.
        about: "data", "unit", "threads" and "batch".
        notes: what is to be said of the whole.
    """
    found = to_json(lines, name=name, about=about, notes=notes)
    (folder / f"{stem}.md").write_text(to_markdown(lines, found), encoding="utf-8")
    (folder / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / f"{stem}.html").write_text(to_html(lines, found), encoding="utf-8")


def write_report(shrunk: Shrunk, folder: Path, *, name: str, notes: Sequence[str] = ()) -> None:
    """Write the report of a recipe.

    Args:
        shrunk: result of the recipe.
        folder: folder to write to.
        name: name of the result.
        notes: what is to be said of the whole.
    """
    lines = [Line(s.step, s.measured, s.kept, s.notes, s.seconds) for s in shrunk.stages]
    about = {"data": shrunk.data.name, "unit": shrunk.data.unit, "threads": shrunk.threads}
    write_pages(lines, folder, "report", name=name, about=about | {"batch": shrunk.written.shape[0]}, notes=notes)
