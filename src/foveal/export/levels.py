"""Files and table of a network that is told a level: see `foveal.runtime.levels`.

Everything that differs from level to level is set to numbers that occur nowhere else, and looked for in the file: so
the table knows offsets, and no format but that of raw little-endian floats. In the int8 file all levels share weights
and scales, so a channel's range is the widest of all levels; where it begins is each level's own.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from PIL import Image

from foveal.export import int8 as bytes_of
from foveal.export.onnx import ExportError, eight_bit, to_onnx
from foveal.images.jpeg_level import jpeg_quality
from foveal.runtime.levels import Levels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["GRID", "damaged", "int8_psnr", "place", "write_levels"]

_JPEG = (0.1, 0.15, 0.2, 0.26, 0.33, 0.4, 0.5, 0.62, 0.75, 0.9, 1.1, 1.4, 1.8, 2.4)
_NOISE = (0.25, 0.35, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.3)
# Levels of a bundle: none, JPEGs, noise in colour and in grey, and fine or middling JPEGs with noise.
GRID = (
    (0.0, 0.0, 0.0),
    *((jpeg, 0.0, 0.0) for jpeg in _JPEG),
    *((0.0, noise, colour * noise) for noise in _NOISE for colour in (0, 1)),
    *((jpeg, noise, colour * noise) for jpeg in (0.1, 0.25, 0.6) for noise in (0.35, 0.7, 1.4) for colour in (0, 1)),
)

SHOWN = 8  # pictures that show how far activations go at a level
NOISE_UNIT = 10.0  # levels of 255 that a noise of 1 stands for
GREY_SHARE = 1.5  # how much more is read of grey noise than there is
COMPARED = 7  # every so many levels, bytes are compared with floats


def damaged(
    pictures: Sequence[NDArray[np.uint8]], level: Sequence[float], *, count: int = SHOWN, seed: int = 0
) -> list[NDArray[np.uint8]]:
    """Pictures of a level: with noise, then saved as JPEG.

    Args:
        pictures: clean pictures, (h, w, 3) each.
        level: step of the JPEG's table, noise, and noise of colour.
        count: how many are taken, spread evenly.
        seed: of the noise, and of which ones are taken.

    Returns:
        The pictures, damaged.
    """
    jpeg, noise, colour = level
    rng = np.random.default_rng(seed)
    step = max(1, len(pictures) // count)
    made = list(pictures[seed % step :: step][:count])
    if noise:
        sigma = NOISE_UNIT * noise / (1 if colour else GREY_SHARE)
        grains = [sigma * rng.standard_normal((*one.shape[:2], 3 if colour else 1)) for one in made]
        made = [np.clip(np.rint(one + grain), 0, 255).astype(np.uint8) for one, grain in zip(made, grains, strict=True)]
    return [_saved(one, round(jpeg_quality(jpeg))) for one in made] if jpeg else made


def _saved(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """A picture as it comes back from a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    with Image.open(file) as opened:
        return np.asarray(opened)


def int8_psnr(folder: Path, table: Levels, pictures: Callable[[int], Sequence[NDArray[np.uint8]]]) -> float:
    """Agreement of a bundle's int8 file with its 8-bit file.

    Args:
        folder: folder of the files that `write_levels` wrote.
        table: their table.
        pictures: function from the row of a level to pictures of that level.

    Returns:
        PSNR between the outputs of the two files over some of the levels, in dB.
    """
    errors = []
    for row in range(0, len(table.points), COMPARED):
        made = []
        for kind, name in (("uint8", "model_u8.onnx"), ("int8", "model_int8.onnx")):
            model = onnx.load_from_string(table.at(row, kind, (folder / name).read_bytes()))
            made.append(bytes_of._run(model, pictures(row), [model.graph.output[0].name])[0])
        errors += [np.square(a.astype(float) - b.astype(float)).mean() for a, b in zip(*made, strict=True)]
    return float(10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-6)))


def write_levels(
    model: Any,
    folder: Path,
    levels: Sequence[tuple[float, float, float]] = GRID,
    pictures: Callable[[int], Sequence[NDArray[np.uint8]]] | None = None,
) -> Levels:
    """Write `model.onnx`, `model_u8.onnx` (of a network that enlarges), with pictures `model_int8.onnx`, `levels.npz`.

    Args:
        model: network with `plain(level)`, `margin` and `scale`.
        folder: where the files go.
        levels: levels of the table; the files hold the first.
        pictures: what shows how far activations go at a level, given its row: pictures of that level, as
            `foveal.export.int8.int8` wants them; None for no int8 file.

    Returns:
        The table.

    Raises:
        ExportError: a network whose levels differ in more than constants or not at all, or that has no form of bytes.
    """
    plain = [model.plain(level) for level in levels]
    around = 2 * int(model.margin)
    paths = {"float": folder / "model.onnx", "uint8": folder / "model_u8.onnx", "int8": folder / "model_int8.onnx"}
    to_onnx(plain[0], paths["float"], torch.rand(2, 3, 32 + around, 32 + getattr(model, "multiple", 1) + around))
    enlarges = model.scale > 1
    if enlarges and not eight_bit(paths["float"], paths["uint8"]):
        raise ExportError("a network with levels must have an 8-bit form: one that ends in a depth-to-space")
    states = [{name: value.detach().numpy() for name, value in one.state_dict().items()} for one in plain]
    names = [n for n in states[0] if any(not np.array_equal(s[n], states[0][n]) for s in states)]
    if not names:
        raise ExportError("all levels are alike, so nothing can be told; train it first")
    constants = [{name: state[name] for name in names} for state in states]
    places, values = {}, {}
    for kind in ("float", "uint8") if enlarges else ("float",):
        places[kind], values[kind] = place(paths[kind], onnx.load(paths[kind]), constants)
    if pictures is not None:
        shared, of_levels = _int8(onnx.load(paths["uint8"]), constants, pictures)
        places["int8"], values["int8"] = place(paths["int8"], shared, of_levels)
    table = Levels(np.array(levels, np.float32), places, values)
    table.write(folder / "levels.npz")
    return table


def _put(graph: onnx.GraphProto, constants: dict[str, NDArray]) -> None:
    """Set constants of a graph."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for name, value in constants.items():
        if name not in stored:
            raise ExportError(f"levels differ in {name}, which is no constant of the exported file")
        old = tuple(stored[name].dims)
        if int(np.prod(old)) != value.size:
            raise ExportError(
                f"levels differ in {name}, which is {old} in the exported file and {value.shape} in torch"
            )
        stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32).reshape(old), name))


def place(
    path: Path, model: onnx.ModelProto, constants: Sequence[dict[str, NDArray]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Write a file that holds the first level's constants, and say where they stand in it.

    Args:
        path: file to write.
        model: the file's graph; changed.
        constants: of each level, name → values.

    Returns:
        Offset in bytes and number of floats of each constant, (n, 2), and the numbers of all levels, (L, m).

    Raises:
        ExportError: a constant that is not in the graph, or does not stand in the file once.
    """
    rng = np.random.default_rng(0)
    marks = {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in constants[0].items()}
    _put(model.graph, marks)
    marked = model.SerializeToString()
    places = []
    for name, mark in marks.items():
        at = marked.find(mark.tobytes())
        if at < 0 or marked.find(mark.tobytes(), at + 1) >= 0:
            raise ExportError(f"{path.name}: {name} does not stand in the file once")
        places.append((at, mark.size))
    _put(model.graph, constants[0])
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    values = np.stack([np.concatenate([value.ravel() for value in one.values()]) for one in constants])
    return np.array(places, np.int64).reshape(-1, 2), values.astype(np.float32)


def _int8(
    model: onnx.ModelProto,
    constants: Sequence[dict[str, NDArray]],
    pictures: Callable[[int], Sequence[NDArray[np.uint8]]],
) -> tuple[onnx.ModelProto, list[dict[str, NDArray]]]:
    """The int8 form that all levels share, and each one's constants."""
    sites = bytes_of._sites(model.graph)
    if not sites:
        raise ExportError("no int8 form: that takes a chain of convolutions without padding")
    names = [site.activation.output[0] for site in sites]
    lows, flats, worths = [], [], []
    for row, of_level in enumerate(constants):
        _put(model.graph, of_level)
        shown = pictures(row)
        ranges = bytes_of._run(model, shown, names, bytes_of._limits)
        black = bytes_of._run(model, [np.zeros_like(shown[0])], names, lambda made: made[0, :, 0, 0])
        lows.append([np.min(found, 0)[0] for found in ranges])
        flats.append([flat for (flat,) in black])
        worths.append([np.max(found, 0)[1] - low for found, low in zip(ranges, lows[-1], strict=True)])
    worth = [np.maximum(np.max(of_site, 0), 1e-6) for of_site in zip(*worths, strict=True)]
    made: list[dict[str, NDArray]] = []
    for row in range(len(constants)):
        one = onnx.ModelProto()
        one.CopyFrom(model)
        _put(one.graph, constants[row])
        rounding = {}
        for site, name, low, width, flat in zip(
            bytes_of._sites(one.graph), names, lows[row], worth, flats[row], strict=True
        ):
            rounding[name] = bytes_of._round_site(one.graph, site, low, low + width, flat)
        stored = {t.name: t for t in one.graph.initializer}
        kept = [*constants[0], *(f"{name}_lift" for name in names)]
        made.append({name: np.array(numpy_helper.to_array(stored[name])) for name in kept})
        if row == 0:
            nodes = [n for node in one.graph.node for n in (node, *rounding.get(node.output[0], ()))]
            whole = onnx.GraphProto(node=nodes)
            del one.graph.node[:]
            one.graph.node.extend(whole.node)
            shared = one
    return shared, made
