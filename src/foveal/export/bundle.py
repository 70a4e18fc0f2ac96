"""A trained network to a bundle: ONNX files, weights and the card that says what they are.

The bundle is built in a temporary folder and moved into place once it is complete and its files agree with torch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveal.export.control import write_control
from foveal.export.deployable import ExportError, deployed
from foveal.export.int8 import calibration_pictures, int8
from foveal.export.levels import GRID, damaged, int8_psnr, write_levels
from foveal.export.onnx import Parity, eight_bit, parity, to_onnx
from foveal.measure.cost import count_parameters
from foveal.runtime.card import Card, Purpose

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Exported", "export_bundle"]

LEAST_PSNR = 45.0  # dB; at 31 dB from the original, what lies 45 dB away costs 0.17


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Args:
        folder: the bundle's folder.
        card: the bundle's card.
        parity: agreement with torch, one entry per shape.
        fast_path: whether the 8-bit file exists.
        int8_psnr: PSNR of the int8 file's output against the 8-bit file's on the calibration pictures, in dB; None
            without an int8 file.
        within: estimated share of an output pixel's dependence that lies within the margin of overlapping tiles.
    """

    folder: Path
    card: dict[str, Any]
    parity: list[Parity]
    fast_path: bool
    int8_psnr: float | None = None
    within: float = 1.0


def export_bundle(
    model: nn.Module,
    folder: Path,
    *,
    name: str,
    model_name: str,
    arguments: dict[str, Any] | None = None,
    scale: int = 4,
    purpose: Purpose = "super-resolution",
    quality: str = "",
    licence: str = "",
    data: str = "",
    measured: dict[str, Any] | None = None,
    calibration: Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a picture network, check it against torch, and write the bundle.

    Weights are rounded to half precision, the precision of the bundle's torch weights, so that all its files agree.

    Args:
        model: (B, 3, H, W) to (B, 3, s·H, s·W), RGB in [0, 1].
        folder: folder to write the bundle to.
        name: the bundle's name.
        model_name: registered name that `create_model` knows.
        arguments: keyword arguments for it, besides `scale`.
        scale: s; 1 for a network that restores pictures of the same size.
        purpose: what the network is for, a word of `foveal.runtime.card.PURPOSES`.
        quality: "fast", "balanced", "best" or "".
        licence: licence of the weights.
        data: training data of the weights, in words.
        measured: figures to keep on the card, benchmark name → values.
        calibration: folder of high-resolution calibration pictures; with it an int8 file is written beside the 8-bit
            one, for engines that are faster with int8 than with floats.
        overwrite: replace a bundle that exists in `folder`.

    Returns:
        The bundle and its agreement with torch.

    Raises:
        BundleError: an invalid card, for example with an unknown quality or purpose.
        ExportError: `folder` exists, torch cannot export the network, or the file computes something else; a network
            that has no int8 form, or loses too much by it.
        CalibrationError: no pictures in `calibration`, or none that is large enough.
    """
    from safetensors.torch import save_file

    if folder.exists() and not overwrite:
        raise ExportError(f"{folder} exists; give another place, or overwrite=True (--overwrite) to replace it")
    model = _halved(model)
    form = deployed(model)
    network, multiple = form.network, form.multiple
    around = 2 * form.margin if form.trims else 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        place = Path(made) / folder.name
        place.mkdir()
        least = -(-max(form.minimum - around, 1) // multiple) * multiple
        side = max(32 // multiple * multiple, least)
        psnr, shown = None, None
        if calibration is not None:
            pictures = calibration_pictures(calibration, scale, least=around + 1)
            shown = cache(lambda row: damaged(pictures, GRID[row], seed=row))
        if form.levels:
            grid = getattr(model, "grid", GRID)
            shown = shown if scale > 1 else None  # bytes are for networks that enlarge
            table = write_levels(model, place, grid, pictures=shown)
            psnr = None if shown is None else int8_psnr(place, table, shown)
        else:
            to_onnx(network, place / "model.onnx", torch.rand(2, 3, side + around, side + multiple + around))
        sizes = [(1, least, least), (1, least + 2 * multiple, least + 6 * multiple), (2, 2 * side, side + multiple)]
        shapes = [(n, 3, h + around, w + around) for n, h, w in sizes]
        agreement = parity(network, place / "model.onnx", shapes)
        # Bytes come out as blocks of what a pixel becomes: of one pixel, that saves nothing.
        fast = scale > 1 and (form.levels or eight_bit(place / "model.onnx", place / "model_u8.onnx"))
        files = {"float": "model.onnx"} | ({"uint8": "model_u8.onnx"} if fast else {})
        if calibration is not None:
            if fast and not form.levels:
                psnr = int8(place / "model_u8.onnx", place / "model_int8.onnx", pictures)
            if psnr is None:
                raise ExportError(f"{model_name} has no int8 form: that takes a chain of convolutions without padding")
            if psnr < LEAST_PSNR:
                raise ExportError(
                    f"{model_name}: int8 is only {psnr:.1f} dB from floats on {calibration}, below {LEAST_PSNR}; "
                    "export without --int8"
                )
            files["int8"] = "model_int8.onnx"
        levels = "levels.npz" if form.levels else ""
        control = write_control(model, form.controls, place) if form.controls else ()
        hashed = [*files.values(), *filter(None, [levels]), *control]
        # What `create_model(..., pretrained=True)` needs; the run's folders are private.
        described = json.dumps({"model": model_name, "scale": scale, "arguments": arguments or {}})
        tensors = {n: (t.half() if t.is_floating_point() else t).contiguous() for n, t in model.state_dict().items()}
        save_file(tensors, place / "model.safetensors", metadata={"recipe": described})
        card = Card(
            name=name,
            scale=scale,
            margin=form.margin,
            trims=form.trims,
            tiling=form.tiling,
            multiple=multiple,
            minimum=form.minimum,
            files=files,
            sha256={f: hashlib.sha256((place / f).read_bytes()).hexdigest() for f in hashed},
            purpose=purpose,
            quality=quality,
            licence=licence,
            data=data,
            measured=measured or {},
            parameters=count_parameters(network),
            model={"name": model_name, "arguments": arguments or {}},
            equivariant=form.equivariant,
            levels=levels,
            control=control[0] if control else "",
            overshoot=form.overshoot,
        )
        (place / "card.json").write_text(card.to_json(), encoding="utf-8")
        for file in place.iterdir():
            file.chmod(0o644)
        if folder.exists():
            folder.rename(Path(made) / "replaced")
        shutil.move(place, folder)
    return Exported(folder, card.to_dict(), agreement, fast, psnr, form.within)


@torch.no_grad()
def _halved(model: nn.Module) -> nn.Module:
    """A copy whose parameters are rounded to half precision."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.copy_(parameter.half())
    return model
