"""`foveal export`: export a trained network to a bundle."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli._options import Json, stop

if TYPE_CHECKING:
    from foveal.export.bundle import Exported

__all__ = ["export"]


def export(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Folder of a run (foveal train), its model.safetensors, or a registered model's name. "
            "Several runs of one network: the mean of their weights.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="The bundle's folder.")],
    scale: Annotated[int, typer.Option("--scale", "-s", metavar="N", help="1 to 4, for a registered name.")] = 4,
    name: Annotated[str, typer.Option(metavar="NAME", help="The bundle's name.  [default: its folder's]")] = "",
    quality: Annotated[str, typer.Option(metavar="NAME", help="fast, balanced or best, as for foveal upscale.")] = "",
    licence: Annotated[str, typer.Option(metavar="TEXT", help="Licence of the weights, for the card.")] = "",
    trained_on: Annotated[str, typer.Option(metavar="TEXT", help="Training data of the weights, for the card.")] = "",
    int8: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Folder of calibration pictures, e.g. the training set: also writes an int8 file, for engines that "
            "are faster with it.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that exists.")] = False,
    as_json: Json = False,
) -> None:
    """Export a network to a bundle: ONNX with free height and width, checked and timed against torch.

    The bundle is written only if its files agree with torch.

    Args:
        source: run, weights, or registered name; several for the mean of their weights.
        out: folder of the bundle.
        scale: upscaling factor of a registered name.
        name: name of the bundle.
        quality: fast, balanced or best.
        licence: licence of the weights.
        trained_on: training data of the weights, in words.
        int8: folder of calibration pictures for an int8 file.
        overwrite: replace a bundle that exists.
        as_json: print one JSON document.

    Raises:
        typer.Exit: a source or calibration pictures that cannot be used, or a file that does not agree with torch.

    Example:
        $ foveal export runs/fast_x4_1 -o bundles/fast_x4_1 --quality fast
        bundles/fast_x4_1: 21056 parameters, margin 8, 8-bit path yes
        parity with torch: 3.0e-08 at 1×3×17×17, 6.1e-08 at 1×3×19×23, 1.1e-07 at 2×3×80×49
        1×3×256×256, 2 threads: torch 76.0 ms, native 9.1 ms, onnxruntime 24.1 ms
    """
    from foveal.errors import FovealError
    from foveal.export.bundle import export_bundle
    from foveal.runtime.bundle import BundleError

    try:
        model, described = _mean([_load(one, scale) for one in source])
        result = export_bundle(
            model,
            out,
            name=name or out.name,
            quality=quality,
            licence=licence,
            data=trained_on,
            calibration=int8,
            overwrite=overwrite,
            **described,
        )
    except (FovealError, BundleError) as error:
        stop("export", error)
    times = _times(model, result)
    if as_json:
        agreement = [p.to_json() for p in result.parity]
        print(
            json.dumps(
                {"card": result.card, "parity": agreement, "int8_psnr": result.int8_psnr, "milliseconds": times},
                indent=2,
            )
        )
        return
    card = result.card
    fast = "yes" if result.fast_path else "no"
    tiles = f" ({100 * result.within:.1f} % of a pixel's field), tiles overlap" if card["tiling"] == "overlap" else ""
    print(f"{out}: {card['parameters']} parameters, margin {card['margin']}{tiles}, 8-bit path {fast}")
    compared = ", ".join(f"{p.relative:.1e} at {'×'.join(map(str, p.shape))}" for p in result.parity)
    print(f"parity with torch: {compared}")
    if result.int8_psnr is not None:
        print(f"int8: {result.int8_psnr:.1f} dB from the 8-bit file on {int8}")
    print("1×3×256×256, 2 threads: " + ", ".join(f"{n} {t:.1f} ms" for n, t in times.items()))


def _mean(loaded: list[tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
    """The first network with the mean of all weights.

    Fine-tuned networks with the same initial weights lie in one basin, and their mean is often better than each one:
    M. Wortsman et al., "Model soups", ICML 2022 (arXiv:2203.05482).
    """
    import torch

    from foveal.export.deployable import ExportError

    (model, described), *others = loaded
    for _, other in others:
        if other != described:
            raise ExportError(f"weights can be averaged for one network only, got {described} and {other}")
    states = [network.state_dict() for network, _ in loaded]
    # Counters of batch norms are whole numbers, and have no mean.
    whole = {name: value for name, value in states[0].items() if not value.is_floating_point()}
    means = {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0] if name not in whole}
    model.load_state_dict(means | whole)
    return model, described


def _load(source: str, scale: int) -> tuple[Any, dict[str, Any]]:
    """The network and the properties for its card."""
    from safetensors import SafetensorError, safe_open

    from foveal.export.deployable import ExportError

    path = Path(source)
    weights = path / "model.safetensors" if path.is_dir() else path
    if not weights.exists():
        if path.is_dir():
            raise ExportError(f"{path} holds no model.safetensors; has its training ended?")
        return _described(source, scale, {})
    try:
        with safe_open(weights, "pt") as file:
            recipe = json.loads((file.metadata() or {}).get("recipe", "null"))
            state = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{weights} is no file of weights ({error}); give one that foveal train wrote") from error
    if recipe is None:
        raise ExportError(f"{weights} does not say which model it is for; export weights written by foveal train")
    model, described = _described(recipe["model"], recipe["scale"], recipe["arguments"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ExportError(f"{weights} does not fit {recipe['model']}, which it names: {error}") from error
    return model, described


def _described(name: str, scale: int, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A network by its registered name, and the properties for its card."""
    from foveal.export.deployable import ExportError
    from foveal.models import create_model

    try:
        model = create_model(name, scale=scale, **arguments)
    except (TypeError, ValueError) as error:
        raise ExportError(str(error)) from error
    purpose = "restoration" if scale == 1 else "super-resolution"
    return model.eval(), {"model_name": name, "arguments": arguments, "scale": scale, "purpose": purpose}


def _times(model: Any, result: Exported) -> dict[str, float]:
    """Median milliseconds of the network in torch and of the file in every available engine."""
    import numpy as np
    import torch

    from foveal.measure.cost import latency
    from foveal.runtime.engines import EngineUnsupportedError, available, create

    around = 2 * result.card["margin"] if result.card["trims"] else 0
    x = np.random.default_rng(0).random((1, 3, 256 + around, 256 + around), np.float32)
    tensor = torch.from_numpy(x)
    file = result.folder / result.card["files"]["float"]
    with torch.inference_mode():
        times = {"torch": latency(lambda: model(tensor[..., :256, :256]), threads=2).median * 1e3}
    for engine in available():
        if engine != "torch":
            try:
                run = partial(create(engine, file, threads=2).run, x)
            except EngineUnsupportedError:  # it is for other networks
                continue
            times[engine] = latency(run, threads=2).median * 1e3
    return times
