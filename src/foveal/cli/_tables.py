"""Text tables: fitted to the width of a terminal, one unbroken line per row in a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["console", "table"]

_STYLES = {"works": "green", "holds": "green", "written": "yellow", "does not hold": "red", "could not run": "red"}


def console(*, stderr: bool = False) -> Console:
    """Console that wraps at the terminal's width and never in a pipe.

    Args:
        stderr: whether to write to standard error.

    Returns:
        The console.
    """
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=10_000, soft_wrap=True)


def table(out: Console, head: Sequence[str], lines: Iterable[Sequence[str]], *, shorten: str = "") -> None:
    """Print a table without rules.

    Args:
        out: console from `console`.
        head: names of the columns.
        lines: cells of each row.
        shorten: column to truncate to the width of a terminal instead of wrapping; "" wraps all.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    cells = [list(line) for line in lines]
    for i, name in enumerate(head):
        others = [max(map(len, column)) + 2 for j, column in enumerate(zip(head, *cells, strict=True)) if j != i]
        room = max(10, out.width - sum(others) - 2) if name == shorten else None
        made.add_column(name, no_wrap=bool(shorten), overflow="ellipsis" if room else "fold", max_width=room)
    for line in cells:
        made.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in line))
    out.print(made)
