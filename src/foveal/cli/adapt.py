"""`foveal adapt`: a classifier that fails on your pictures, and a small file that mends it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli._network import framing_of, network_of
from foveal.cli._options import Threads, stop

if TYPE_CHECKING:
    from torch import Tensor

    from foveal.runtime.classify import Framing

__all__ = ["adapt"]

MOST = 4 * 2**30  # bytes of the pictures as floats


def adapt(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A name of foveal, timm or torchvision, or a folder of foveal shrink."),
    ],
    data: Annotated[
        str,
        typer.Option("--data", metavar="PATH", help="Folder of data: a folder for each class; or cifar10, imagenette."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="File of the delta, .safetensors.")],
    weights: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Weights of a named model, .safetensors.")
    ] = None,
    argument: Annotated[
        list[str] | None, typer.Option("--arg", metavar="NAME=VALUE", help="Argument of a named model; repeat it.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="auto, head, norm, bias, lora, orthogonal, kadaptation, one-bit, full; "
            "without labels: statistics, rpl.",
        ),
    ] = "auto",
    labels: Annotated[
        str, typer.Option(metavar="N|all|none", help="Labelled pictures of each class to learn from.")
    ] = "all",
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Training steps of each method.")] = 200,
    size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Side of the input, pixels.  [default: the model's]")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Held-out pictures to judge by.")] = 1000,
    fold: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Also write the adapted weights, .safetensors.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of batches and new parameters.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that stand there.")] = False,
    threads: Threads = None,
) -> None:
    """Adapt a trained classifier to your pictures, with labels or without.

    Several methods are tried and judged on pictures that are held out; the smallest of the best is kept, or none if
    the model is as good as it was. New classes give the model a new head. With --labels none the model learns from its
    own answers; a folder without class folders then does too.

    The delta is a file of kilobytes: `foveal.adapt.Delta.load(PATH).fold_(model)` puts it into the model, and the
    function that this returns takes it off again.

    Args:
        model: name of the model, or a folder.
        data: folder of pictures, or the name of a set.
        out: file of the delta.
        weights: weights of a named model.
        argument: arguments of a named model.
        method: name of a method, or auto.
        labels: number of labelled pictures of each class, all, or none.
        steps: number of training steps.
        size: side of the input.
        limit: number of held-out pictures.
        fold: file of the adapted weights.
        seed: seed of everything drawn.
        overwrite: replace files.
        threads: processor threads.

    Raises:
        typer.Exit: something that cannot be used.

    Example:
        $ foveal adapt resnet10t --weights model.safetensors --data mine/ --size 32 --steps 10 -o mine.safetensors
        none: 0.0 kB, 38.5 % right, 0.0 s
        head: 6.2 kB, 100.0 % right, 0.7 s
        norm: 29.6 kB, 100.0 % right, 1.5 s
        lora: 280.8 kB, 30.8 % right, 3.4 s
        mine.safetensors: head, 6.2 kB
    """
    from dataclasses import replace

    import torch

    from foveal.adapt.adapt import adapt as run
    from foveal.adapt.delta import AdaptError
    from foveal.adapt.tune import classifier
    from foveal.errors import FovealError

    if threads:
        torch.set_num_threads(threads)
    try:
        for path in filter(None, (out, fold)):
            if path.exists() and not overwrite:
                stop("adapt", f"{path} exists; name another file, or replace it with --overwrite")
        shots = {"all": None, "none": 0}.get(labels, labels)
        if isinstance(shots, str):
            if not shots.isdigit() or not int(shots):
                raise AdaptError(f"--labels must be a number of at least 1, all or none, got {labels!r}")
            shots = int(shots)
        framing = framing_of(model, data, size)
        inputs, targets, held, classes, rows = _pictures(data, framing, shots, limit)
        network, origin = network_of(model, weights, argument or [], [max(2, len(classes)), 1000, 10])
        if rows is not None and classifier(network)[1].out_features == 1000:  # the classes are some of ImageNet's
            targets, held = targets if targets is None else rows[targets], held and (held[0], rows[held[1]])
            count = None
        else:
            count = len(classes) if targets is not None else None
            if targets is None and len(classes) != classifier(network)[1].out_features:
                held = None  # the folders' classes are others than the model's, so there is nothing to judge by
        found = run(
            network,
            inputs,
            targets,
            method=method,
            num_classes=count,
            steps=steps,
            held=held,
            flip=True,
            seed=seed,
            tell=lambda line: print(line, flush=True),
        )
        if not found.delta.changes:
            print("nothing is better than the model as it was; nothing was written")
            return
        about = {**found.delta.about, "model": f"{origin.library} {origin.name}".strip(), "classes": list(classes)}
        delta = replace(found.delta, about=about)
        out.parent.mkdir(parents=True, exist_ok=True)
        delta.save(out)
        print(f"{out}: {found.method}, {delta.bytes / 1000:,.1f} kB")
        if fold is not None:
            from safetensors.torch import save_file

            delta.fold_(network)
            fold.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}, fold)
            print(f"{fold}: weights of the adapted model")
    except (FovealError, ValueError, TypeError) as error:
        stop("adapt", error)


def _pictures(
    data: str, framing: Framing, shots: int | None, limit: int
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None, tuple[str, ...], Tensor | None]:
    """Inputs, labels, held-out inputs and labels, classes, and their rows in ImageNet; of plain folders the first."""
    import numpy as np
    import torch

    from foveal.adapt.delta import AdaptError
    from foveal.runtime.classify import framed
    from foveal.shrink.pictures import SETS, below, labelled

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (framing.mean, framing.std))

    def normal(pixels: np.ndarray) -> Tensor:
        taken, most = (count / 2**30 for count in (4 * pixels.size, MOST))
        if taken > most:
            raise AdaptError(
                f"{len(pixels):,} pictures of {framing.size[0]}×{framing.size[1]} take {taken:.1f} GiB of "
                f"at most {most:.0f}; learn from fewer with --labels N, or from smaller ones with --size"
            )
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std

    folder = Path(data)
    plain = data not in SETS and folder.is_dir() and not any(path.is_dir() for path in folder.iterdir())
    if plain:
        paths = below(folder)
        if shots != 0:
            raise AdaptError(f"{folder}: no class folders, so no labels; sort the pictures, or give --labels none")
        if not paths:
            raise AdaptError(f"{folder}: no pictures")
        return normal(np.stack([framed(path, framing) for path in paths])), None, None, (), None
    found = labelled(data, framing, limit=limit)
    (pixels, labels), (others, truth) = found.train, found.held
    if shots:
        some = np.concatenate([np.flatnonzero(labels == k)[:shots] for k in range(len(found.classes))])
        pixels, labels = pixels[some], labels[some]
    held = (normal(others), torch.from_numpy(truth))
    rows = torch.tensor(found.rows) if found.rows else None
    return normal(pixels), None if shots == 0 else torch.from_numpy(labels), held, found.classes, rows
