"""Export of a network to an ONNX file with free height and width, and comparison of the file with the network."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from foveal.export.deployable import ExportError
from foveal.export.scan import lower_scans
from foveal.ops.selective_scan.onnx import lowered_later
from foveal.runtime.ort import load_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

__all__ = ["ExportError", "Parity", "eight_bit", "parity", "to_onnx"]

OPSET = 18
ELEMENTWISE = {"Clip", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}


@dataclass(frozen=True)
class Parity:
    """Agreement of an exported file with torch.

    Args:
        shape: shape of the input, (B, C, H, W).
        largest: largest absolute difference, for values around [0, 1].
        relative: largest absolute difference over the largest absolute output.
    """

    shape: tuple[int, ...]
    largest: float
    relative: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for a report.

        Returns:
            The fields by name.
        """
        return asdict(self)


def to_onnx(model: nn.Module, path: str | Path, example: Tensor, *, output: str = "upscaled") -> None:
    """Write a network as an ONNX file whose batch, height and width are free.

    Args:
        model: network, (B, C, H, W) to (B, C', H', W') or to (B, classes).
        path: target file.
        example: input to trace with; use a batch of two or more, because torch would fix a batch size of one.
        output: name of the output; the input is called "image".

    Raises:
        ExportError: the folder of `path` does not exist, or torch cannot export the network.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else "lies in no folder that is there"
        raise ExportError(f"{path} {reason}; give a file in a folder that exists")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = {0: "batch", 2: "height", 3: "width"}
    try:
        with warnings.catch_warnings(), torch.no_grad(), lowered_later():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=[output],
                dynamic_shapes=[dict.fromkeys(names, torch.export.Dim.DYNAMIC)],
            )
    except Exception as error:
        raise ExportError(f"torch cannot export {type(model).__name__}: {error}") from error
    assert program is not None
    proto = program.model_proto
    lower_scans(proto)
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        for axis, name in names.items():
            if axis < len(dims) and (axis == 0 or len(dims) == 4):
                dims[axis].dim_param = name if value.name == "image" or axis == 0 else f"{output}_{name}"
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def parity(
    model: nn.Module, path: str | Path, shapes: Sequence[tuple[int, ...]], *, tolerance: float = 1e-4
) -> list[Parity]:
    """Run the file in ONNX Runtime and the network in torch on the same random pictures.

    Args:
        model: the exported network.
        path: the ONNX file.
        shapes: shapes of the inputs, (B, C, H, W); use sizes other than the traced one.
        tolerance: largest relative difference allowed.

    Returns:
        One comparison per shape.

    Raises:
        ExportError: an output of another shape, or a difference above `tolerance`.
    """
    path = Path(path)
    session = load_onnxruntime().InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    found = []
    for shape in shapes:
        x = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
        with torch.inference_mode():
            expected = model(x).numpy()
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        if got.shape != expected.shape:
            raise ExportError(f"{path.name}: output is {got.shape} where torch gives {expected.shape} for {shape}")
        largest = float(np.abs(got - expected).max())
        found.append(Parity(shape, largest, largest / float(np.abs(expected).max())))
        if not found[-1].relative <= tolerance:
            raise ExportError(
                f"{path.name}: differs from torch by {found[-1].relative:.1e} at {shape}, above {tolerance}"
            )
    return found


def eight_bit(source: Path, target: Path) -> bool:
    """Write the 8-bit form of a super-resolution file: uint8 in, uint8 out, the last shuffle left to the caller.

    The caller's shuffle moves s·3 bytes at a time instead of 4-byte floats one by one; rounding and clipping become
    one `QuantizeLinear`, which engines vectorise. Input "image" uint8 (B, H, W, 3); output "upscaled" uint8
    (B, H', W', s²·3), the last axis ordered by row in the block, column in the block, colour.

    Args:
        source: float file whose graph ends in a depth-to-space of a convolution or of a sum of convolutions.
        target: file to write.

    Returns:
        True; False, with nothing written, if the graph does not end that way.
    """
    model = onnx.load(source)
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[graph.output[0].name]
    attributes = {a.name: helper.get_attribute_value(a) for a in last.attribute}
    if last.op_type != "DepthToSpace" or attributes.get("mode", b"DCR") != b"CRD":
        return False
    scale = attributes["blocksize"]
    # Channel c·s² + i·s + j of the float file becomes channel (i·s + j)·3 + c.
    order = np.arange(3 * scale * scale).reshape(3, scale * scale).T.ravel()
    if not _reorder(graph, makers, last.input[0], order):
        return False
    graph.node.remove(last)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 / 255, np.float32), "level"),
            numpy_helper.from_array(np.array(0, np.uint8), "zero"),
        ]
    )
    inputs = [
        helper.make_node("DequantizeLinear", ["image", "level", "zero"], ["image_float"]),
        helper.make_node("Transpose", ["image_float"], ["image_planes"], perm=[0, 3, 1, 2]),
    ]
    for node in graph.node:
        node.input[:] = ["image_planes" if name == "image" else name for name in node.input]
    outputs = [
        helper.make_node("Transpose", [last.input[0]], ["blocks"], perm=[0, 2, 3, 1]),
        helper.make_node("QuantizeLinear", ["blocks", "level", "zero"], ["upscaled"]),
    ]
    nodes = [*inputs, *graph.node, *outputs]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    free = ["batch", "height", "width"]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, [*free, 3]))
    rows = ["batch", "block_rows", "block_columns", 3 * scale * scale]
    graph.output.append(helper.make_tensor_value_info("upscaled", TensorProto.UINT8, rows))
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString())
    return True


def _reorder(graph: onnx.GraphProto, makers: dict[str, onnx.NodeProto], name: str, order: NDArray[np.intp]) -> bool:
    """Permute the channels of a tensor by permuting the kernels and biases that produce it."""
    node = makers.get(name)
    uses = Counter(i for n in graph.node for i in n.input)
    if node is None or uses[name] != 1:
        return False
    if node.op_type in ELEMENTWISE:
        return _reorder(graph, makers, node.input[0], order)
    if node.op_type == "Add":
        return all(_reorder(graph, makers, i, order) for i in node.input)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    if node.op_type != "Conv" or any(i not in stored or uses[i] != 1 for i in node.input[1:]):
        return False
    for i in node.input[1:]:
        array = numpy_helper.to_array(stored[i])
        stored[i].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array[order]), i))
    return True
