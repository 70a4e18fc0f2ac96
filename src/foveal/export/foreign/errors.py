"""What an import raises."""

from __future__ import annotations

from importlib.util import find_spec

from foveal._install import install_hint
from foveal.errors import FovealError

__all__ = ["ForeignModelError", "require"]


class ForeignModelError(FovealError, ValueError):
    """A model that cannot be imported: damaged, unsafe, of an unknown architecture, or not from picture to picture."""


def require(path: object, extra: str, *modules: str) -> None:
    """Check that what reads a kind of file is installed.

    Args:
        path: file to read.
        extra: extra of foveal that brings the modules.
        *modules: modules needed.

    Raises:
        ForeignModelError: one is missing; the message says how to install it.
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ForeignModelError(f"{path}: reading it needs {' and '.join(missing)}; {install_hint(extra)}")
