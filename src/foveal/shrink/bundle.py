"""The folder of a result: a bundle that the light install runs, the network for torch, and the report."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.runtime.card import Card, Purpose
from foveal.shrink.forms import FORMS
from foveal.shrink.rebuild import Origin, save
from foveal.shrink.report import write_report
from foveal.shrink.step import ShrinkError

if TYPE_CHECKING:
    from foveal.runtime.classify import Framing
    from foveal.shrink.recipe import Shrunk

__all__ = ["save_bundle"]


def save_bundle(
    shrunk: Shrunk,
    folder: Path,
    *,
    framing: Framing,
    purpose: Purpose = "classification",
    name: str = "",
    origin: Origin | None = None,
    licence: str = "",
    data: str = "",
    overwrite: bool = False,
) -> list[str]:
    """Write a result: `card.json` and its ONNX files, `torch/` for `foveal.shrink.load`, and the report.

    Args:
        shrunk: result of a recipe.
        folder: folder to write.
        framing: how a picture becomes an input, and the labels; engine and file are filled in.
        purpose: "classification" or "dense".
        name: name of the bundle; "" takes the folder's.
        origin: how the network was built before the first step.
        licence: licence of the weights.
        data: training data of the weights, in words.
        overwrite: replace a bundle that stands there.

    Returns:
        What could not be written and why; empty if nothing.

    Raises:
        ShrinkError: the folder holds a bundle already.
    """
    if (folder / "card.json").exists() and not overwrite:
        raise ShrinkError(f"{folder} holds a bundle; give another folder, or overwrite=True (--overwrite)")
    last = shrunk.last
    form = next(form for form in FORMS if form.name == last.form)
    said: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        place = Path(made)
        given = {"float": shrunk.written.files["float"]}
        int8 = form.file if form.file != "float" else next(iter(shrunk.written.files.keys() - given.keys()), "")
        if int8:  # of several int8 files the fastest
            given["int8"] = shrunk.written.files[int8]
        files = {kind: "model.onnx" if kind == "float" else "model_int8.onnx" for kind in given}
        for kind, path in given.items():
            shutil.copyfile(path, place / files[kind])
        card = Card(
            name=name or folder.name,
            scale=1,
            margin=0,
            trims=False,
            files=files,
            sha256={f: hashlib.sha256((place / f).read_bytes()).hexdigest() for f in files.values()},
            purpose=purpose,
            licence=licence,
            data=data,
            measured={shrunk.data.name: {"quality": last.quality, "unit": shrunk.data.unit}},
            parameters=last.parameters,
            model={"name": origin.name, "arguments": origin.arguments} if origin and origin.library else {},
            batches=False,
        )
        answer = {
            **framing.to_dict(),
            "engine": form.engine,
            "file": "float" if form.file == "float" else "int8",
            "exact": form.exact,
        }
        (place / "card.json").write_text(json.dumps(card.to_dict() | {"answer": answer}, indent=2) + "\n", "utf-8")
        try:
            save(shrunk.model, place / "torch", origin)
        except ShrinkError as error:
            said.append(f"torch/ holds weights alone: {error}")
        write_report(shrunk, place, name=card.name, notes=said)
        for part in place.iterdir():
            target = folder / part.name
            if target.is_dir():
                shutil.rmtree(target)
            for file in (part, *part.rglob("*")):
                file.chmod(0o755 if file.is_dir() else 0o644)
            shutil.move(part, target)
    return said
