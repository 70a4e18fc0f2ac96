"""libvips, loaded on first use and configured once."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["blob", "reason", "set_blob", "vips"]


@cache
def vips() -> Any:
    """The module `pyvips`, with its operation cache and its logging disabled.

    libvips caches recent loads by file name: a file replaced within one run would be read from the cache, and decoded
    pictures would stay in memory.

    pyvips forwards the warnings of libvips to Python's logging, with a call from the libvips thread that issues one.
    Python may collect garbage during such a call and release libvips objects that belong to another thread, which
    crashes the process. What matters in warnings reaches us as errors, so libvips is told to drop them.

    Returns:
        The module.
    """
    if "pyvips" not in sys.modules:  # otherwise other code has set up logging and owns it
        with _environment("VIPS_WARNING", "0"):
            import pyvips

            pyvips._remove_log_handler()
    import pyvips

    pyvips.cache_set_max(0)
    return pyvips


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable temporarily."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def reason(error: Exception) -> str:
    """The error message of libvips in one line: its last line names the cause.

    Args:
        error: exception raised by pyvips.

    Returns:
        A short text without newlines.
    """
    lines = [line.strip() for line in str(getattr(error, "detail", "") or error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def blob(image: Any, name: str) -> bytes | None:
    """A binary field of an image's metadata.

    Args:
        image: pyvips image.
        name: name of the field.

    Returns:
        The bytes, or None if there are none.
    """
    return (bytes(image.get(name)) or None) if image.get_typeof(name) else None


def set_blob(image: Any, name: str, value: bytes | None) -> None:
    """Set a binary field, unless the value is None.

    Args:
        image: pyvips image, not shared with other code.
        name: name of the field.
        value: bytes to set, or None.
    """
    if value:
        image.set_type(vips().GValue.blob_type, name, value)
