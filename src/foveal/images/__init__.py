"""Read, write, resize and convert pictures without losing their metadata.

Names are imported lazily, so importing this package is free.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alpha import premultiply, unpremultiply
    from .errors import PictureError
    from .formats import FORMATS, SUFFIXES, format_for
    from .metadata import Info, Metadata
    from .outlook import foresee
    from .pages import PagesWriter, writer_for
    from .picture import Picture
    from .reader import LIMIT_PIXELS, Reading, header, probe, read
    from .resize import imresize
    from .writer import Writer, write

__all__ = [
    "FORMATS",
    "LIMIT_PIXELS",
    "SUFFIXES",
    "Info",
    "Metadata",
    "PagesWriter",
    "Picture",
    "PictureError",
    "Reading",
    "Writer",
    "foresee",
    "format_for",
    "header",
    "imresize",
    "premultiply",
    "probe",
    "read",
    "unpremultiply",
    "write",
    "writer_for",
]

_HOMES = {
    "FORMATS": "formats",
    "SUFFIXES": "formats",
    "format_for": "formats",
    "foresee": "outlook",
    "header": "reader",
    "Info": "metadata",
    "Metadata": "metadata",
    "Picture": "picture",
    "PictureError": "errors",
    "LIMIT_PIXELS": "reader",
    "Reading": "reader",
    "probe": "reader",
    "read": "reader",
    "imresize": "resize",
    "premultiply": "alpha",
    "unpremultiply": "alpha",
    "Writer": "writer",
    "write": "writer",
    "PagesWriter": "pages",
    "writer_for": "pages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
