"""Quality against cost: which points no other one beats, and the plot, as SVG that loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Point", "frontier", "scatter"]

COLOUR = "#1565c0"


@dataclass(frozen=True)
class Point:
    """One thing that was measured.

    Args:
        name: what it is called in the plot.
        cost: median.
        quality: more is better.
        lower: lower quartile of the cost; None for no bar.
        upper: upper quartile of the cost; None for no bar.
        kept: False for a hollow point.
        says: text that is shown on hovering; "" for name, cost and quality.
    """

    name: str
    cost: float
    quality: float
    lower: float | None = None
    upper: float | None = None
    kept: bool = True
    says: str = ""


def frontier(points: Sequence[Point]) -> list[bool]:
    """Which points no other one dominates: none costs at most as much and is at least as good, and better in one.

    Args:
        points: points.

    Returns:
        For each, whether it lies on the frontier; equal points all do.
    """

    def beaten(a: Point) -> bool:
        return any(
            b.cost <= a.cost and b.quality >= a.quality and (b.cost, b.quality) != (a.cost, a.quality) for b in points
        )

    return [not beaten(point) for point in points]


def scatter(
    points: Sequence[Point],
    *,
    cost: str = "milliseconds",
    quality: str = "quality",
    least_room: float = 0.5,
    width: int = 640,
    height: int = 360,
) -> str:
    """Quality against cost, as SVG.

    Args:
        points: at least one.
        cost: name of the horizontal axis.
        quality: name of the vertical axis.
        least_room: smallest range of the vertical axis.
        width: width in pixels.
        height: height in pixels.

    Returns:
        An SVG element.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("a plot needs at least one point, got none")
    left, right, top, bottom = 60, 20, 20, 45
    ys = [point.quality for point in points]
    most, low, high = 1.1 * max(point.cost for point in points) or 1.0, min(ys), max(ys)
    room = max(high - low, least_room)
    low, high = low - 0.15 * room, high + 0.15 * room

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + (width - left - right) * x / most
        return across, top + (height - top - bottom) * (high - y) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" font-size="12" '
        f'font-family="sans-serif"><title>{escape(quality)} against {escape(cost)}</title>',
        f'<path d="M{left} {top}V{height - bottom}H{width - right}" fill="none" stroke="#888"/>',
    ]
    for i in range(5):
        x, y = most * i / 4, low + (high - low) * i / 4
        across, _ = at(x, low)
        _, down = at(0, y)
        parts.append(f'<text x="{across:.0f}" y="{height - bottom + 16}" text-anchor="middle">{x:.3g}</text>')
        parts.append(f'<text x="{left - 6}" y="{down + 4:.0f}" text-anchor="end">{y:.2f}</text>')
    parts.append(f'<text x="{(left + width) / 2:.0f}" y="{height - 8}" text-anchor="middle">{escape(cost)}</text>')
    parts.append(f'<text x="{left + 4}" y="{top - 6}">{escape(quality)}</text>')
    for point in points:
        across, down = at(point.cost, point.quality)
        if point.lower is not None and point.upper is not None:
            parts.append(
                f'<path d="M{at(point.lower, 0)[0]:.1f} {down:.1f}H{at(point.upper, 0)[0]:.1f}" stroke="{COLOUR}"/>'
            )
        says = point.says or f"{point.name}: {point.cost:.3g} {cost}, {point.quality:.2f}"
        parts.append(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="4" fill="{COLOUR if point.kept else "none"}" '
            f'stroke="{COLOUR}"><title>{escape(says)}</title></circle>'
            f'<text x="{across + 7:.1f}" y="{down - 6:.1f}">{escape(point.name)}</text>'
        )
    return "\n".join([*parts, "</svg>"])
