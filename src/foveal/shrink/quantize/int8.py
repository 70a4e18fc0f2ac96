"""Static int8 of the exported file, by ONNX Runtime and NNCF: weights and activations in bytes, ordinary QDQ graphs.

Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, arXiv:1712.05877; the work is done by `onnxruntime.quantization.quantize_static` and `nncf.quantize`.

Shapes: any exported network with one input, (n, …).

Differs from the paper: nothing is trained. In a graph with attention, products of two activations stay in floats.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator  # noqa: TC003 - the interface of ONNX Runtime reads it
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import onnx

from foveal.runtime.machine import cpu_flags
from foveal.runtime.ort import load_onnxruntime
from foveal.shrink.data import calibration
from foveal.shrink.quantize.nncf_int8 import quantise_by_nncf, why_not
from foveal.shrink.step import ShrinkError, note

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from foveal.shrink.data import Data
    from foveal.shrink.step import Inputs

__all__ = ["By", "Method", "Quantise", "quantise_file", "quantise_files", "quantised"]

Method = Literal["minmax", "entropy", "percentile"]
By = Literal["auto", "onnxruntime", "nncf"]
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


def quantised(model: nn.Module) -> str:
    """Whether a network computes in few bits already.

    Args:
        model: network.

    Returns:
        The first layer that does, with its type; "" if none does.
    """
    for name, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__name__}"
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        codes = any(t.dtype.is_signed and not t.is_floating_point() and t.dtype.itemsize == 1 for t in tensors)
        if codes or "quantized" in kind or kind.startswith("foveal.shrink.quantize."):
            return f"{name or 'the model'} is a {kind}"
    return ""


@dataclass(frozen=True)
class Quantise:
    """Step: write the file in int8. The network in torch stays as it is; put the step last.

    Args:
        bits: 8; fewer bits are other methods' (`foveal catalogue`).
        method: how ranges of activations are found: "minmax", "entropy" or "percentile".
        samples: number of inputs to calibrate on.
        skip: types of ONNX nodes left in floats, such as "Softmax".
        by: library that does the work, "onnxruntime" or "nncf", which has its own ranges; "auto" writes a file by each
            that is installed, and the fastest is kept.

    Raises:
        ValueError: other bits, an unknown method or library, or no samples.
    """

    bits: int = 8
    method: Method = "minmax"
    samples: int = 128
    skip: tuple[str, ...] = ()
    by: By = "auto"

    def __post_init__(self) -> None:
        if self.bits != 8:
            raise ValueError(f"bits must be 8, got {self.bits}; engines run no other integers fast")
        if self.method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {self.method!r}")
        if self.by not in get_args(By):
            raise ValueError(f"by must be one of {', '.join(get_args(By))}, got {self.by!r}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Check that the model can be quantised; the file is, when it is written.

        Args:
            model: network.
            data: inputs to calibrate on.

        Returns:
            The same network.

        Raises:
            ShrinkError: a network that is quantised already.
        """
        calibration(data, step="Quantise", limit=1)
        if found := quantised(model):
            raise ShrinkError(f"Quantise: the model is quantised already ({found}); give the one in floats")
        return model


class _Reader:
    """The calibration inputs, in ONNX Runtime's interface."""

    def __init__(self, name: str, batches: Iterator[NDArray]) -> None:
        self.name, self.batches = name, batches

    def get_next(self) -> dict[str, NDArray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def _products_of_activations(graph: onnx.GraphProto) -> list[str]:
    stored = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not stored & {*node.input}]


def _parts(graph: onnx.GraphProto, inputs: Tensor, samples: int) -> NDArray:
    """Inputs in calls of the file's batch, (calls, batch, …)."""
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    chosen = inputs[: max(batch, samples)]
    return chosen[: len(chosen) // batch * batch].numpy().reshape(-1, batch, *chosen.shape[1:])


def quantise_files(source: Path, stem: str, inputs: Tensor, step: Quantise | None = None) -> dict[str, Path]:
    """Write the int8 forms of an ONNX file by every library that is installed, next to it.

    Args:
        source: file in floats, for inputs of one shape.
        stem: start of the files' names.
        inputs: inputs to calibrate on, (n, …).
        step: settings.

    Returns:
        Files by kind: "int8" by ONNX Runtime, "nncf" by NNCF.

    Raises:
        ShrinkError: no library can quantise the file.
    """
    step = step or Quantise()
    found: dict[str, Path] = {}
    failed: list[str] = []
    if step.by != "nncf":
        try:
            quantise_file(source, source.with_name(f"{stem}_int8.onnx"), inputs, step)
            found["int8"] = source.with_name(f"{stem}_int8.onnx")
        except ShrinkError as error:
            failed.append(str(error))
    if step.by == "nncf" or (step.by == "auto" and not why_not()):
        target = source.with_name(f"{stem}_nncf.onnx")
        try:
            graph = onnx.load(source, load_external_data=False).graph
            quantise_by_nncf(source, target, [*_parts(graph, inputs, step.samples)], skip=step.skip)
            found["nncf"] = target
        except ShrinkError as error:
            failed.append(str(error))
    if not found:
        raise ShrinkError("; ".join(failed))
    for text in failed:
        note(text)
    return found


def quantise_file(source: Path, target: Path, inputs: Tensor, step: Quantise | None = None) -> None:
    """Write the int8 form of an ONNX file by ONNX Runtime.

    Args:
        source: file in floats, for inputs of one shape.
        target: file to write.
        inputs: inputs to calibrate on, (n, …).
        step: settings.

    Raises:
        ShrinkError: ONNX Runtime cannot quantise the file, or finds nothing to quantise.
    """
    step = step or Quantise()
    quantization = load_onnxruntime("quantization")
    prepare = load_onnxruntime("quantization.shape_inference").quant_pre_process
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as place:
            ready = Path(place) / "ready.onnx"
            prepare(str(source), str(ready), skip_symbolic_shape=True)
            graph = onnx.load(ready).graph
            entry, parts = graph.input[0], _parts(graph, inputs, step.samples)
            options: dict[str, Any] = {}
            if any(node.op_type == "Softmax" for node in graph.node):
                options["nodes_to_exclude"] = _products_of_activations(graph)
                options["op_types_to_quantize"] = ["Conv", "Gemm", "MatMul"]
            else:
                known = load_onnxruntime("quantization.registry").QDQRegistry
                options["op_types_to_quantize"] = sorted({*known, "Conv", "MatMul", "Gemm"})
            options["op_types_to_quantize"] = [t for t in options["op_types_to_quantize"] if t not in step.skip]
            quantization.quantize_static(
                ready,
                target,
                _Reader(entry.name, iter(parts)),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                # Without byte products of four, sums of two saturate at 16 bits.
                reduce_range=not cpu_flags() & {"avx512_vnni", "avx_vnni", "asimddp"},
                calibrate_method=getattr(quantization.CalibrationMethod, _METHODS[step.method]),
                **options,
            )
    except Exception as error:
        raise ShrinkError(f"Quantise: ONNX Runtime cannot quantise {source.name}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)
    if not any(node.op_type == "QuantizeLinear" for node in onnx.load(target).graph.node):
        raise ShrinkError(f"Quantise: nothing in {source.name} could be quantised; leave the step out")
