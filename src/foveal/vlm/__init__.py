"""Vision-language models of transformers that read fewer visual tokens: hooks on the unmodified model.

Names are loaded when first used, so that importing the package is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveal.vlm.answer import Answer, Asker, ask
    from foveal.vlm.families import Family
    from foveal.vlm.hooks import Accelerated, accelerate
    from foveal.vlm.method import Cut, Reducer, Seen, VlmError, list_methods

__all__ = [
    "Accelerated",
    "Answer",
    "Asker",
    "Cut",
    "Family",
    "Reducer",
    "Seen",
    "VlmError",
    "accelerate",
    "ask",
    "list_methods",
]

_HOME = {
    "Accelerated": "hooks",
    "Answer": "answer",
    "Asker": "answer",
    "Cut": "method",
    "Family": "families",
    "Reducer": "method",
    "Seen": "method",
    "VlmError": "method",
    "accelerate": "hooks",
    "ask": "answer",
    "list_methods": "method",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'foveal.vlm' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
