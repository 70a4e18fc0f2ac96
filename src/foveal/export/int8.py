"""Int8 form of a super-resolution file: an 8-bit file with int8 activations and weights, an ordinary QDQ graph.

Between two convolutions, activations become bytes. Each convolution's weights are int8 with one scale per channel of
its output (B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, arXiv:1712.05877). The channels of a tensor share scale and zero point, and would share the
widest range; but here every channel uses its full range: a leaky slope commutes with a positive factor, so a channel is
divided before it and multiplied back in the next kernel (M. Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", ICCV 2019, arXiv:1906.04721; here by measured ranges, not by weights), and the offset
added after the slope, which lifts the lowest value to 0, is subtracted in the next bias.

Each channel's value in a flat picture is one of its 256 levels, and the next bias compensates for what the rounded
kernel makes of it: a network that leaves flat pictures unchanged still does, and its layers' errors have zero mean
where a picture is nearly flat. (With zero as a level, as usual, and one correction at the end, `balanced_x4` had a
pattern of up to a third of a level over each 4×4 block; without the pattern, the squared error of int8 on the pictures
of Set5 is 7 to 32 % less, most on smooth ones.) Ranges are not clipped: cutting off a few outliers makes the steps
finer and smooth pictures a little better, but edges much worse.

The first convolution, which reads the picture, and everything outside the chain stay in floating point.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper
from PIL import Image

from foveal.export.deployable import ExportError
from foveal.images.resize import imresize
from foveal.runtime.ort import load_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["CalibrationError", "calibration_pictures", "int8"]

LEVELS = 255
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class CalibrationError(ExportError, ValueError):
    """No calibration pictures, or none that is large enough."""


class _Site(NamedTuple):
    """Place of a quantised activation: between the node that produces it and the convolution that reads it."""

    maker: onnx.NodeProto
    activation: onnx.NodeProto
    reader: onnx.NodeProto


def int8(source: Path, target: Path, pictures: Sequence[NDArray[np.uint8]]) -> float | None:
    """Write the int8 form of an 8-bit file.

    Args:
        source: 8-bit file written by `foveal.export.onnx.eight_bit`.
        target: file to write.
        pictures: calibration pictures, (h, w, 3) each, larger than the network's trimmed border.

    Returns:
        PSNR between the outputs of the two files on the pictures, in dB; None, with nothing written, if no activation
        lies between a convolution and another one without padding.

    Raises:
        CalibrationError: no pictures.
    """
    if not pictures:
        raise CalibrationError("int8 needs calibration pictures, got none; give at least one")
    model = onnx.load(source)
    sites = _sites(model.graph)
    if not sites:
        return None
    out = model.graph.output[0].name
    before = _run(model, pictures, [out])[0]
    names = [site.activation.output[0] for site in sites]
    ranges = _run(model, pictures, names, _limits)
    black = _run(model, [np.zeros_like(pictures[0])], names, lambda made: made[0, :, 0, 0])
    rounding = {}
    for site, name, found, (flat,) in zip(sites, names, ranges, black, strict=True):
        low, high = np.min(found, 0)[0], np.max(found, 0)[1]
        rounding[name] = _round_site(model.graph, site, low, np.maximum(high, low + 1e-6), flat)
    nodes = [one for node in model.graph.node for one in (node, *rounding.get(node.output[0], ()))]
    whole = onnx.GraphProto(node=nodes)  # a copy: nodes removed from the graph stay in it
    del model.graph.node[:]
    model.graph.node.extend(whole.node)
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString())
    after = _run(model, pictures, [out])[0]
    error = np.mean([np.square(a.astype(float) - b.astype(float)).mean() for a, b in zip(before, after, strict=True)])
    return float(10 * np.log10(LEVELS**2 / max(error, 1e-6)))


def calibration_pictures(
    folder: Path, scale: int, *, least: int = 1, count: int = 128, side: int = 128
) -> list[NDArray[np.uint8]]:
    """Low-resolution calibration pictures: centre crops of reduced pictures.

    Args:
        folder: folder of high-resolution pictures, e.g. the training set; subfolders are searched too.
        scale: s, the factor by which they are reduced.
        least: smallest side of a reduced picture, in pixels; smaller ones are left out.
        count: largest number of pictures, spread evenly over the folder.
        side: largest side of a crop, in pixels.

    Returns:
        Crops, (h, w, 3) each.

    Raises:
        CalibrationError: no picture below `folder`, or none that is large enough.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise CalibrationError(f"{folder}: no pictures below it; `foveal data {folder}` fetches some")
    found = []
    for path in paths[:: -(-len(paths) // count)]:
        with Image.open(path) as opened:
            picture = np.asarray(opened.convert("RGB"))
        height, width = (min(size, side * scale) for size in picture.shape[:2])
        if min(height, width) < least * scale:
            continue
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        found.append(imresize(picture[top : top + height, left : left + width], 1 / scale))
    if not found:
        raise CalibrationError(
            f"{folder}: no picture of at least {least * scale} pixels a side among the {len(paths)} found; "
            "take larger ones"
        )
    return found


def _sites(graph: onnx.GraphProto) -> list[_Site]:
    """Activations between one convolution and one convolution without padding, in the graph's order."""
    makers = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    uses = Counter(name for node in graph.node for name in node.input)
    constants = {tensor.name for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in {"LeakyRelu", "Relu"} or uses[node.output[0]] != 1 or uses[node.input[0]] != 1:
            continue
        maker, reader = makers[node.input[0]], readers[node.output[0]]
        plain = all(
            conv.op_type == "Conv" and len(conv.input) == 3 and {*conv.input[1:]} <= constants
            for conv in (maker, reader)
        )
        if plain and not _pads(reader) and max(uses[name] for conv in (maker, reader) for name in conv.input[1:]) == 1:
            found.append(_Site(maker, node, reader))
    return found


def _pads(conv: onnx.NodeProto) -> bool:
    """Whether a convolution pads with zeros, which would be wrong for channels with an offset."""
    values = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    return any(values.get("pads", ())) or values.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")


def _run(
    model: onnx.ModelProto,
    pictures: Sequence[NDArray[np.uint8]],
    names: list[str],
    keep: Callable[[NDArray], Any] = lambda made: made,
) -> list[list[Any]]:
    """Run a graph; for each tensor name, the result of `keep` for each picture."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    known = {value.name for value in asked.graph.output}
    asked.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = load_onnxruntime().InferenceSession(asked.SerializeToString(), providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0].name
    kept = [[keep(made) for made in session.run(names, {image: one[None]})] for one in pictures]
    return [list(made) for made in zip(*kept, strict=True)]


def _get(graph: onnx.GraphProto, name: str) -> NDArray:
    return numpy_helper.to_array(next(tensor for tensor in graph.initializer if tensor.name == name))


def _set(graph: onnx.GraphProto, name: str, value: NDArray) -> None:
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))


def _limits(made: NDArray) -> NDArray:
    """Lowest and highest value of each channel, (2, C)."""
    channels = made[0].reshape(made.shape[1], -1)
    return np.stack([channels.min(1), channels.max(1)])


def _round_site(
    graph: onnx.GraphProto, site: _Site, low: NDArray, high: NDArray, flat: NDArray
) -> list[onnx.NodeProto]:
    """Quantise the activation between two convolutions and the second one's kernel; returns the rounding nodes."""
    worth = high - low  # range of all levels
    flat = flat / worth
    lift = (np.rint((flat - low / worth) * LEVELS) / LEVELS - flat).astype(np.float32)
    _, kernel, bias = site.maker.input
    if any(tensor.name == kernel for tensor in graph.initializer):
        _set(graph, kernel, _get(graph, kernel) / worth[:, None, None, None])
    else:  # rounded already: the factor goes into the scales of its channels
        _set(graph, f"{kernel}_scale", _get(graph, f"{kernel}_scale") / worth)
    _set(graph, bias, _get(graph, bias) / worth)
    made, (_, name, reader_bias) = site.activation.output[0], site.reader.input
    weight = _get(graph, name) * worth[None, :, None, None]
    scales = np.maximum(np.abs(weight).max((1, 2, 3)), 1e-12).astype(np.float32) / 127
    rounded = np.rint(weight / scales[:, None, None, None]).astype(np.int8)
    lost = np.einsum("oiyx,i->o", weight, flat) - scales * np.einsum("oiyx,i->o", rounded.astype(float), flat + lift)
    _set(graph, reader_bias, _get(graph, reader_bias) + lost)
    constants = {
        f"{made}_lift": lift[None, :, None, None],
        f"{made}_scale": np.float32(1 / LEVELS),
        f"{made}_zero": np.uint8(0),
        f"{name}_int8": rounded,
        f"{name}_scale": scales,
        f"{name}_zero": np.zeros(len(scales), np.int8),
    }
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items())
    levels = [f"{made}_scale", f"{made}_zero"]
    site.reader.input[0] = f"{made}_rounded"
    return [
        helper.make_node("Add", [made, f"{made}_lift"], [f"{made}_lifted"]),
        helper.make_node("QuantizeLinear", [f"{made}_lifted", *levels], [f"{made}_bytes"]),
        helper.make_node("DequantizeLinear", [f"{made}_bytes", *levels], [f"{made}_rounded"]),
        helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale", f"{name}_zero"], [name], axis=0),
    ]
