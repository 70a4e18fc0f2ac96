"""The native engine: plain super-resolution networks by foveal's own kernels, the fastest of the engines.

It runs one family of graphs, the one `foveal export` writes for LumaSR: 3×3 convolutions without padding, each with a
leaky slope, whose last makes detail for all colours, one linear upsampler beside them, and back-projection where the
network has it. It takes a quarter of the products (Winograd's F(4×4, 3×3)), and none of the passes over memory that
single operators make for the slope, the sum, the order of the axes and the rounding. Of an int8 file it runs the same
network in bytes, 1.5 to 1.9 times as fast again where the processor multiplies bytes (AVX-512 VNNI). See
`kernels/cpp/conv_chain.cpp`. Imported only when this engine is opened.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import foveal_kernels
import numpy as np
import onnx
from onnx import numpy_helper

from foveal.runtime.errors import EngineMemoryError, EngineUnsupportedError, failure

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Chain", "NativeEngine", "read_chain"]


@dataclass(frozen=True)
class Chain:
    """A network of the family, as numbers.

    Args:
        weights: weights of the convolutions, (out, in, 3, 3) each; int8 for all but the first where there are `scales`.
        biases: biases of the convolutions, (out,) each.
        slopes: below 0 after each convolution; 1 for none.
        base: linear upsampler of each colour, (s², k, k).
        bytes: the file takes (N, h, w, 3) bytes and makes (N, h', w', s²·3), not floats by planes.
        scales: scales of the int8 weights, (out,) for each convolution but the first; empty for a network of floats.
        steps: scale of the bytes that each convolution but the last makes, after its slope; empty likewise.
        zeros: zero points of each of their channels, (out,).
        back: of back-projection, what it reads of the picture, (3, k + 4, k + 4), and of the detail, (s², 5, 5), and
            what it adds to the detail, (s², 5, 5); empty for none.
    """

    weights: tuple[NDArray, ...]
    biases: tuple[NDArray[np.float32], ...]
    slopes: tuple[float, ...]
    base: NDArray[np.float32]
    bytes: bool
    scales: tuple[NDArray[np.float32], ...] = ()
    steps: tuple[float, ...] = ()
    zeros: tuple[NDArray[np.float32], ...] = ()
    back: tuple[NDArray[np.float32], ...] = ()

    @property
    def scale(self) -> int:
        """Output side over input side, s."""
        return int(len(self.base) ** 0.5)

    @property
    def margin(self) -> int:
        """Pixels that the network takes off each side."""
        return len(self.weights) + sum(kernel.shape[-1] // 2 for kernel in self.back[1:])


class _Graph:
    """An ONNX graph, asked from its output backwards; whatever is not as expected is refused."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        self.name = path.name
        self.constants = {t.name: np.array(numpy_helper.to_array(t)) for t in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.image, self.output = graph.input[0].name, graph.output[0].name
        self.bytes = graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8

    def refuse(self, what: str) -> EngineUnsupportedError:
        return EngineUnsupportedError(
            f"native engine: {self.name} is not a chain of 3×3 convolutions with a linear upsampler beside it "
            f"({what}); use onnxruntime"
        )

    def want(self, condition: bool, what: str) -> None:
        if not condition:
            raise self.refuse(what)

    def is_image(self, name: str) -> bool:
        """Whether a tensor is the picture, by planes, in [0, 1]."""
        if not self.bytes or name not in self.makers:
            return name == self.image
        node, attributes = self.node(name, "Transpose")
        self.want(list(attributes["perm"]) == [0, 3, 1, 2], "another order of axes")
        node, _ = self.node(node.input[0], "DequantizeLinear")
        self.want(node.input[0] == self.image, "more than one picture")
        self.check_levels(node)
        return True

    def check_levels(self, node: onnx.NodeProto) -> None:
        """Bytes must stand for levels of 1/255."""
        level, zero = self.constant(node, 1), self.constant(node, 2)
        self.want(level.shape == () and abs(float(level) * 255 - 1) < 1e-6 and not zero.any(), "levels but n/255")

    def node(self, name: str, *kinds: str) -> tuple[onnx.NodeProto, dict[str, Any]]:
        """The node that makes a tensor, and its attributes."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type not in kinds:
            found = "the image" if maker is None else maker.op_type
            raise self.refuse(f"{found} where {' or '.join(kinds)} should be")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in maker.attribute}
        return maker, attributes

    def constant(self, node: onnx.NodeProto, index: int) -> NDArray:
        name = node.input[index] if index < len(node.input) else ""
        if name not in self.constants:
            raise self.refuse(f"input {index} of {node.op_type} is no constant")
        return self.constants[name]

    def dequantized(self, name: str) -> tuple[NDArray, NDArray[np.float32], NDArray] | None:
        """Numbers that a constant of bytes stands for: bytes, scales and zeros; None for another tensor."""
        if name not in self.makers or self.makers[name].op_type != "DequantizeLinear":
            return None
        node = self.makers[name]
        return self.constant(node, 0), self.constant(node, 1).astype(np.float32), self.constant(node, 2)

    def levels(self, name: str) -> tuple[str, float, NDArray[np.float32]] | None:
        """What is rounded to bytes to make a tensor, their scale and their channels' zeros; None for floats."""
        if name not in self.makers or self.makers[name].op_type != "DequantizeLinear":
            return None
        back, _ = self.node(name, "DequantizeLinear")
        there, _ = self.node(back.input[0], "QuantizeLinear")
        found = [self.constant(node, i) for node in (there, back) for i in (1, 2)]
        self.want(all(x.shape == () for x in found) and found[1].dtype == np.uint8, "activations of other levels")
        self.want(found[0] == found[2] and found[1] == found[3] == 0, "activations of two levels")
        lifted, _ = self.node(there.input[0], "Add")
        lift = self.constant(lifted, 1).astype(np.float32)
        self.want(lift.ndim == 4 and lift.size == lift.shape[1], f"a sum with {lift.shape} where channels have zeros")
        return lifted.input[0], float(found[0]), lift.ravel() / found[0]

    def convolution(self, name: str) -> tuple[str, NDArray, NDArray[np.float32], NDArray[np.float32] | None]:
        """What a plain convolution reads, its weight, its bias, and the scales of an int8 weight."""
        node, attributes = self.node(name, "Conv")
        coded, scales = self.dequantized(node.input[1]), None
        if coded is None:
            weight = self.constant(node, 1).astype(np.float32)
        else:
            weight, scales, zeros = coded
            self.want(
                weight.dtype == np.int8 and scales.shape == weight.shape[:1] and not zeros.any(),
                "weights of other levels",
            )
        plain = {"pads": [0, 0, 0, 0], "strides": [1, 1], "dilations": [1, 1], "group": 1}
        for key, value in plain.items():
            got = attributes.get(key, value)
            self.want((list(got) if isinstance(value, list) else got) == value, f"a convolution with {key} {got}")
        self.want(attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID"), "a convolution that pads itself")
        bias = self.constant(node, 2) if len(node.input) > 2 else np.zeros(len(weight))
        self.want(weight.ndim == 4 and bias.shape == weight.shape[:1], f"a bias of {bias.shape} for {weight.shape}")
        return node.input[0], weight, bias.astype(np.float32), scales

    def linear(self, name: str) -> tuple[str, NDArray[np.float32]]:
        """What a convolution of floats without a bias reads, and its weight."""
        read, weight, bias, scales = self.convolution(name)
        self.want(scales is None and not bias.any(), "bytes or a bias beside the chain")
        return read, weight


def _crop(graph: _Graph, name: str) -> tuple[str, int]:
    """What a border is cut from, and how wide it is; slices of rows and of columns."""
    cuts = {2: 0, 3: 0}
    while graph.makers.get(name) is not None and graph.makers[name].op_type == "Slice":
        node = graph.makers[name]
        starts, ends, axes = (graph.constant(node, i).tolist() for i in (1, 2, 3))
        steps = graph.constant(node, 4).tolist() if len(node.input) > 4 else [1] * len(axes)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            graph.want(axis in cuts and step == 1 and start == -end and not cuts[axis], "a slice that is no border")
            cuts[axis] = start
        name = node.input[0]
    graph.want(cuts[2] == cuts[3], "a border of two widths")
    return name, cuts[2]


@dataclass(frozen=True)
class _Detail:
    """What is spread to all colours: what the last layer makes, with back-projection or without."""

    maker: str
    back: tuple[NDArray[np.float32], ...] = ()
    border: int = 0  # that the picture is cut by before back-projection reads it


def _detail(graph: _Graph, name: str, phases: int) -> _Detail:
    maker = graph.makers.get(name)
    if maker is None or maker.op_type != "Add":
        return _Detail(name)
    added = [i for i in maker.input if i in graph.makers and graph.makers[i].op_type == "Conv"]
    cut = [i for i in maker.input if i not in added]
    graph.want(len(added) == len(cut) == 1, "two details")
    detail, border = _crop(graph, cut[0])
    lacking, enlarge = graph.linear(added[0])
    both, _ = graph.node(lacking, "Add")
    of_detail = next((i for i in both.input if graph.linear(i)[0] == detail), "")
    of_picture = next((i for i in both.input if i != of_detail), "")
    graph.want(bool(of_detail and of_picture), "back-projection of something else")
    _, reduce = graph.linear(of_detail)
    picture, small = graph.linear(of_picture)
    picture, outer = _crop(graph, picture)
    shapes = (1, phases, 5, 5), (phases, 1, 5, 5)
    graph.want((reduce.shape, enlarge.shape) == shapes and border == 4, "back-projection of another reach")
    graph.want(graph.is_image(picture) and small.shape[:2] == (1, 3), "back-projection of another picture")
    return _Detail(detail, (small[0], reduce[0], enlarge[:, 0]), outer)


def read_chain(path: Path) -> Chain:
    """Recognise a network of the family in an ONNX file.

    Args:
        path: path of the file.

    Returns:
        Its numbers.

    Raises:
        EngineUnsupportedError: it is another network; the message says where it differs.
    """
    graph = _Graph(path)
    if graph.bytes:
        node, _ = graph.node(graph.output, "QuantizeLinear")
        graph.check_levels(node)
        node, attributes = graph.node(node.input[0], "Transpose")
        graph.want(list(attributes["perm"]) == [0, 2, 3, 1], "another order of axes")
    else:
        node, attributes = graph.node(graph.output, "DepthToSpace")
        graph.want(attributes.get("mode", b"DCR") == b"CRD", "depth to space in another order")
    both, _ = graph.node(node.input[0], "Add")
    widths = {name: graph.convolution(name)[1].shape[2] for name in both.input}
    spread_name = next((name for name, side in widths.items() if side == 1), "")
    base_name = next((name for name, side in widths.items() if side > 1), "")
    graph.want(bool(spread_name and base_name), "no detail beside a base")
    tail, spread = graph.linear(spread_name)
    phases = spread.shape[1]
    scale = round(phases**0.5)
    # Channels of the output: colour by colour in a float file, block by block in one of bytes.
    channels = np.arange(3 * phases).reshape(3, phases)
    if graph.bytes:
        channels = channels.reshape(phases, 3).T
    graph.want(scale**2 == phases <= 16 and len(spread) == 3 * phases, f"{phases} phases for {len(spread)} channels")
    same = all(np.array_equal(spread[channels[c], :, 0, 0], np.eye(phases, dtype=np.float32)) for c in range(3))
    graph.want(same, "detail that is not the same for all colours")
    weights: list[NDArray] = []
    biases: list[NDArray[np.float32]] = []
    slopes: list[float] = []
    scales: list[NDArray[np.float32] | None] = []
    levels: list[tuple[float, NDArray[np.float32]]] = []
    found = _detail(graph, tail, phases)
    name, slope = found.maker, 1.0
    while True:
        name, weight, bias, scale_of = graph.convolution(name)
        graph.want(weight.shape[2:] == (3, 3), f"a convolution of {weight.shape[2]}×{weight.shape[3]}")
        made = weights[-1].shape[1] if weights else phases
        graph.want(len(weight) == made, f"{len(weight)} channels where {made} are read")
        weights.append(weight)
        biases.append(bias)
        slopes.append(slope)
        scales.append(scale_of)
        if weight.shape[1] == 3 and graph.is_image(name):
            break
        if (rounded := graph.levels(name)) is not None:
            name = rounded[0]
            levels.append(rounded[1:])
        node, attributes = graph.node(name, "LeakyRelu", "Relu")
        slope = float(attributes.get("alpha", 0.01)) if node.op_type == "LeakyRelu" else 0.0
        name = node.input[0]
    coded = [scale_of for scale_of in scales if scale_of is not None]
    inner = len(weights) - 1
    graph.want(
        scales[-1] is None and (len(coded), len(levels)) in ((0, 0), (inner, inner)), "bytes in some layers only"
    )
    base_input, base = graph.linear(base_name)
    base_input, border = _crop(graph, base_input)
    side = base.shape[2]
    reach = 4 if found.back else 0
    graph.want(graph.is_image(base_input) and border == len(weights) + reach - side // 2, "a base that looks elsewhere")
    if found.back:
        graph.want(found.back[0].shape[1:] == (side + 4, side + 4), "back-projection of another reach")
        graph.want(found.border == len(weights) - side // 2, "back-projection that looks elsewhere")
    graph.want(base.shape == (3 * phases, 3, side, side) and side % 2 == 1, "another base")
    one = base[channels[0], 0]
    for c in range(3):
        others = [k for k in range(3) if k != c]
        graph.want(np.array_equal(base[channels[c], c], one), "a base that differs from colour to colour")
        graph.want(not base[channels[c]][:, others].any(), "a base that mixes colours")
    graph.want(len(weights) > 1, "one layer")
    steps, zeros = zip(*levels[::-1], strict=True) if levels else ((), ())
    return Chain(
        weights=tuple(weights[::-1]),
        biases=tuple(biases[::-1]),
        slopes=tuple(slopes[::-1]),
        base=one,
        bytes=graph.bytes,
        scales=tuple(coded[::-1]),
        steps=steps,
        zeros=zeros,
        back=found.back,
    )


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
        base, *back = (np.ascontiguousarray(x, np.float32) for x in (chain.base, *chain.back))
        end = (
            chain.scale,
            base.shape[1],
            _at(base),
            back[1].shape[1] if back else 0,
            *(_at(x) for x in (back or [base] * 3)),  # nobody reads those of a side of 0
        )
        slopes, steps = (_at(np.array(x, np.float32)) for x in (chain.slopes, chain.steps))
        if chain.scales:
            rest = (_all_at(weights[1:]), _all_at(scales), _all_at(biases), slopes, steps, _all_at(zeros))
            self._handle = library.foveal_chain_make_int8(*start, _at(weights[0]), *rest, *end)
        else:
            self._handle = library.foveal_chain_make(*start, _all_at(weights), _all_at(biases), slopes, *end)
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
