"""foveal upscales pictures and makes computer-vision models cheaper, with every paper's claims measured again.

    >>> import foveal
    >>> upscale = foveal.Upscaler(scale=4)  # doctest: +SKIP
    >>> large = upscale("photo.jpg")  # doctest: +SKIP

Everything is loaded on first use: `import foveal` itself imports only the standard library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveal import adapt, shrink, vlm
    from foveal.models import create_model, list_models
    from foveal.runtime import Upscaler
    from foveal.runtime.restorer import Restorer
    from foveal.shrink.swap.swap import swap
    from foveal.shrink.tokens.foveate import foveate

__all__ = [
    "Restorer",
    "Upscaler",
    "__version__",
    "adapt",
    "create_model",
    "foveate",
    "list_models",
    "shrink",
    "swap",
    "vlm",
]

_HOME = {
    "Restorer": "foveal.runtime.restorer",
    "Upscaler": "foveal.runtime",
    "create_model": "foveal.models",
    "foveate": "foveal.shrink.tokens.foveate",
    "list_models": "foveal.models",
    "swap": "foveal.shrink.swap.swap",
}

_PACKAGES = ("adapt", "shrink", "vlm")  # the first two are verbs too


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: object = version("foveal")
        except PackageNotFoundError:  # run from a checkout that was never installed
            value = "0+unknown"
    elif name in _PACKAGES:
        value = import_module(f"foveal.{name}")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'foveal' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
