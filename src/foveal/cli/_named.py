"""Named networks and their arguments, as commands take them."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["arguments_of", "library_of"]


def arguments_of(texts: list[str] | None) -> dict[str, Any]:
    """Arguments from NAME=VALUE; a value that is no JSON is a text.

    Args:
        texts: arguments of the command line.

    Returns:
        Keyword arguments.

    Raises:
        ShrinkError: a text without "=".
    """
    from foveal.shrink.step import ShrinkError

    given: dict[str, Any] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise ShrinkError(f"--arg must be NAME=VALUE, got {text!r}")
        try:
            given[key] = json.loads(value)
        except ValueError:
            given[key] = value
    return given


def library_of(name: str) -> str:
    """The library that knows a network.

    Args:
        name: name of the network.

    Returns:
        "foveal", "timm" or "torchvision".

    Raises:
        ShrinkError: none does.
    """
    import timm
    from torchvision.models import list_models as of_torchvision

    from foveal.models import list_models
    from foveal.shrink.step import ShrinkError

    for library, known in (
        ("foveal", name in list_models()),
        ("timm", timm.is_model(name)),
        ("torchvision", name in of_torchvision()),
    ):
        if known:
            return library
    raise ShrinkError(f"no model is called {name!r} in foveal, timm or torchvision, and it is no folder")
