"""`foveal run`: a classifier's or a dense model's bundle on pictures."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli._options import Json, Threads, stop

if TYPE_CHECKING:
    from foveal.runtime.classify import Classifier

__all__ = ["run"]


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, as `foveal shrink` writes it.")],
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE…", help="Pictures.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="PATH", help="Folder for the maps of a dense model, as PNG files."),
    ] = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="auto, onnxruntime, openvino or torch.")] = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a bundle on pictures: the label and its probability, or a map for a dense model.

    Needs no torch. Pictures are resized, cropped and normalised as the bundle's card says.

    Args:
        bundle: folder of the bundle.
        pictures: pictures.
        out: folder for maps.
        engine: engine; "auto" takes the fastest where the bundle was made.
        threads: processor threads.
        as_json: print one JSON document.

    Raises:
        typer.Exit: no such bundle or engine, or with 1 if a picture could not be read.

    Example:
        $ foveal run bundles/small samples/dogs.png samples/clock.png samples/bridge.png
        samples/dogs.png    horse     0.43
        samples/clock.png   cat       0.42
        samples/bridge.png  airplane  0.63
    """
    from foveal.errors import FovealError
    from foveal.runtime.classify import Classifier

    try:
        model = Classifier(bundle, engine=engine, threads=threads)
    except (FovealError, ValueError) as error:
        stop("run", error)
    if model.note:
        typer.echo(f"foveal run: {model.note}", err=True)
    dense = model.bundle.card.purpose == "dense"
    if dense and out is None:
        stop("run", f"{model.bundle.card.name} makes a map of each picture; name a folder for them with --out")
    found: list[dict[str, Any]] = []
    failed = 0
    for picture in pictures:
        try:
            if dense and out is not None:
                found.append({"picture": str(picture), "map": str(_map(model, picture, out))})
            else:
                found.append({"picture": str(picture), **model(picture).to_dict()})
        except (FovealError, OSError, TypeError, ValueError) as error:
            failed += 1
            typer.echo(f"foveal run: {error}", err=True)
    if as_json:
        print(json.dumps({"bundle": str(bundle), "engine": model.engine.name, "answers": found}, indent=2))
    elif dense:
        for one in found:
            print(f"{one['picture']}  {one['map']}")
    else:
        widths = [max((len(str(one[key])) for one in found), default=0) for key in ("picture", "label")]
        for one in found:
            print(f"{one['picture']:<{widths[0]}}  {one['label']:<{widths[1]}}  {one['probability']:.2f}")
    if failed:
        raise typer.Exit(1)


def _map(model: Classifier, picture: Path, out: Path) -> Path:
    """Write the map of a picture: the class of each pixel, or one channel stretched to black and white."""
    import numpy as np
    from PIL import Image

    made = model.outputs(picture)
    if made.ndim == 3 and len(made) > 1:
        grey = made.argmax(0).astype(np.uint8)
    else:
        plane = made.reshape(made.shape[-2:])
        low, high = float(plane.min()), float(plane.max())
        grey = np.rint(255 * (plane - low) / max(high - low, 1e-12)).astype(np.uint8)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{picture.stem}.png"
    Image.fromarray(grey).save(path)
    return path
