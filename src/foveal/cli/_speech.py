"""Printing to standard output and standard error that never stops the work.

The encoding may lack a character, the disk of a log may be full, and the reader of a pipe may be gone; pictures are
processed all the same.
"""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from typing import TextIO

__all__ = ["ready", "say"]

_PLAIN = {"→": "->", "×": "x", "…": "...", "–": "-", "−": "-", "’": "'", "²": "^2", "σ": "sigma"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replacement for characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("foveal", _plain)


def ready() -> None:
    """Make standard output and standard error accept every character."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="foveal")  # type: ignore[union-attr]


def say(text: str, stream: TextIO) -> bool:
    """Print a text and a newline.

    Args:
        text: text to print.
        stream: stream to print to; a stream that fails once is silent from then on.

    Returns:
        Whether it was printed.
    """
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # a full disk, a closed pipe or a closed stream
        # Data left in the buffer would be written again when the process ends.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        return False
    return True
