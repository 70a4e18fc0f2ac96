"""Runs exported models on pictures of any size, without torch.

bundle.py      what a model on disk says of itself, and where its files are
engines.py     what computes: foveal's own kernels, ONNX Runtime, OpenVINO, torch; errors.py: what they raise
tiles.py       a picture cut into tiles and put together again without a seam
pixels.py      kinds of pixels (grey, colour, alpha; 8 bits, 16 bits, floats) to what a network takes, and back
plan.py        engine, tiles, memory and seconds, told before the work
upscaler.py    all of it behind one call

Names are loaded when first used, so that reading a card does not load an engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveal.runtime.bundle import Bundle, BundleError, Card, available, choose
    from foveal.runtime.engines import Engine, EngineError
    from foveal.runtime.plan import Plan
    from foveal.runtime.upscaler import Result, Upscaler

__all__ = [
    "Bundle",
    "BundleError",
    "Card",
    "Engine",
    "EngineError",
    "Plan",
    "Result",
    "Upscaler",
    "available",
    "choose",
]

_HOME = {
    "Bundle": "bundle",
    "BundleError": "bundle",
    "Card": "bundle",
    "Engine": "engines",
    "EngineError": "engines",
    "Plan": "plan",
    "Result": "upscaler",
    "Upscaler": "upscaler",
    "available": "bundle",
    "choose": "bundle",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'foveal.runtime' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
