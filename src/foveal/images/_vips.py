"""libvips, loaded when first needed and set up once."""

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
    """The module `pyvips`, with its cache of operations off and its log silent.

    libvips remembers recent loads by file name: a file replaced within one run would be read from memory, and decoded
    pictures would stay there.

    pyvips hands the warnings of libvips to Python's logging, by a call from whichever of libvips' threads has one.
    Python may collect garbage during such a call and let go of objects of libvips that belong to another thread, which
    ends the process. What matters in warnings reaches us as errors, so libvips drops them itself.

    Returns:
        The module.
    """
    if "pyvips" not in sys.modules:  # else somebody else has set up logging, and it is theirs
        with _environment("VIPS_WARNING", "0"):
            import pyvips

            pyvips._remove_log_handler()
    import pyvips

    pyvips.cache_set_max(0)
    return pyvips


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for a moment."""
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
    """What libvips said, in one line: the last thing it says names the cause.

    Args:
        error: raised by pyvips.

    Returns:
        A short text without newlines.
    """
    lines = [line.strip() for line in str(getattr(error, "detail", "") or error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def blob(image: Any, name: str) -> bytes | None:
    """A binary field of an image's metadata.

    Args:
        image: a pyvips image.
        name: of the field.

    Returns:
        The bytes, or None when there are none.
    """
    return (bytes(image.get(name)) or None) if image.get_typeof(name) else None


def set_blob(image: Any, name: str, value: bytes | None) -> None:
    """Set a binary field, unless there is nothing to set.

    Args:
        image: a pyvips image that nobody else uses.
        name: of the field.
        value: the bytes.
    """
    if value:
        image.set_type(vips().GValue.blob_type, name, value)
