"""ONNX files of other tools, from picture to picture.

The file is made what `runtime` runs: one float32 input (B, 3, H, W) of RGB in [0, 1], free height and width, weights
inside. What stood there (half precision, channels last, fixed sides, weights beside the file, other colours) is
rewritten, or refused where it cannot be.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.export.foreign.colours import RANGES
from foveal.export.foreign.errors import ForeignModelError, require
from foveal.export.foreign.opened import Opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from foveal.export.foreign.colours import Colours
    from foveal.export.foreign.sizes import Sizes
    from foveal.runtime.engines import FileKind

__all__ = ["open_onnx"]

# Operators that ONNX Runtime brings itself.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_FLOAT, _HALF = 1, 10


def open_onnx(path: Path) -> Opened:
    """Read an ONNX file.

    Args:
        path: path of the file.

    Returns:
        The model.

    Raises:
        ForeignModelError: it is damaged, reads files outside its folder, has operators of its own, or is not from one
            picture to one picture.
    """
    require(path, "import", "onnx", "onnxruntime")
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise ValueError("no operators in it")
    except Exception as error:
        raise ForeignModelError(f"{path}: is no ONNX file ({str(error).strip()[:120]})") from error
    _check_operators(model, path)
    _load_weights(model, path)
    image, out, last = _ends(model, path.name)
    _to_float32(model)
    if last:
        image, out = _channels_first(model, image, out)
    _free(model, image, out)
    from foveal.runtime.engines import create
    from foveal.runtime.errors import EngineError
    from foveal.runtime.machine import cores

    with tempfile.TemporaryDirectory() as made:
        place = Path(made) / "model.onnx"
        try:
            onnx.save(model, place)
            engine = create("onnxruntime", place, cores(), exact=True)
        except (EngineError, ValueError) as error:
            raise ForeignModelError(f"{path}: ONNX Runtime cannot run it ({str(error)[:200]})") from error

    def write(folder: Path, colours: Colours, sizes: Sizes, exact: bool) -> dict[FileKind, str]:  # noqa: ARG001
        if not colours.usual:
            _recolour(model, image, out, colours)
        onnx.save(model, folder / "model.onnx")
        return {"float": "model.onnx"}

    producer = model.producer_name or "ONNX"
    parameters = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    return Opened(
        f"ONNX ({producer})" if producer != "ONNX" else producer, engine.run, write, "onnxruntime", parameters
    )


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its loops and conditions."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _check_operators(model: Any, path: Path) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    unknown = {
        f"{node.domain}.{node.op_type}"
        for node in nodes
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own
    }
    if unknown:
        raise ForeignModelError(
            f"{path}: operators {', '.join(sorted(unknown))} are not ONNX's own and need code of their maker's, which "
            "foveal does not load; export the model without them"
        )


def _tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _load_weights(model: Any, path: Path) -> None:
    """Take in weights that lie in files beside the model; files elsewhere are not opened."""
    from onnx import external_data_helper

    outside = [tensor for tensor in _tensors(model) if external_data_helper.uses_external_data(tensor)]
    for tensor in outside:
        said = {entry.key: entry.value for entry in tensor.external_data}
        location = said.get("location", "")
        if Path(location).name != location or not location or "\\" in location:
            raise ForeignModelError(
                f"{path}: its weights point to {location!r}, outside its folder; foveal opens files beside "
                "the model only"
            )
        beside = path.parent / location
        if beside.is_symlink() or not beside.is_file():
            raise ForeignModelError(
                f"{path}: its weights lie in {location}, which is not beside it; copy both files into one folder"
            )
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:
            raise ForeignModelError(f"{path}: cannot read its weights from {location} ({error})") from error
        tensor.data_location = 0
        del tensor.external_data[:]


def _ends(model: Any, name: str) -> tuple[Any, Any, bool]:
    """The one input and the one output, and whether channels stand last."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    outputs = list(model.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise ForeignModelError(
            f"{name}: takes {len(inputs)} inputs ({', '.join(v.name for v in inputs)}) and gives {len(outputs)} "
            f"outputs ({', '.join(v.name for v in outputs)}); only models from one picture to one picture are imported"
        )
    kind = inputs[0].type.tensor_type
    if kind.elem_type not in (_FLOAT, _HALF):
        raise ForeignModelError(
            f"{name}: takes whole numbers, foveal gives floats; export the model without its conversion from bytes"
        )
    sides = [axis.dim_value for axis in kind.shape.dim]
    if len(sides) != 4:
        raise ForeignModelError(
            f"{name}: takes {len(sides)} axes, not the four of pictures (batch, channels, height, width)"
        )
    last = sides[3] == 3 and sides[1] != 3
    channels = sides[3] if last else sides[1]
    if channels not in (0, 3):
        raise ForeignModelError(
            f"{name}: takes {channels} channels, foveal runs models of RGB pictures (3); take one trained on colour"
        )
    return inputs[0].name, outputs[0].name, last


def _to_float32(model: Any) -> None:
    """Half precision to single: processors compute in floats, and the values are the same."""
    from onnx import numpy_helper

    def retype(value: Any) -> None:
        if value.type.tensor_type.elem_type == _HALF:
            value.type.tensor_type.elem_type = _FLOAT

    for tensor in list(_tensors(model)):
        if tensor.data_type == _HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for graph in _graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            retype(value)
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type in ("Cast", "EyeLike", "RandomNormal") and attribute.i == _HALF:
                    attribute.i = _FLOAT


def _rename(model: Any, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _value(model: Any, name: str) -> Any:
    return next(value for value in (*model.graph.input, *model.graph.output) if value.name == name)


def _before(model: Any, image: str, nodes: list[Any], first: str) -> None:
    """Put nodes, which read `image` and make `first`, before the graph."""
    _rename(model, image, first)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def _channels_first(model: Any, image: str, out: str) -> tuple[str, str]:
    from onnx import helper

    _before(model, image, [helper.make_node("Transpose", [image], ["foveal_last"], perm=[0, 2, 3, 1])], "foveal_last")
    _rename(model, out, "foveal_made")
    model.graph.node.append(helper.make_node("Transpose", ["foveal_made"], [out], perm=[0, 3, 1, 2]))
    for value in (_value(model, image), _value(model, out)):
        dims = list(value.type.tensor_type.shape.dim)
        if len(dims) == 4:
            sides = [type(dims[0]).FromString(dims[i].SerializeToString()) for i in (0, 3, 1, 2)]
            del value.type.tensor_type.shape.dim[:]
            value.type.tensor_type.shape.dim.extend(sides)
    return image, out


def _free(model: Any, image: str, out: str) -> None:
    """Let batch, height and width be any; where the graph itself fixes them, running it will tell."""
    del model.graph.value_info[:]
    for name in (image, out):
        dims = _value(model, name).type.tensor_type.shape.dim
        for axis, word in {0: "batch", 2: "height", 3: "width"}.items():
            if axis < len(dims) and (len(dims) == 4 or axis == 0):
                dims[axis].dim_param = word if name == image or axis == 0 else f"out_{word}"


def _mix(low_high: tuple[float, float], swap: bool, *, back: bool) -> tuple[NDArray, NDArray]:
    """Weight (3, 3, 1, 1) and bias (3,) of a convolution that changes range and order of colours."""
    low, high = low_high
    span = high - low
    weight = np.eye(3, dtype=np.float32)[:: -1 if swap else 1] * (1 / span if back else span)
    return weight[..., None, None].copy(), np.full(3, -low / span if back else low, np.float32)


def _recolour(model: Any, image: str, out: str, colours: Colours) -> None:
    from onnx import helper, numpy_helper

    def convolution(word: str, source: str, made: str, weights: tuple[NDArray, NDArray]) -> Any:
        names = [f"{word}_weight", f"{word}_bias"]
        model.graph.initializer.extend(numpy_helper.from_array(w, n) for w, n in zip(weights, names, strict=True))
        return helper.make_node("Conv", [source, *names], [made], kernel_shape=[1, 1])

    if (colours.range_in, colours.order_in) != ("0-1", "rgb"):
        weights = _mix(RANGES[colours.range_in], colours.order_in == "bgr", back=False)
        _before(model, image, [convolution("foveal_in", image, "foveal_first", weights)], "foveal_first")
    if (colours.range_out, colours.order_out) != ("0-1", "rgb"):
        weights = _mix(RANGES[colours.range_out], colours.order_out == "bgr", back=True)
        _rename(model, out, "foveal_last_made")
        model.graph.node.append(convolution("foveal_out", "foveal_last_made", out, weights))
