"""Libraries of optional formats: loaded on first use, with an error that says how to install them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from foveal._install import install_hint

from .errors import PictureError
from .formats import READABLE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["needed", "readable", "why_not"]


def why_not(format_: str) -> str:
    """Why a format cannot be read here.

    Args:
        format_: name of a format in `READABLE`.

    Returns:
        Such as "needs pillow_heif, which is not installed; pip install 'foveal[heic]'", or "" if it can be.
    """
    form = READABLE[format_]
    missing = [module for module in form.modules if find_spec(module) is None]
    if not missing:
        return ""
    are = "which is not installed" if len(missing) == 1 else "which are not installed"
    return f"needs {' and '.join(missing)}, {are}; {install_hint(form.extra)}"


def readable() -> tuple[str, ...]:
    """Names of the formats that can be read here.

    Returns:
        The names.
    """
    return tuple(name for name in READABLE if not why_not(name))


def needed(format_: str, path: Path, module: str = "") -> Any:
    """The library of a format.

    Args:
        format_: name of a format.
        path: file that is being read, for the error.
        module: one of its modules; "" for the first.

    Returns:
        The module.

    Raises:
        PictureError: if it is not installed.
    """
    if reason := why_not(format_):
        why, _, how = reason.partition("; ")
        raise PictureError(path, f"it is a {READABLE[format_].label} picture, and reading it {why}", how)
    return import_module(module or READABLE[format_].modules[0])
