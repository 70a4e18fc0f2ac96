"""The torch engine: a bundle's ONNX graph, computed operator by operator with PyTorch.

It serves for comparison, and on machines where torch is the only library that runs. It knows the operators that plain
super-resolution networks are exported to; a graph with another operator is refused by name when it is opened.
Imported only when this engine is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

from foveal.runtime.errors import EngineError, failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["TorchEngine"]

_TYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 10: torch.float16}


def _pairs(pads: list[int], rank: int) -> list[int]:
    """ONNX pads (all begins, then all ends, first axis first) in torch's order (pairs, last axis first)."""
    return [value for axis in reversed(range(rank)) for value in (pads[axis], pads[axis + rank])]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **a: Any) -> Tensor:
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise EngineError(f"torch engine: Conv with auto_pad={a['auto_pad']} is not supported; use onnxruntime")
    pads = a.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        x, pads = functional.pad(x, _pairs(pads, 2)), [0, 0]
    return functional.conv2d(x, weight, bias, a.get("strides", 1), pads[:2], a.get("dilations", 1), a.get("group", 1))


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, **_: Any) -> Tensor:
    return (x.float() - (0 if zero is None else zero.float())) * scale


def _quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, **_: Any) -> Tensor:
    kind = torch.uint8 if zero is None else zero.dtype
    limits = torch.iinfo(kind)
    # Rounds halves to even, as the operator is defined.
    y = torch.round(x / scale) + (0 if zero is None else zero.float())
    return y.clamp(limits.min, limits.max).to(kind)


def _slice(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None, **_: Any
) -> Tensor:
    index = [slice(None)] * x.ndim
    which = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(which, starts.tolist(), ends.tolist(), strides, strict=True):
        index[axis] = slice(start, min(end, x.shape[axis]), step)
    return x[tuple(index)]


def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return functional.pixel_shuffle(x, blocksize)
    batch, depth, height, width = x.shape
    # (B, s, s, C, H, W) to (B, C, H, s, W, s)
    y = x.reshape(batch, blocksize, blocksize, depth // blocksize**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(batch, -1, height * blocksize, width * blocksize)


def _pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: str = "constant"
) -> Tensor:
    if axes is not None:
        raise EngineError("torch engine: Pad with axes is not supported; use onnxruntime")
    flat = _pairs(pads.tolist(), x.ndim)
    if mode == "constant":
        return functional.pad(x, flat, value=0.0 if value is None else value.item())
    # torch's replication padding works on the last two axes only
    return functional.pad(x, flat[:4], mode={"edge": "replicate", "reflect": "reflect"}[mode])


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda x, y: x + y,
    "Cast": lambda x, *, to, **_: x.to(_TYPES[to]),
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "Concat": lambda *x, axis: torch.cat(x, axis),
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _dequantize,
    "Div": lambda x, y: x / y,
    "Identity": lambda x: x,
    "LeakyRelu": lambda x, *, alpha=0.01: functional.leaky_relu(x, alpha),
    "Mul": lambda x, y: x * y,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "Relu": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Sub": lambda x, y: x - y,
    "Tanh": torch.tanh,
    "Transpose": lambda x, *, perm: x.permute(perm),
}


class TorchEngine:
    """An ONNX file run by PyTorch on the CPU.

    Args:
        path: path of the ONNX file.
        threads: processor threads.

    Raises:
        EngineError: the graph has an unsupported operator.
    """

    name = "torch"

    def __init__(self, path: Path, threads: int) -> None:
        self.threads = threads
        graph = onnx.load(path).graph
        self._values: dict[str, Tensor] = {
            t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in graph.initializer
        }
        self._steps: list[tuple[Callable[..., Any], list[str], dict[str, Any], str]] = []
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
            if node.op_type == "Constant" and "value" in attributes:
                array = np.array(numpy_helper.to_array(attributes["value"]))
                self._values[node.output[0]] = torch.from_numpy(array)
                continue
            if node.op_type not in _OPERATORS:
                raise EngineError(
                    f"torch engine: operator {node.op_type} in {path.name} is not supported; use onnxruntime"
                )
            self._steps.append((_OPERATORS[node.op_type], list(node.input), attributes, node.output[0]))
        self._input = next(i.name for i in graph.input if i.name not in self._values)
        self._output = graph.output[0].name
        last: dict[str, int] = {name: i for i, step in enumerate(self._steps) for name in step[1]}
        # Tensors are freed after their last use: activations are most of the memory.
        self._done = [
            [name for name, at in last.items() if at == i and name not in self._values] for i in range(len(self._steps))
        ]

    def run(self, x: NDArray) -> NDArray:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                values = dict(self._values)
                values[self._input] = torch.from_numpy(x)
                for (operator, inputs, attributes, output), done in zip(self._steps, self._done, strict=True):
                    values[output] = operator(*(values[n] if n else None for n in inputs), **attributes)
                    for name in done:
                        del values[name]
                return values[self._output].contiguous().numpy()
        except EngineError:
            raise
        except Exception as error:
            raise failure(self.name, error) from error
        finally:
            torch.set_num_threads(before)
