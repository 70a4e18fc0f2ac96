"""Adapting a trained model to new pictures by a small delta that folds, adds up and is taken off again.

The package is the verb too: `foveal.adapt(model, inputs, labels)` calls `foveal.adapt.adapt.adapt`. Its names are
loaded when first used, so that importing it is light.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.adapt.adapt import Adapted
    from foveal.adapt.delta import AdaptError, Delta

__all__ = ["AdaptError", "Adapted", "Delta"]

_HOME = {"AdaptError": "delta", "Adapted": "adapt", "Delta": "delta"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'foveal.adapt' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Verb(ModuleType):
    """A module that can be called."""

    def __call__(self, *arguments: Any, **options: Any) -> Adapted:
        from foveal.adapt.adapt import adapt

        return adapt(*arguments, **options)


sys.modules[__name__].__class__ = _Verb
