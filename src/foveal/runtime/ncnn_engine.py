"""The ncnn engine: a `.param` with its `.bin`, on the processor or, where there is one, on a GPU by Vulkan.

ncnn takes one picture, (C, H, W), so a batch is run one after the other. A Vulkan device that is the processor in
disguise (llvmpipe, SwiftShader) is slower than ncnn on the processor itself and is left alone.
"""

from __future__ import annotations

from ctypes.util import find_library
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime.errors import EngineError, EngineMemoryError, failure

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["NcnnEngine", "gpu"]

_PROCESSOR = 3  # VK_PHYSICAL_DEVICE_TYPE_CPU less one, as ncnn counts
_NO_MEMORY = -100  # of an extraction that could not allocate


@cache
def gpu() -> int | None:
    """The GPU that ncnn would take.

    Returns:
        Its index, or None without one.
    """
    # Asked first: without a loader, ncnn prints what it tried for each name of it.
    if find_library("vulkan") is None:
        return None
    import ncnn

    for index in range(ncnn.get_gpu_count()):
        if ncnn.get_gpu_info(index).type() != _PROCESSOR:
            return index
    return None


class NcnnEngine:
    """A pair of ncnn's files.

    Args:
        path: path of the `.param`; the `.bin` lies beside it.
        threads: processor threads.
        exact: compute in float32 even where half precision is faster.

    Attributes:
        device: "cpu", or "gpu" and its index.

    Raises:
        EngineError: a file is missing, or ncnn cannot read it.
    """

    name = "ncnn"

    def __init__(self, path: Path, threads: int, exact: bool) -> None:
        import ncnn

        self.threads = threads
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise EngineError(f"ncnn: {weights.name} is not beside {path}; the bundle is incomplete, copy it again")
        self._ncnn = ncnn
        self._net = net = ncnn.Net()
        options = net.opt
        options.num_threads = threads
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = not exact
        device = gpu()
        options.use_vulkan_compute = device is not None
        self.device = "cpu"
        if device is not None:
            self.device = f"gpu {device}"
            net.set_vulkan_device(device)
        if net.load_param(str(path)) != 0:
            raise EngineError(f"ncnn: cannot read {path.name}")
        if net.load_model(str(weights)) != 0:
            raise EngineError(f"ncnn: {weights.name} does not hold the weights that {path.name} wants")
        inputs, outputs = net.input_names(), net.output_names()
        if len(inputs) != 1 or len(outputs) != 1:
            raise EngineError(
                f"ncnn: {path.name} has {len(inputs)} inputs and {len(outputs)} outputs, one of each is wanted"
            )
        self._input, self._output = inputs[0], outputs[0]

    def run(self, x: NDArray) -> NDArray:
        try:
            results = [self._one(np.ascontiguousarray(picture)) for picture in x]
        except EngineError:
            raise
        except Exception as error:
            raise failure(self.name, error) from error
        return results[0][None] if len(results) == 1 else np.stack(results)

    def _one(self, picture: NDArray) -> NDArray:
        extractor: Any = self._net.create_extractor()
        # A copy that ncnn owns: a first layer that works in place counts its owners, and NumPy's memory has no counter.
        extractor.input(self._input, self._ncnn.Mat(picture).clone())
        code, made = extractor.extract(self._output)
        if code == _NO_MEMORY:
            raise EngineMemoryError("ncnn ran out of memory; a smaller tile (--tile) needs less")
        if code != 0:
            raise EngineError(f"ncnn failed with code {code} on a picture of shape {picture.shape}")
        return np.array(made)
