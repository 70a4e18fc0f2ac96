"""ncnn's pairs, `.param` and `.bin`, as Upscayl and its relatives use them.

A `.param` is text: a magic number, the counts of layers and blobs, then a layer a line: type, name, number of inputs
and outputs, their blobs, and parameters `key=value`. The `.bin` holds the weights in the order of the layers. Range and
order of colours are corrected by layers without weights, so the `.bin` stays as it is.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveal.export.foreign.colours import RANGES
from foveal.export.foreign.errors import ForeignModelError, require
from foveal.export.foreign.opened import Opened

if TYPE_CHECKING:
    from pathlib import Path

    from foveal.export.foreign.colours import Colours
    from foveal.export.foreign.sizes import Sizes
    from foveal.runtime.engines import FileKind

__all__ = ["Layer", "open_ncnn", "pair", "read_param", "recoloured"]

_MAGIC = "7767517"
# Layers whose parameter 6 counts their weights.
_WEIGHTED = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
_MULTIPLY, _ADD = 2, 0  # operations of BinaryOp


@dataclass(frozen=True)
class Layer:
    """A line of a `.param`.

    Args:
        kind: type of the layer.
        name: its name.
        inputs: blobs that it reads.
        outputs: blobs that it writes.
        parameters: the rest of the line.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = (str(len(self.inputs)), str(len(self.outputs)))
        return " ".join([self.kind, self.name, *counts, *self.inputs, *self.outputs, *self.parameters])


def pair(path: Path) -> tuple[Path, Path]:
    """Both files of a pair.

    Args:
        path: path of one of them.

    Returns:
        The `.param` and the `.bin`.

    Raises:
        ForeignModelError: one of them is not there.
    """
    param, weights = path.with_suffix(".param"), path.with_suffix(".bin")
    for one, other in ((param, weights), (weights, param)):
        if not one.is_file():
            raise ForeignModelError(
                f"{other}: a model of ncnn is a pair of files, and {one.name} is not beside it; copy it there"
            )
    return param, weights


def read_param(path: Path) -> list[Layer]:
    """The layers of a `.param`, each of which reads only what stands above it.

    Args:
        path: path of the file.

    Returns:
        The layers.

    Raises:
        ForeignModelError: it is no such text, or its lines do not fit together.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        magic, counts, *rest = [line.split() for line in lines if line.strip()]
        if magic != [_MAGIC]:
            raise ValueError(f"begins with {' '.join(magic)[:40]!r} instead of {_MAGIC}")
        layers: list[Layer] = []
        made: set[str] = set()
        for words in rest:
            kind, name, count_in, count_out = words[0], words[1], int(words[2]), int(words[3])
            blobs = words[4 : 4 + count_in + count_out]
            if len(blobs) != count_in + count_out or min(count_in, count_out) < 0:
                raise ValueError(f"layer {name} lacks blobs")
            layer = Layer(kind, name, tuple(blobs[:count_in]), tuple(blobs[count_in:]), tuple(words[4 + len(blobs) :]))
            if unknown := [blob for blob in layer.inputs if blob not in made]:
                raise ValueError(f"layer {name} reads {unknown[0]}, which no layer above it makes")
            if twice := [blob for blob in layer.outputs if blob in made]:
                raise ValueError(f"blob {twice[0]} is made twice")
            made.update(layer.outputs)
            layers.append(layer)
        if [len(layers), len(made)] != [int(count) for count in counts]:
            raise ValueError(f"states {' '.join(counts)} layers and blobs and holds {len(layers)} and {len(made)}")
    except (ValueError, IndexError) as error:
        raise ForeignModelError(
            f"{path}: is no .param of ncnn ({error}); give the text form, as converters write it"
        ) from error
    return layers


def _ends(layers: list[Layer], name: str) -> tuple[str, str]:
    """The one blob that goes in and the one that comes out."""
    inputs = [layer.outputs for layer in layers if layer.kind == "Input"]
    read = {blob for layer in layers for blob in layer.inputs}
    outputs = [blob for layer in layers for blob in layer.outputs if blob not in read]
    if len(inputs) != 1 or len(inputs[0]) != 1 or len(outputs) != 1:
        raise ForeignModelError(
            f"{name}: takes {len(inputs)} inputs and gives {len(outputs)} outputs; only models from one picture to one "
            "picture are imported"
        )
    return inputs[0][0], outputs[0]


def _steps(blob: str, out: str, word: str, low_high: tuple[float, float], swap: bool, *, back: bool) -> list[Layer]:
    """Layers that bring a blob from [0, 1] to a range, or back, and reverse its channels."""
    low, high = low_high
    span = high - low
    todo: list[tuple[str, tuple[float, ...]]] = []
    if span != 1:
        todo.append(("mul", (1 / span if back else span,)))
    if low != 0:
        todo.append(("add", (-low / span if back else low,)))
    if swap:
        todo.append(("swap", ()))
    layers: list[Layer] = []
    for index, (what, values) in enumerate(todo):
        made = out if index == len(todo) - 1 else f"{word}_{index}"
        if what == "swap":
            parts = tuple(f"{word}_{colour}" for colour in "bgr")
            layers.append(Layer("Slice", f"{word}_slice", (blob,), parts, ("-23300=3,1,1,1", "1=0")))
            layers.append(Layer("Concat", f"{word}_concat", parts[::-1], (made,), ("0=0",)))
        else:
            operation = _MULTIPLY if what == "mul" else _ADD
            parameters = (f"0={operation}", "1=1", f"2={values[0]:.9e}")
            layers.append(Layer("BinaryOp", f"{word}_{what}", (blob,), (made,), parameters))
        blob = made
    return layers


def recoloured(layers: list[Layer], colours: Colours, name: str) -> list[Layer]:
    """The same network, taking and giving RGB in [0, 1].

    Args:
        layers: network in its own colours.
        colours: these colours.
        name: name of the model, for messages.

    Returns:
        The layers, with some before and behind.
    """
    first, last = _ends(layers, name)
    before = _steps("foveal_rgb", first, "foveal_in", RANGES[colours.range_in], colours.order_in == "bgr", back=False)
    after = _steps(
        last, "foveal_out_rgb", "foveal_out", RANGES[colours.range_out], colours.order_out == "bgr", back=True
    )
    made = []
    for layer in layers:
        if layer.kind == "Input" and before:
            made += [Layer("Input", layer.name, (), ("foveal_rgb",)), *before]
        else:
            made.append(layer)
    return made + after


def open_ncnn(path: Path) -> Opened:
    """Read a pair.

    Args:
        path: path of one of the two files.

    Returns:
        The model.

    Raises:
        ForeignModelError: a file is missing or damaged, or a layer is not one of ncnn's own.
    """
    param, weights = pair(path)
    require(path, "ncnn", "ncnn")
    layers = read_param(param)
    _ends(layers, path.name)
    import ncnn

    if unknown := sorted({layer.kind for layer in layers if ncnn.layer_to_index(layer.kind) < 0}):
        raise ForeignModelError(
            f"{param}: layers of type {', '.join(unknown)} are not ncnn's own, and foveal runs no other; convert the "
            "model without them"
        )
    from foveal.runtime.engines import create
    from foveal.runtime.errors import EngineError
    from foveal.runtime.machine import cores

    try:
        engine = create("ncnn", param, cores(), exact=True)
    except EngineError as error:
        raise ForeignModelError(f"{param}: {error}; the pair is damaged or of another version of ncnn") from error

    def write(folder: Path, colours: Colours, sizes: Sizes, exact: bool) -> dict[FileKind, str]:  # noqa: ARG001
        made = layers if colours.usual else recoloured(layers, colours, path.name)
        count = sum(len(layer.outputs) for layer in made)
        text = "\n".join([_MAGIC, f"{len(made)} {count}", *map(str, made)]) + "\n"
        (folder / "model.param").write_text(text, encoding="utf-8")
        shutil.copyfile(weights, folder / "model.bin")
        return {"float": "model.param"}

    words = [word for layer in layers if layer.kind in _WEIGHTED for word in layer.parameters]
    counts = [int(word[2:]) for word in words if word.startswith("6=")]
    return Opened("ncnn", engine.run, write, "ncnn", sum(counts))
