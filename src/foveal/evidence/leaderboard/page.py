"""The page of a leaderboard: two plots, a table, crops. HTML that loads nothing, Markdown and JSON beside it."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from foveal.evidence.studies.ntire2024_esr import GATE
from foveal.images.resize import imresize
from foveal.measure.frontier import Point, frontier, scatter
from foveal.measure.quality import from_torch
from foveal.runtime.machine import cpu_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.evidence.leaderboard.board import Board
    from foveal.evidence.leaderboard.standing import Entry

__all__ = ["crops", "to_html", "to_markdown", "write_board"]

HEAD = ("network", "score", "PSNR, dB", "MS-SSIM", "s/MP", "quartiles", "engine", "parameters", "MACs", "steps")
CROP = 48  # side of a crop in low resolution


def _cells(entry: Entry) -> tuple[str, ...]:
    spread = f" ({min(entry.psnr):.2f}–{max(entry.psnr):.2f})" if len(entry.psnr) > 1 else ""
    lower, middle, upper = entry.seconds
    return (
        entry.name,
        "gated" if entry.gated else "–" if entry.score is None else f"{entry.score:.2f}",
        f"{entry.mean:.2f}{spread}",
        f"{np.mean(entry.similarity):.4f}",
        f"{middle:.4g}",
        f"{lower:.3g}–{upper:.3g}",
        entry.engine,
        f"{entry.parameters:,}",
        "–" if entry.macs is None else f"{entry.macs / 1e9:.2f} G",
        f"{entry.steps:,}" if entry.steps else "as shipped",
    )


def _points(entries: Sequence[Entry], *, similar: bool = False) -> list[Point]:
    found = []
    for entry in entries:
        lower, middle, upper = entry.seconds
        value = float(np.mean(entry.similarity)) if similar else entry.mean
        found.append(Point(entry.name, middle, value, lower, upper))
    kept = frontier(found)
    return [Point(p.name, p.cost, p.quality, p.lower, p.upper, on) for p, on in zip(found, kept, strict=True)]


def _about(board: Board, threads: int) -> str:
    s = board.settings
    return (
        f"×{s.scale}; {s.minutes:g} processor minutes and {s.seeds} seeds for each network; tested on "
        f"{', '.join(s.sets)}; {cpu_model()}, {threads} threads, {datetime.now(UTC).date().isoformat()}. PSNR of "
        f"luminance and MS-SSIM, means over the seeds (range in brackets). Seconds per megapixel of the result in the "
        f"fastest engine, all networks timed in turn. Score of the NTIRE 2024 challenge, less is better, RLFN has "
        f"7.39; gated is more than {GATE} dB below RLFN. Filled points are on the frontier."
    )


def to_markdown(board: Board, entries: Sequence[Entry], *, threads: int) -> str:
    """The board as Markdown.

    Args:
        board: the board.
        entries: its lines.
        threads: processor threads of the timing.

    Returns:
        Text with a table.
    """
    rows = [f"| {' | '.join(_cells(entry))} |" for entry in entries]
    title = f"# Leaderboard ×{board.settings.scale}"
    return "\n".join(
        [title, "", f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}", *rows, "", _about(board, threads)]
    )


def crops(board: Board, entries: Sequence[Entry]) -> list[tuple[str, NDArray[np.uint8]]]:
    """A piece of the first benchmark picture, as it was, by bicubic, and as each trained network makes it.

    Args:
        board: the board, trained.
        entries: its lines.

    Returns:
        Name and picture of each.
    """
    low, high = board.pictures()[0]
    s, side = board.settings.scale, min(CROP, *low.shape[:2])
    top, left = ((n - side) // 2 for n in low.shape[:2])
    piece, small = (slice(top * s, (top + side) * s), slice(left * s, (left + side) * s)), low
    found = [("original", high[piece]), ("bicubic", imresize(small, s)[piece])]
    for entry in entries:
        if entry.name in board.networks and entry.steps:
            found.append((entry.name, from_torch(board.trained(entry.name))(small)[piece]))
    return found


def _figure(name: str, pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}"><figcaption>{escape(name)}'
        "</figcaption></figure>"
    )


def to_html(
    board: Board, entries: Sequence[Entry], pieces: Sequence[tuple[str, NDArray[np.uint8]]], *, threads: int
) -> str:
    """The board as one page that loads nothing.

    Args:
        board: the board.
        entries: its lines.
        pieces: crops, see `crops`.
        threads: processor threads of the timing.

    Returns:
        HTML.
    """
    head = "".join(f"<th>{escape(word)}</th>" for word in HEAD)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(entry)) + "</tr>" for entry in entries
    )
    cost = "seconds per megapixel of the result"
    plots = [
        scatter(_points(entries), cost=cost, quality="PSNR, dB"),
        scatter(_points(entries, similar=True), cost=cost, quality="MS-SSIM", least_room=0.005),
    ]
    title = f"Leaderboard ×{board.settings.scale}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        "<style>body{font:15px sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
        "td,th{padding:.3em .6em;border-bottom:1px solid #ccc;text-align:right}td:first-child,th:first-child"
        "{text-align:left}figure{display:inline-block;margin:.4em}img{image-rendering:pixelated}</style></head>\n"
        f"<body><h1>{title}</h1>\n{''.join(plots)}\n<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
        f"</table>\n<p>{escape(_about(board, threads))}</p>\n<div>{''.join(_figure(*p) for p in pieces)}</div>\n"
        "</body></html>\n"
    )


def write_board(board: Board, entries: Sequence[Entry], *, threads: int) -> Path:
    """Write `leaderboard.html`, `.md` and `.json` into the board's folder.

    Args:
        board: the board.
        entries: its lines.
        threads: processor threads of the timing.

    Returns:
        Path of the page.
    """
    text = to_markdown(board, entries, threads=threads)
    (board.folder / "leaderboard.md").write_text(text + "\n", encoding="utf-8")
    data: dict[str, Any] = {
        "settings": asdict(board.settings),
        "processor": cpu_model(),
        "threads": threads,
        "date": datetime.now(UTC).date().isoformat(),
        "entries": [asdict(entry) | {"mean": entry.mean} for entry in entries],
    }
    (board.folder / "leaderboard.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    page = board.folder / "leaderboard.html"
    page.write_text(to_html(board, entries, crops(board, entries), threads=threads), encoding="utf-8")
    return page
