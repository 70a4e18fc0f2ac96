"""The networks that the native engine runs, recognised in ONNX files and read as numbers.

It is one family of graphs, those `foveal export` writes for LumaSR and LumaClean: 3×3 convolutions without padding,
each with a leaky slope, whose last makes detail for all colours, and one linear upsampler beside them. LumaSR may have
back-projection. In LumaClean the last convolution makes two more channels, which correct Cb and Cr of what the
upsampler reads, as does a small filter. Whatever is not as expected is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from foveal.runtime.errors import EngineUnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Chain", "read_chain"]

MOST_REACH = 2  # pixels around one that the upsampler reads where colour is cleaned; the kernels look no further


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
        colour: where colour is cleaned before the upsampler, a filter of the picture, (k, k); how much of each filtered
            colour is added to each colour, (3, 3); the colours of two more channels of the last convolution, (3, 2);
            empty for none.
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
    colour: tuple[NDArray[np.float32], ...] = ()

    @property
    def scale(self) -> int:
        """Output side over input side, s."""
        return int(len(self.base) ** 0.5)

    @property
    def margin(self) -> int:
        """Pixels that the network takes off each side."""
        after = self.back[1:] if self.back else (self.base,) if self.colour else ()
        return len(self.weights) + sum(kernel.shape[-1] // 2 for kernel in after)


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
        if axes == [1]:  # channels, which are no border
            break
        steps = graph.constant(node, 4).tolist() if len(node.input) > 4 else [1] * len(axes)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            graph.want(axis in cuts and step == 1 and start == -end and not cuts[axis], "a slice that is no border")
            cuts[axis] = start
        name = node.input[0]
    graph.want(cuts[2] == cuts[3], "a border of two widths")
    return name, cuts[2]


def _channels(graph: _Graph, name: str, first: int, count: int) -> str:
    """What some of the channels are taken of: `count` from `first` on, up to the last where `count` is 0."""
    node, _ = graph.node(name, "Slice")
    starts, ends, axes = (graph.constant(node, i).tolist() for i in (1, 2, 3))
    steps = graph.constant(node, 4).tolist() if len(node.input) > 4 else [1]
    graph.want((starts, axes, steps) == ([first], [1], [1]), f"channels that do not begin with {first}")
    graph.want(ends[0] == first + count if count else ends[0] > first, f"other than {count} channels")
    return node.input[0]


@dataclass(frozen=True)
class _Colour:
    """What the upsampler reads instead of the picture where colour is cleaned."""

    maker: str
    border: int  # that the picture is cut by before it is filtered
    numbers: tuple[NDArray[np.float32], ...]

    @property
    def reach(self) -> int:
        return int(self.numbers[0].shape[-1] // 2)


def _colour(graph: _Graph, name: str, phases: int) -> _Colour | None:
    """How colour is cleaned; None where the upsampler reads the picture."""
    maker = graph.makers.get(name)
    if maker is None or maker.op_type != "Add":
        return None
    kernels = {i: graph.linear(i) for i in maker.input}
    filtered = next((i for i in maker.input if kernels[i][1].shape[1:2] == (3,)), "")
    added = next((i for i in maker.input if kernels[i][1].shape == (3, 2, 1, 1)), "")
    graph.want(bool(filtered and added), "colour that is cleaned in another way")
    picture, border = _crop(graph, kernels[filtered][0])
    weight = kernels[filtered][1]
    side = weight.shape[-1]
    graph.want(
        graph.is_image(picture) and weight.shape == (3, 3, side, side) and side % 2 == 1, "another colour filter"
    )
    added_weight = kernels[added][1].reshape(3, 2)
    return _Colour(_channels(graph, kernels[added][0], phases, 0), border, (*_factors(graph, weight), added_weight))


def _factors(graph: _Graph, weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The one filter of a kernel (3, 3, k, k) and the colours it goes to: kernel = identity + mix ⊗ filter."""
    middle = weight.shape[-1] // 2
    rest = weight.astype(np.float64)
    rest[:, :, middle, middle] -= np.eye(3)
    strongest = np.unravel_index(np.square(rest).sum((2, 3)).argmax(), (3, 3))
    taps = rest[strongest]
    mix = np.einsum("oiyx,yx->oi", rest, taps) / max(np.square(taps).sum(), 1e-30)
    error = np.abs(mix[:, :, None, None] * taps - rest).max()
    graph.want(error <= 1e-5, "a colour filter that differs from colour to colour")
    return taps.astype(np.float32), mix.astype(np.float32)


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
    base_input, base = graph.linear(base_name)
    colour = _colour(graph, base_input, phases)
    if colour is None:
        found = _detail(graph, tail, phases)
    else:
        tail, border = _crop(graph, tail)
        found = _Detail(_channels(graph, tail, 0, phases))
        graph.want(found.maker == colour.maker and border == base.shape[2] // 2, "colours of another layer")
        graph.want(border <= MOST_REACH, f"cleaned colours below a base of {base.shape[2]}×{base.shape[2]}")
    name, slope = found.maker, 1.0
    while True:
        name, weight, bias, scale_of = graph.convolution(name)
        graph.want(weight.shape[2:] == (3, 3), f"a convolution of {weight.shape[2]}×{weight.shape[3]}")
        made = weights[-1].shape[1] if weights else phases + (0 if colour is None else 2)
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
    side = base.shape[2]
    if colour is None:
        base_input, border = _crop(graph, base_input)
        reach = (4 if found.back else 0) - side // 2
        graph.want(graph.is_image(base_input), "a base of something else")
    else:
        border, reach = colour.border, -colour.reach
    graph.want(border == len(weights) + reach, "a base that looks elsewhere")
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
        colour=() if colour is None else colour.numbers,
    )
