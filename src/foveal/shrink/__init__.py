"""Making a trained model smaller or faster.

The package is the verb too: `foveal.shrink(model, recipe, data)` calls `foveal.shrink.recipe.shrink`. Its names are
loaded when first used, so that importing it is light.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.shrink.data import Data
    from foveal.shrink.distill.distillation import Distil
    from foveal.shrink.fold.step import Fold
    from foveal.shrink.lowrank.step import LowRank
    from foveal.shrink.prune.structure import Prune
    from foveal.shrink.quantize.int8 import Quantise
    from foveal.shrink.rebuild import load
    from foveal.shrink.recipe import Shrunk
    from foveal.shrink.steps import untouched
    from foveal.shrink.tune import Tune

__all__ = ["Data", "Distil", "Fold", "LowRank", "Prune", "Quantise", "Shrunk", "Tune", "load", "untouched"]

_HOME = {
    "Data": "data",
    "Distil": "distill.distillation",
    "Fold": "fold.step",
    "LowRank": "lowrank.step",
    "Prune": "prune.structure",
    "Quantise": "quantize.int8",
    "Shrunk": "recipe",
    "Tune": "tune",
    "load": "rebuild",
    "untouched": "steps",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'foveal.shrink' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Verb(ModuleType):
    """A module that can be called."""

    def __call__(self, *arguments: Any, **options: Any) -> Shrunk:
        from foveal.shrink.recipe import shrink

        return shrink(*arguments, **options)


sys.modules[__name__].__class__ = _Verb
