"""`foveal swap`: a network's layers beside the operators that could stand in for them, timed on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli._named import arguments_of, library_of
from foveal.cli._options import Json, Threads, stop
from foveal.cli._tables import console, table

if TYPE_CHECKING:
    from foveal.shrink.swap.swap import Swapped

__all__ = ["swap"]


def swap(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of foveal, timm or torchvision.")],
    names: Annotated[
        list[str] | None, typer.Option("--try", metavar="NAME", help="An operator, or all; repeat it.  [default: all]")
    ] = None,
    where: Annotated[str | None, typer.Option(metavar="PATTERN", help="Layers, by name, such as 'layer3.*'.")] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="B,C,H,W", help="Shape of the input.  [default: one picture of its own size]")
    ] = None,
    argument: Annotated[
        list[str] | None, typer.Option("--arg", metavar="NAME=VALUE", help="Argument of the model; repeat it.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Time every operator in the place of a network's convolutions and attention, a line per layer.

    Times do not depend on weights, so none are needed. Nothing is written: a recipe of `foveal shrink` with the step
    swap replaces the layers of a trained network where that is faster, and learns again what the operator lacks.

    Args:
        model: name of the model.
        names: operators to try.
        where: pattern of the layers' names.
        shape: shape of the input, four comma-separated numbers.
        argument: arguments of the model.
        threads: processor threads.
        as_json: print one JSON document.

    Raises:
        typer.Exit: an unknown model or operator, or a shape that is not four whole numbers.

    Example:
        $ foveal swap resnet10t --try pconv --where 'layer3.*' --shape 1,3,64,64
        layer           input    now       pconv
        layer3.0.conv1  128×8×8  –         –
        layer3.0.conv2  256×4×4  0.461 ms  0.42
        pconv: faster in 1 of 2 layers
          left: pconv keeps height and width: it needs stride 1, an odd kernel and full padding
    """
    from foveal.errors import FovealError
    from foveal.runtime.machine import cores
    from foveal.shrink.rebuild import Origin, build
    from foveal.shrink.swap.swap import try_all

    sides: tuple[int, ...] | None = None
    if shape is not None:
        try:
            sides = tuple(int(side) for side in shape.split(","))
        except ValueError:
            sides = ()
        if len(sides) != 4 or min(sides) < 1:
            stop("swap", f"--shape must be four whole numbers such as 1,3,224,224, got {shape!r}")
    chosen = [name for name in names or [] if name != "all"]
    try:
        network = build(Origin(library_of(model), model, arguments_of(argument)))
        found = try_all(network, names=chosen, where=where, shape=sides, threads=threads or cores())
    except (FovealError, ValueError, TypeError, RuntimeError) as error:
        stop("swap", error)
    if as_json:
        print(json.dumps(_document(model, found), indent=2))
    else:
        _print(found)


def _document(model: str, found: dict[str, Swapped]) -> dict[str, Any]:
    layers = [
        {
            "layer": line.name,
            "input": list(line.shape),
            "operator": name,
            "faster": line.kept,
            "why": line.why,
            "milliseconds": line.milliseconds,
            "ratio": line.ratio and line.ratio.median,
            "quartiles": line.ratio and [line.ratio.lower, line.ratio.upper],
            "difference": line.difference,
        }
        for name, swapped in found.items()
        for line in swapped.layers
    ]
    return {"model": model, "layers": layers}


def _print(found: dict[str, Swapped]) -> None:
    rows: dict[str, dict[str, str]] = {}
    for name, swapped in found.items():
        for line in swapped.layers:
            row = rows.setdefault(line.name, {"layer": line.name, "input": "×".join(map(str, line.shape[1:]))})
            if line.milliseconds is not None and line.ratio is not None:
                row.setdefault("now", f"{line.milliseconds:.3f} ms")
                row[name] = f"{line.ratio.median:.2f}" + ("" if line.kept else " (not faster)")
    head = ["layer", "input", "now", *found]
    table(console(), head, ([row.get(word, "–") for word in head] for row in rows.values()))
    for name, swapped in found.items():
        print(f"{name}: faster in {swapped.count} of {len(swapped.layers)} layers")
        for why in sorted({line.why for line in swapped.layers if line.ratio is None}):
            print(f"  left: {why}")
