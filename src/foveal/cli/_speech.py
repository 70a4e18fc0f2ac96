"""Words on standard output and standard error that never stop the work.

A terminal may not know a letter, a log may lie on a full disk, and whoever read may have gone: pictures are made all
the same.
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
    """What stands for letters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("foveal", _plain)


def ready() -> None:
    """Let standard output and standard error take every letter."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="foveal")  # type: ignore[union-attr]


def say(text: str, stream: TextIO) -> bool:
    """Print a text and a newline.

    Args:
        text: to say.
        stream: to say it on; what cannot be written to once is silent from then on.

    Returns:
        Whether it was said.
    """
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # a full disk, a closed pipe or a closed stream
        # What the stream still holds would be tried again when the process ends.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        return False
    return True
