"""The native engine: plain super-resolution networks by foveal's own kernels, the fastest of the engines.

It runs the networks that `chain.py` recognises. It takes a quarter of the products (Winograd's F(4×4, 3×3)), and none
of the passes over memory that single operators make for the slope, the sum, the order of the axes and the rounding. Of
an int8 file it runs the same network in bytes, 1.5 to 1.9 times as fast again where the processor multiplies bytes
(AVX-512 VNNI). See `kernels/cpp/conv_chain.cpp`. Imported only when this engine is opened.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING

import foveal_kernels
import numpy as np

from foveal.runtime.chain import read_chain
from foveal.runtime.errors import EngineMemoryError, failure

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["NativeEngine"]


def _at(array: NDArray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)  # keeps the array alive


def _all_at(arrays: list[NDArray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))


class NativeEngine:
    """A network of the family, run by the compiled kernels. Not for two threads at a time.

    Args:
        path: path of the ONNX file, of floats or of bytes.
        threads: processor threads.
        library: compiled kernels; those for this processor by default.

    Raises:
        EngineMemoryError: too little memory.
        EngineUnsupportedError: a network that this engine does not run.
    """

    name = "native"

    def __init__(self, path: Path, threads: int, library: ctypes.CDLL | None = None) -> None:
        self.threads = threads
        self._chain = chain = read_chain(path)
        self._library = library = library or foveal_kernels.load()
        widths = np.array([3, *(len(w) for w in chain.weights)], np.int64)
        weights, biases, scales, zeros = (
            [np.ascontiguousarray(x) for x in arrays]
            for arrays in (chain.weights, chain.biases, chain.scales, chain.zeros)
        )
        start = (len(weights), _at(widths))
        base = np.ascontiguousarray(chain.base, np.float32)
        back, colour = ([np.ascontiguousarray(x, np.float32) for x in part] for part in (chain.back, chain.colour))
        end = (
            chain.scale,
            base.shape[1],
            _at(base),
            back[1].shape[1] if back else 0,
            *(_at(x) for x in (back or [base] * 3)),  # nobody reads those of a side of 0
            colour[0].shape[1] if colour else 0,
            *(_at(x) for x in (colour or [base] * 3)),
        )
        slopes, steps = (_at(np.array(x, np.float32)) for x in (chain.slopes, chain.steps))
        if chain.scales:
            rest = (_all_at(weights[1:]), _all_at(scales), _all_at(biases), slopes, steps, _all_at(zeros))
            self._handle = library.foveal_chain_build_int8(*start, _at(weights[0]), *rest, *end)
        else:
            self._handle = library.foveal_chain_build(*start, _all_at(weights), _all_at(biases), slopes, *end)
        if not self._handle:
            raise EngineMemoryError("native ran out of memory")
        weakref.finalize(self, library.foveal_chain_free, self._handle)

    def run(self, x: NDArray) -> NDArray:
        chain, lost, s = self._chain, 2 * self._chain.margin, self._chain.scale
        wanted = np.uint8 if chain.bytes else np.float32
        batch, *rest = x.shape
        (height, width), colours = (rest[:2], rest[2:]) if chain.bytes else (rest[1:], rest[:1])
        if x.dtype != wanted or colours != [3] or min(height, width) <= lost:
            layout = f"(N, h, w, 3), h and w above {lost}," if chain.bytes else f"(N, 3, h, w), h and w above {lost},"
            raise failure(self.name, ValueError(f"wanted {layout} of {wanted.__name__}, got {x.shape} of {x.dtype}"))
        x = np.ascontiguousarray(x)
        if chain.bytes:
            y = np.empty((batch, height - lost, width - lost, 3 * s * s), np.uint8)
        else:
            y = np.empty((batch, 3, s * (height - lost), s * (width - lost)), np.float32)
        for source, target in zip(x, y, strict=True):
            starved = self._library.foveal_chain_run(
                self._handle, _at(source), int(chain.bytes), height, width, _at(target), self.threads
            )
            if starved:
                raise EngineMemoryError("native ran out of memory; a smaller tile (--tile) needs less")
        return y
