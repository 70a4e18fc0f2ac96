"""Progress of `foveal upscale`: bars on a terminal, plain lines in a pipe, nothing with --quiet.

Bars and messages go to standard error; the line for each picture goes to standard output, or to standard error if
standard output carries JSON.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from foveal.cli._speech import say

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Show", "duration", "megapixels"]

_EVERY = 10.0  # seconds between two plain lines of one picture


def duration(seconds: float) -> str:
    """Format a duration.

    Args:
        seconds: duration in seconds, at least 0.

    Returns:
        "0.4 s", "12 s", "3 min 20 s" or "2 h 5 min".
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def megapixels(value: float) -> str:
    """Format megapixels or megapixels per second.

    Args:
        value: number of megapixels, at least 0.

    Returns:
        "12.3", or "0.07" below 1.
    """
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


class Show:
    """Display of the progress of a run.

    Args:
        pictures: number of pictures to process.
        total: megapixels of all results.
        seconds: estimated seconds, shown until a speed is known.
        quiet: whether to show nothing but problems.
        json: whether standard output is reserved for JSON.
    """

    def __init__(self, pictures: int, total: float, seconds: float, *, quiet: bool, json: bool) -> None:
        self._all = total
        self._quiet = quiet
        self._out = sys.stderr if json else sys.stdout
        self._bars: Any = None
        self._total: Any = None
        self._file: Any = None
        self._name = ""
        self._start = self._file_start = self._said = time.monotonic()
        self._finished = 0.0
        if not quiet and sys.stderr.isatty():
            self._bars = _bars()
            if pictures > 1:
                self._total = self._bars.add_task("all", total=total or 1, planned=seconds)

    def __enter__(self) -> Show:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, name: str, total: float, seconds: float) -> None:
        """Start a picture.

        Args:
            name: name to show.
            total: megapixels of its result.
            seconds: estimated seconds.
        """
        self._name = name
        self._file_start = self._said = time.monotonic()
        if self._bars is not None:
            self._file = self._bars.add_task(name, total=total or 1, planned=seconds)

    def step(self, done: float, total: float, region: tuple[int, int, int, int]) -> None:
        """Report that a part of the picture is done.

        Args:
            done: megapixels done.
            total: megapixels of the picture's result.
            region: finished region; not shown.
        """
        del region
        if self._bars is not None:
            self._bars.update(self._file, completed=done)
            if self._total is not None:
                self._bars.update(self._total, completed=self._finished + done)
            return
        now = time.monotonic()
        if self._quiet or now - self._said < _EVERY or done >= total:
            return
        self._said = now
        speed = done / (now - self._file_start)
        left = duration((total - done) / speed)
        rest = self._all - self._finished - done
        whole = f", {duration(rest / speed)} for all" if rest > total - done + 1e-6 else ""
        self.line(
            f"{self._name}: {megapixels(done)} of {megapixels(total)} MP, {megapixels(speed)} MP/s, {left} left{whole}"
        )

    def end(self, total: float) -> None:
        """End a picture that is finished or failed.

        Args:
            total: megapixels of its result.
        """
        self._finished += total
        if self._bars is not None and self._file is not None:
            self._bars.remove_task(self._file)
            self._file = None
            if self._total is not None:
                self._bars.update(self._total, completed=self._finished)

    def line(self, text: str) -> None:
        """Print a line that stays above the bars.

        Args:
            text: one line of text.
        """
        if self._quiet:
            return
        if self._bars is not None and self._out.isatty():
            self._above(text)
        else:
            say(text, self._out)

    def problem(self, text: str) -> None:
        """Print a problem, even with --quiet.

        Args:
            text: one line of text.
        """
        if self._bars is not None:
            self._above(text)
        else:
            say(text, sys.stderr)

    def _above(self, text: str) -> None:
        """Print above the bars; a closed terminal is ignored."""
        with suppress(OSError):
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Megapixels done, megapixels per second and seconds left; the estimated seconds until a speed is known."""

        def render(self, task: Task) -> Text:
            elapsed = task.elapsed or 0.0
            text = f"{megapixels(task.completed)}/{megapixels(task.total or 0)} MP"
            if task.completed > 0 and elapsed > 0:
                speed = task.completed / elapsed
                left = duration(((task.total or 0) - task.completed) / speed)
                return Text(f"{text}  {megapixels(speed)} MP/s  {left} left")
            return Text(f"{text}  about {duration(task.fields['planned'])}")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Speed(),
        console=Console(stderr=True),
        transient=True,
    )
