"""libvips, loaded when first needed and set up once."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["blob", "reason", "set_blob", "vips"]


@cache
def vips() -> Any:
    """The module `pyvips`, with its cache of operations off.

    libvips remembers recent loads by file name: a file replaced within one run would be read from memory, and decoded
    pictures would stay there.

    Returns:
        The module.
    """
    import pyvips

    pyvips.cache_set_max(0)
    return pyvips


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
