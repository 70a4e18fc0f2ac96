"""`foveal shrink`: a model goes in, a cheaper one comes out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli._network import framing_of, network_of
from foveal.cli._options import Threads, stop

if TYPE_CHECKING:
    from torch import nn

    from foveal.runtime.classify import Framing
    from foveal.shrink.recipe import Shrunk

__all__ = ["shrink"]

DEFAULT = '[[step]]\nname = "prune"\nkeep = 0.7\n[[step]]\nname = "distil"\nsteps = 500\n[[step]]\nname = "quantise"\n'


def shrink(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name of foveal, timm or torchvision, or a folder written here.")
    ],
    data: Annotated[
        str,
        typer.Option("--data", metavar="PATH", help="Folder of data: a folder for each class; or cifar10, imagenette."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Folder of the result.")],
    recipe: Annotated[
        Path | None, typer.Option(metavar="PATH", help="TOML file of steps.  [default: prune, distil, quantise]")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Weights of a named model, .safetensors.")
    ] = None,
    argument: Annotated[
        list[str] | None, typer.Option("--arg", metavar="NAME=VALUE", help="Argument of a named model; repeat it.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="latency=SHARE", help="Search strengths for a share of the untouched model's time."),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(metavar="accuracy=CHANGE", help="Search strengths that lose no more than this: -1.0.")
    ] = None,
    insist: Annotated[bool, typer.Option("--insist", help="Keep steps that make the model slower.")] = False,
    size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Side of the input, pixels.  [default: the model's]")
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="Held-out pictures that quality is measured on.")
    ] = 1000,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures of one call.")] = 1,
    licence: Annotated[str, typer.Option(metavar="TEXT", help="Licence of the weights, for the card.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that stands there.")] = False,
    threads: Threads = None,
) -> None:
    """Make a trained classifier cheaper by a recipe of steps, every one measured on this machine.

    After each step the model is exported and timed in every engine that is installed, in turn with the untouched model
    in its fastest; a step that makes it slower is undone. With --budget or --keep, strengths of the recipe are searched
    by measurement; an interrupted search goes on where it stopped.

    Writes a bundle for `foveal run`, the network for torch (`foveal.shrink.load`), and report.html, .md and .json.

    Args:
        model: name of the model, or a folder written by this command.
        data: folder of class folders, or the name of a set.
        out: folder of the result.
        recipe: TOML file of steps.
        weights: weights of a named model.
        argument: arguments of a named model.
        budget: share of the untouched model's time to reach.
        keep: change of quality that is allowed.
        insist: keep steps that make the model slower.
        size: side of the input.
        limit: number of held-out pictures.
        batch: number of pictures of one call.
        licence: licence of the weights.
        overwrite: replace a result that stands there.
        threads: processor threads.

    Raises:
        typer.Exit: something that cannot be used, a step that cannot be done, or a budget that cannot be met.

    Example:
        $ foveal shrink resnet10t --weights model.safetensors --data cifar10 --recipe recipe.toml -o bundles/small
        untouched: 8.35 ms (onnxruntime fp32), 75.90 points
        Prune(keep=0.5): 2.37 ms (onnxruntime fp32), 0.30 of untouched, -63.20 points
        Distil(teacher=untouched, steps=300): 1.76 ms (onnxruntime fp32), 0.21 of untouched, -3.90 points
        Quantise(): 1.88 ms (onnxruntime int8), 0.23 of untouched, -4.00 points
        bundles/small: 4.39 times as fast as the untouched model in its fastest form, -4.00 points
        next: foveal run bundles/small PICTURE
    """
    from foveal.errors import FovealError
    from foveal.runtime.machine import cores
    from foveal.shrink.bundle import save_bundle
    from foveal.shrink.pictures import labelled, picture_data
    from foveal.shrink.recipe import StepError
    from foveal.shrink.recipe import shrink as run
    from foveal.shrink.search import search
    from foveal.shrink.steps import read_recipe

    count = threads or cores()
    searching = budget is not None or keep is not None
    name = out.name

    def write(shrunk: Shrunk) -> None:
        labels = classes if framing.labels == () else framing.labels
        said = save_bundle(
            shrunk,
            out,
            framing=replace(framing, labels=labels),
            name=name,
            origin=origin,
            licence=licence,
            overwrite=overwrite,
        )
        for line in said:
            typer.echo(f"foveal shrink: {line}", err=True)
        first, last = shrunk.first, shrunk.last
        times = f"{1 / last.untouched.median:.2f} times as fast as the untouched model in its fastest form"
        print(f"{out}: {times}, {last.quality - first.quality:+.2f} {shrunk.data.unit}")

    try:
        share, least = _number("--budget", "latency", budget), _number("--keep", "accuracy", keep)
        if (out / "card.json").exists() and not overwrite:
            stop("shrink", f"{out} holds a result; name another folder, or replace it with --overwrite")
        framing = framing_of(model, data, size)
        pictures = labelled(data, framing, limit=limit)
        network, origin = network_of(
            model, weights, argument or [], [len(pictures.classes), *([1000] * bool(pictures.rows))]
        )
        steps = read_recipe(recipe if recipe is not None else DEFAULT, teachers=_teacher)
        outputs = _outputs(network, framing)
        classes = pictures.classes if outputs == len(pictures.classes) else ()
        given = picture_data(pictures, framing, outputs=outputs)
        tell = lambda line: print(line, flush=True)  # noqa: E731
        if searching:
            out.mkdir(parents=True, exist_ok=True)
            key = f"{model} {weights or ''} {argument or ''} {framing.size}"
            found = search(
                network,
                steps,
                given,
                budget=share,
                keep=least,
                threads=count,
                batch=batch,
                folder=out,
                key=key,
                tell=tell,
            )
            print(f"chosen: {found.point.recipe}")
            write(found.chosen)
        else:
            write(run(network, steps, given, insist=insist, threads=count, batch=batch, tell=tell))
    except StepError as error:
        if error.reached is not None and len(error.reached.stages) > 1:
            write(error.reached)
            stop("shrink", f"{error}; what was reached before it is in {out}")
        stop("shrink", error)
    except (FovealError, ValueError, TypeError) as error:
        stop("shrink", error)
    except KeyboardInterrupt as error:
        reached = getattr(error, "reached", None)
        if reached is not None and len(reached.stages) > 1 and not searching:
            write(reached)
            typer.echo(f"\nstopped; what was reached is in {out}", err=True)
            raise typer.Exit(130) from None
        journal = (out / "journal.jsonl").is_file()
        typer.echo(
            f"\nstopped; {'run the same command again to go on' if journal else 'nothing was written'}", err=True
        )
        raise typer.Exit(130) from None
    print(f"next: foveal run {out} PICTURE")


def _number(option: str, word: str, text: str | None) -> float | None:
    """The number of an option such as latency=0.4."""
    if text is None:
        return None
    found = re.fullmatch(rf"(?:{word}=)?([-+]?\d*\.?\d+)", text)
    if found is None:
        stop("shrink", f"{option} must be {word}=NUMBER, got {text!r}")
    return float(found[1])


def _outputs(network: nn.Module, framing: Framing) -> int:
    import torch

    with torch.no_grad():
        return int(network(torch.zeros(1, 3, *framing.size)).shape[-1])


def _teacher(text: str) -> nn.Module:
    """A teacher of a recipe: a folder written here, or NAME:WEIGHTS."""
    name, _, weights = text.partition(":")
    return network_of(name, Path(weights) if weights else None, [], [10, 1000])[0]
