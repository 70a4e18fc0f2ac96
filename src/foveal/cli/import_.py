"""`foveal import`: another tool's model to a bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

__all__ = ["import_"]


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL", help=".pth, .safetensors, .onnx, or the .param of a pair of ncnn.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle's folder.")],
    name: Annotated[str, typer.Option(help="The bundle's name; that of the file without it.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the card.")] = "",
    data: Annotated[str, typer.Option(help="What the weights were trained on, for the card.")] = "",
    scale: Annotated[
        int | None, typer.Option("--scale", "-s", help="Refuse a model of another scale.", show_default=False)
    ] = None,
    colour_range: Annotated[
        str, typer.Option("--range", help="0-1, 0-255 or -1-1: the colours it takes and gives.  [default: measured]")
    ] = "",
    order: Annotated[str, typer.Option("--order", help="rgb or bgr.  [default: measured]")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that stands there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Import another tool's model as a bundle, which `foveal upscale --model` runs.

    Scale, colours, sizes and how far the model looks are measured, so that its tiles meet without a seam. The bundle is
    compared with the model before it is written. From a .pth only weights are read: nothing in it is run.

    Args:
        source: the model.
        out: folder of the bundle.
        name: of the bundle.
        licence: of the weights.
        data: what they were trained on.
        scale: scale expected.
        colour_range: range of the colours.
        order: order of the colours.
        overwrite: replace what stands there.
        as_json: machine-readable.

    Raises:
        typer.Exit: with 2 if the model cannot be imported.

    Example:
        $ foveal import realesr-animevideov3-x2.param -o bundles/anime_x2 --licence BSD-3-Clause
        bundles/anime_x2: ncnn, 619,200 parameters, ×2, RGB 0-1
        tiles: exact, margin 20; beyond it no value changes by more than 9.7e-07
        parity: 0.0e+00; licence: BSD-3-Clause
    """
    from foveal.errors import FovealError
    from foveal.export.foreign import import_model

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        made = import_model(
            source,
            out,
            name=name,
            licence=licence,
            data=data,
            scale=scale,
            colour_range=colour_range,
            order=order,
            overwrite=overwrite,
            tell=(lambda _: None) if as_json else tell,
        )
    except FovealError as error:
        print(f"foveal import: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(made.to_dict(), indent=2))
        return
    card, colours, field = made.card, made.colours, made.field
    ranges = " to ".join(dict.fromkeys((colours.range_in, colours.range_out)))
    orders = " to ".join(dict.fromkeys((colours.order_in.upper(), colours.order_out.upper())))
    print(f"{out}: {card.imported['family']}, {card.parameters:,} parameters, ×{card.scale}, {orders} {ranges}")
    where = (
        "beyond it no value changes by more than"
        if card.tiling == "exact"
        else ("it looks at the whole picture, so tiles are blended; what lies beyond changes a value by up to")
    )
    sides = f", sides in multiples of {card.multiple}" if card.multiple > 1 else ""
    print(f"tiles: {card.tiling}, margin {card.margin}; {where} {field.beyond:.1e}{sides}")
    print(f"parity: {made.parity:.1e}; licence: {card.licence or 'not stated (--licence)'}")
