"""One knob between two networks of the same shape: as faithful as possible, or as natural as possible.

A network that was trained for PSNR returns the mean of what may have been there, which is smooth; one that was trained
on from it for looks returns one of the pictures that may have been there. No network has the best of both (Y. Blau and
T. Michaeli, CVPR 2018), and the weights between the two,

    w(p) = (1 - p)·w_faithful + p·w_natural,   0 ≤ p ≤ 1,

walk the curve (X. Wang et al., "ESRGAN", 2018, section 3.4), at the time of one network. Here they are mixed in the
ONNX files, constant by constant. A file that computes in bytes inside has no mean with another one, and is left out.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime.bundle import Bundle, available
from foveal.runtime.card import BundleError
from foveal.runtime.machine import cache_folder

if TYPE_CHECKING:
    from foveal.runtime.engines import FileKind

__all__ = ["NATURAL", "between", "checked_perception", "looking"]

NATURAL = "vivid"  # a bundle of this name, and _x4, is the twin of the balanced one for looks


def checked_perception(perception: float) -> float:
    """Check a share of looks.

    Args:
        perception: p.

    Returns:
        p.

    Raises:
        ValueError: p outside [0, 1].
    """
    if not 0 <= perception <= 1:
        raise ValueError(f"perception must be in [0, 1], got {perception:g}; 0 is for PSNR, 1 for looks")
    return float(perception)


def looking(bundle: Bundle, perception: float) -> Bundle:
    """A shipped bundle, moved towards its twin for looks.

    Args:
        bundle: bundle of quality "balanced".
        perception: p, in [0, 1]; 0 gives the bundle itself.

    Returns:
        The bundle between the two.

    Raises:
        BundleError: the bundle has no twin.
    """
    if not perception:
        return bundle
    twins = {b.card.scale: b for b in available() if b.card.name.startswith(f"{NATURAL}_x")}
    twin = twins.get(bundle.card.scale)
    if twin is None or bundle.card.quality != "balanced":
        there = ", ".join(str(scale) for scale in sorted(twins)) or "none"
        raise BundleError(
            f"perception={perception:g} needs a twin trained for looks, and {bundle.card.name} has none; there are "
            f"twins of the balanced networks of scale {there}"
        )
    return twin if perception == 1 else between(bundle, twin, perception)


def between(first: Bundle, second: Bundle, share: float, folder: Path | None = None) -> Bundle:
    """A network whose weights lie between those of two others of the same shape.

    Args:
        first: bundle at 0.
        second: bundle at 1.
        share: p, in [0, 1].
        folder: folder that the bundle is kept in; foveal's cache by default.

    Returns:
        The bundle, without a file that computes in bytes inside.

    Raises:
        BundleError: networks of different shape.
    """
    from onnx import load

    one, other = first.card, second.card
    for word in ("scale", "margin", "trims", "multiple", "purpose", "overshoot", "levels", "control"):
        if getattr(one, word) != getattr(other, word):
            raise BundleError(
                f"{one.name} and {other.name} cannot be mixed: {word} is {getattr(one, word)} and "
                f"{getattr(other, word)}; take two networks of one shape"
            )
    both: tuple[FileKind, ...] = ("float", "uint8")
    kinds = [kind for kind in both if kind in one.files and kind in other.files]
    name = f"{one.name}_to_{other.name}_{share:g}"
    place = (folder or cache_folder() / "between") / f"{name}_{first.fingerprint}_{second.fingerprint}"
    if (place / "card.json").is_file():
        return Bundle.load(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place.parent))
    try:
        hashes = {}
        for kind in kinds:
            model = _mixed(load(first.file(kind)), load(second.file(kind)), share, f"{one.name} and {other.name}")
            data = model.SerializeToString()
            (made / one.files[kind]).write_bytes(data)
            hashes[one.files[kind]] = hashlib.sha256(data).hexdigest()
        card = replace(
            one, name=name, files={kind: one.files[kind] for kind in kinds}, sha256=hashes, quality="", measured={},
            model={}, data=[*_lines(one.data), *_lines(other.data)],
        )  # fmt: skip
        (made / "card.json").write_text(card.to_json(), encoding="utf-8")
        made.rename(place)  # whole or not at all
    except OSError:
        if not (place / "card.json").is_file():  # another process was faster
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Bundle.load(place)


def _lines(text: str | list[str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text)


def _mixed(first: Any, second: Any, share: float, names: str) -> Any:
    """The first graph, with constants between those of both."""
    from onnx import AttributeProto, numpy_helper

    def different(what: str) -> BundleError:
        return BundleError(f"{names} cannot be mixed: {what}; take two networks of one shape")

    nodes = [[(n.op_type, list(n.input), list(n.output)) for n in m.graph.node] for m in (first, second)]
    if nodes[0] != nodes[1]:
        raise different("their graphs differ")
    theirs = {t.name: numpy_helper.to_array(t) for t in second.graph.initializer}
    for tensor in first.graph.initializer:
        mine = numpy_helper.to_array(tensor)
        other = theirs.get(tensor.name)
        if other is None or other.shape != mine.shape or other.dtype != mine.dtype:
            raise different(f"{tensor.name} differs in shape")
        if np.array_equal(mine, other):
            continue
        if mine.dtype.kind != "f":
            raise different(f"{tensor.name} is no number between others")
        value = ((1 - share) * mine.astype(np.float64) + share * other.astype(np.float64)).astype(mine.dtype)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for mine_node, other_node in zip(first.graph.node, second.graph.node, strict=True):
        for mine_word, other_word in zip(mine_node.attribute, other_node.attribute, strict=True):
            if mine_word.type == AttributeProto.FLOAT and mine_word.name == other_word.name:
                mine_word.f = (1 - share) * mine_word.f + share * other_word.f
            elif mine_word != other_word:
                raise different(f"{mine_word.name} of {mine_node.op_type} differs")
    return first
