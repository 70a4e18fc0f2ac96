"""`foveal measure`: cost of a network on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli._options import Json, Threads, stop

if TYPE_CHECKING:
    from torch import nn

    from foveal.measure.cost import Cost

__all__ = ["measure"]


def measure(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A registered name, a model.safetensors, or a bundle's name or folder."),
    ],
    shape: Annotated[
        str, typer.Option(metavar="B,C,H,W", help="Shape of the input: batch, channels, height, width.")
    ] = "1,3,256,256",
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Number of timed runs.")] = 15,
    scale: Annotated[
        int | None,
        typer.Option("--scale", "-s", metavar="N", help="Upscaling factor of a registered name.  [default: its own]"),
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a separate process.")] = True,
    intensity: Annotated[
        bool, typer.Option("--intensity", help="Count multiply-adds per value read or written, by kind of layer.")
    ] = False,
    share: Annotated[
        float | None,
        typer.Option(
            metavar="FLOAT",
            min=0.0,
            max=1.0,
            help="With --intensity: weigh weights by FLOAT, activations by 1 − FLOAT.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count parameters and multiply-adds, and measure time and memory, of one forward pass.

    Networks run in torch, in the form in which they are trained; bundles run in ONNX Runtime, and their multiply-adds
    are not counted.

    Args:
        model: registered name, weights, or bundle.
        shape: shape of the input, four comma-separated numbers.
        threads: processor threads.
        repeats: number of timed runs.
        scale: upscaling factor of a registered name.
        memory: whether to measure peak memory.
        intensity: whether to count multiply-adds per value.
        share: share of the weights in another column of intensities.
        as_json: print one JSON document.

    Raises:
        typer.Exit: an unknown model, a shape that is not four whole numbers, or `--intensity` of a bundle.

    Example:
        $ foveal measure quicksrnet_small --shape 1,3,270,480
        model          quicksrnet_small
        input          1×3×270×480
        parameters     22,860
        multiply-adds  2.949 G
        latency        61.03 ms (quartiles 60.44 to 62.16, 15 calls, 2 threads)
        peak memory    72.1 MiB
    """
    from foveal.runtime.machine import cores

    try:
        sides = tuple(int(side) for side in shape.split(","))
    except ValueError:
        sides = ()
    if len(sides) != 4 or min(sides) < 1:
        stop("measure", f"--shape must be four whole numbers such as 1,3,256,256, got {shape!r}")
    if share is not None and not intensity:
        stop("measure", "--share weighs the values that --intensity counts; give --intensity too")
    try:
        bundle = _is_bundle(model)
        if bundle and intensity:
            stop("measure", f"--intensity counts layers of a torch network, got the bundle {model!r}; name the network")
        network = None if bundle else _network(model, scale)
        cost = _cost(model, network, sides, threads=threads or cores(), repeats=repeats, memory=memory)
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        stop("measure", error)
    if not intensity:
        print(json.dumps(cost.to_json(), indent=2) if as_json else cost.table())
        return
    from foveal.measure.intensity import by_kind, counts, table, total

    assert network is not None  # bundles stop above
    layers = counts(network, sides)
    if as_json:
        found = [item.to_json(share) for item in (*by_kind(layers), total(layers))]
        print(json.dumps({**cost.to_json(), "intensity": found}, indent=2))
    else:
        print(f"{cost.table()}\n\n{table(layers, share)}")


def _is_bundle(model: str) -> bool:
    from foveal.runtime.bundle import SHIPPED

    return (Path(model) / "card.json").is_file() or (SHIPPED / model / "card.json").is_file()


def _network(model: str, scale: int | None) -> nn.Module:
    from foveal.models import create_model, load_model

    given: dict[str, Any] = {} if scale is None else {"scale": scale}
    return load_model(model) if model.endswith(".safetensors") else create_model(model, **given)


def _cost(
    model: str, network: nn.Module | None, shape: tuple[int, ...], *, threads: int, repeats: int, memory: bool
) -> Cost:
    from foveal.measure import cost

    if network is not None:
        return cost.measure(network, shape, threads=threads, repeats=repeats, name=model, memory=memory)
    from foveal.runtime.bundle import Bundle

    bundle = Bundle.load(model)
    return cost.measure_onnx(
        bundle.file("float"),
        shape,
        parameters=bundle.card.parameters,
        threads=threads,
        repeats=repeats,
        name=bundle.card.name,
        memory=memory,
    )
