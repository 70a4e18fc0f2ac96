"""Models of other tools to bundles: read, measured, rewritten to RGB in [0, 1], compared with what they were.

One file for each kind of model (`spandrel.py`, `onnx.py`, `ncnn.py`); what a network says nothing of is found by
running it (`sizes.py`, `colours.py`, `field.py`). A bundle is made beside its place and moved there when it is whole.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.export.foreign.colours import ORDERS, RANGES, Colours, find_colours
from foveal.export.foreign.errors import ForeignModelError
from foveal.export.foreign.field import Field, find_field, find_period
from foveal.export.foreign.sizes import Sizes, find_sizes, takes_batches
from foveal.runtime.card import Card
from foveal.runtime.engines import create
from foveal.runtime.machine import cache_folder, cores

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.export.foreign.opened import Opened
    from foveal.export.foreign.sizes import Run

__all__ = ["ForeignModelError", "Imported", "import_model", "imported"]

# Suffix → module of this package and its function.
_READERS = {
    ".pth": ("spandrel", "open_weights"),
    ".pt": ("spandrel", "open_weights"),
    ".ckpt": ("spandrel", "open_weights"),
    ".safetensors": ("spandrel", "open_weights"),
    ".onnx": ("onnx", "open_onnx"),
    ".param": ("ncnn", "open_ncnn"),
    ".bin": ("ncnn", "open_ncnn"),
}
# Part of the cache's key; to be raised when an import would come out differently.
_VERSION = 1
_TOLERANCE = 1e-3  # of values in [0, 1]: a quarter of a level of 8 bits


@dataclass(frozen=True)
class Imported:
    """What an import gave.

    Args:
        folder: the bundle.
        card: its card.
        colours: range and order of the original.
        field: how far it looks.
        parity: largest difference between the bundle and the original, for values in [0, 1].
    """

    folder: Path
    card: Card
    colours: Colours
    field: Field
    parity: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report.

        Returns:
            The card, and what was found.
        """
        c = self.colours
        found = {
            "range": [c.range_in, c.range_out],
            "order": [c.order_in, c.order_out],
            "resemblance_db": c.psnr,
            "beyond_margin": self.field.beyond,
            "parity": self.parity,
        }
        return {"folder": str(self.folder), "card": self.card.to_dict(), "found": found}


def _files(path: Path) -> list[Path]:
    """The files that a model consists of, given one of them."""
    if path.suffix.lower() not in _READERS:
        raise ForeignModelError(
            f"{path}: a model to import must be one of {', '.join(_READERS)}, got "
            f"{path.suffix or 'no suffix'}; convert it"
        )
    if path.suffix.lower() in (".param", ".bin"):
        from foveal.export.foreign.ncnn import pair

        return list(pair(path))
    if not path.is_file():
        raise ForeignModelError(f"{path}: no such file; give the path of a model")
    return [path]


def _hash(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def import_model(
    source: str | Path,
    folder: str | Path,
    *,
    name: str = "",
    licence: str = "",
    data: str = "",
    scale: int | None = None,
    colour_range: str = "",
    order: str = "",
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Imported:
    """Import another tool's model as a bundle.

    Args:
        source: `.pth` or `.safetensors` of an architecture that spandrel knows, `.onnx` from picture to picture, or one
            file of a pair of ncnn, `.param` and `.bin`.
        folder: the bundle's place.
        name: the bundle's name; that of the file by default.
        licence: licence of the weights.
        data: what they were trained on.
        scale: scale that the model is expected to have.
        colour_range: range of the colours, "0-1", "0-255" or "-1-1"; measured by default.
        order: order of the colours, "rgb" or "bgr"; measured by default.
        overwrite: replace a bundle that stands in `folder`.
        tell: function called with a sentence before each step.

    Returns:
        The bundle and what was found.

    Raises:
        ForeignModelError: the file is damaged, unsafe, of an unknown architecture or no model of RGB pictures; its
            scale is not the one expected; the bundle's files compute something else; or something stands in `folder`.
    """
    source, folder = Path(source), Path(folder)
    for word, value, words in (("range", colour_range, RANGES), ("order", order, ORDERS)):
        if value and value not in words:
            raise ForeignModelError(f"{word} must be one of {', '.join(words)}, got {value!r}")
    if folder.exists() and not overwrite:
        raise ForeignModelError(f"{folder} exists; give another place, or overwrite=True (--overwrite) to replace it")
    if folder.exists() and not (folder / "card.json").is_file():
        raise ForeignModelError(f"{folder} is no bundle and is not replaced; give another place")
    files = _files(source)
    name = name or source.stem
    tell(f"reading {source.name}")
    module, function = _READERS[source.suffix.lower()]
    opened: Opened = getattr(import_module(f"{__name__}.{module}"), function)(source)
    tell(f"{opened.family}, {opened.parameters:,} parameters; measuring sizes, colours and field")
    sizes = find_sizes(opened.run, source.name, multiple=opened.multiple, minimum=opened.minimum)
    _check_scale(source.name, sizes.scale, opened.scale, scale)
    colours = _colours(opened, sizes, source.name, colour_range, order)
    run = colours.around(opened.run)
    sizes = replace(sizes, multiple=find_period(run, sizes))
    sizes = replace(sizes, minimum=sizes.up(1))
    field = find_field(run, sizes)
    if sizes.trims:
        if field.margin > sizes.trims:
            raise ForeignModelError(
                f"{source.name}: takes {sizes.trims} pixels off each side and looks {field.margin} far; foveal tiles "
                "such networks only where both are the same; take one that keeps the size"
            )
        field = replace(field, margin=sizes.trims)
    if field.tiling == "overlap":
        field = replace(field, margin=max(1, field.margin))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        place = Path(made) / folder.name
        place.mkdir()
        tell("writing and comparing")
        written = opened.write(place, colours, sizes, field.tiling == "exact")
        engine = create(opened.engine, place / written["float"], cores(), exact=True)
        batches = takes_batches(engine.run, sizes)
        parity = _parity(run, engine.run, sizes, source.name)
        card = Card(
            name=name,
            scale=sizes.scale,
            margin=field.margin,
            trims=sizes.trims > 0,
            tiling=field.tiling,
            multiple=sizes.multiple,
            minimum=sizes.minimum,
            files={str(kind): file for kind, file in written.items()},
            sha256={file.name: _hash_of(file) for file in sorted(place.iterdir())},
            purpose="restoration" if sizes.scale == 1 else "super-resolution",
            licence=licence,
            data=data,
            parameters=opened.parameters,
            batches=batches,
            imported={
                "file": source.name,
                "family": opened.family,
                "sha256": _hash(files),
                "seam": field.beyond,
                "parity": parity,
            },
        )
        (place / "card.json").write_text(card.to_json(), encoding="utf-8")
        for file in place.iterdir():
            file.chmod(0o644)
        if folder.exists():
            folder.rename(Path(made) / "replaced")
        shutil.move(place, folder)
    return Imported(folder, card, colours, field, parity)


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_scale(name: str, found: int, said: int | None, wanted: int | None) -> None:
    if said is not None and said != found:
        raise ForeignModelError(
            f"{name}: its weights say scale {said}, and it enlarges by {found}; the file is damaged"
        )
    if wanted is not None and wanted != found:
        raise ForeignModelError(f"{name}: enlarges by {found}, and --scale asks for {wanted}; leave --scale out")


def _colours(opened: Opened, sizes: Sizes, name: str, colour_range: str, order: str) -> Colours:
    if colour_range and order:
        return Colours(colour_range, colour_range, order, order)
    found = opened.colours or find_colours(opened.run, sizes, name)
    if colour_range:
        found = replace(found, range_in=colour_range, range_out=colour_range)
    if order:
        found = replace(found, order_in=order, order_out=order)
    return found


def _parity(original: Run, written: Run, sizes: Sizes, name: str) -> float:
    """Largest difference between the bundle's file and the original, on two sizes."""
    least = sizes.up(2 * sizes.trims + 1)
    largest = 0.0
    for height, width in ((least, least + sizes.multiple), (least + 2 * sizes.multiple, sizes.up(least + 40))):
        x = np.random.default_rng(height).random((1, 3, height, width), np.float32)
        theirs = np.array(original(x))
        ours = written(x)
        if ours.shape != theirs.shape:
            raise ForeignModelError(
                f"{name}: the bundle makes {ours.shape} where the model makes {theirs.shape}; it cannot be imported"
            )
        largest = max(largest, float(np.abs(ours - theirs).max() / max(1.0, float(np.abs(theirs).max()))))
        if not largest <= _TOLERANCE:
            raise ForeignModelError(
                f"{name}: the bundle differs from the model by {largest:.1e} at {width}×{height}, more than "
                f"{_TOLERANCE}; it cannot be imported"
            )
    return largest


def imported(source: str | Path) -> Path:
    """The bundle of a model in the cache folder, made there at the first call.

    Args:
        source: as for `import_model`.

    Returns:
        The bundle's folder.

    Raises:
        ForeignModelError: as `import_model` does.
    """
    source = Path(source)
    key = _hash(_files(source))[:16]
    folder = cache_folder() / "imported" / f"{source.stem}-{key}-{_VERSION}"
    if not (folder / "card.json").is_file():
        import_model(source, folder)
    return folder
