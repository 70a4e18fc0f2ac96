"""Runs exported models on pictures of any size, without torch.

card.py        what a model on disk says of itself; bundle.py: where its files are, and which to choose
machine.py     this machine's processor, cores and cache folder; ort.py: the one import of ONNX Runtime
engines.py     what computes: foveal's own kernels, ONNX Runtime, OpenVINO, torch; errors.py: what they raise
tiles.py       a picture cut into tiles and put together again without a seam; blend.py: the same by blending overlaps
pixels.py      kinds of pixels (grey, colour, alpha; 8 bits, 16 bits, floats) to what a network takes, and back
inputs.py      kinds of pictures (array, tensor, PIL image, path) to pixels, and back
throughput.py  how fast engines are here, measured and remembered; engine_choice.py: the engine and tile that follow
plan.py        engine, tiles, memory and seconds of one picture, before the work starts; result.py: what was done
restorer.py    damaged pictures behind one call; repairs.py, light.py: what is looked for; repairing.py: how it is done
upscaler.py    all of it behind one call; background_writer.py: writing while the next tiles are computed

Names are loaded when first used, so that reading a card does not load an engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveal.runtime.bundle import Bundle, available, choose
    from foveal.runtime.card import BundleError, Card
    from foveal.runtime.engines import Engine, EngineError
    from foveal.runtime.plan import Plan
    from foveal.runtime.result import Result
    from foveal.runtime.upscaler import Upscaler

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
    "BundleError": "card",
    "Card": "card",
    "Engine": "engines",
    "EngineError": "engines",
    "Plan": "plan",
    "Result": "result",
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
