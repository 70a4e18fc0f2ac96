"""`foveal export`: a trained network to a bundle."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from foveal.export.bundle import Exported


def export(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Folder of a run (foveal train), its model.safetensors, or a registered model's name. "
            "Several runs of one network: the mean of their weights."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle's folder.")],
    scale: Annotated[int, typer.Option("--scale", "-s", help="1 to 4, for a model given by name.")] = 4,
    name: Annotated[str, typer.Option(help="The bundle's name; that of its folder without it.")] = "",
    quality: Annotated[str, typer.Option(help="fast, balanced or best: what --quality finds it by.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "",
    data: Annotated[str, typer.Option(help="What the weights were trained on, for the card.")] = "",
    int8: Annotated[
        Path | None,
        typer.Option(
            help="Folder of calibration pictures, e.g. those of the training: also writes an int8 file, for engines "
            "that are faster with it."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that stands there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Export a network to a bundle: ONNX with free height and width, checked against torch, timed beside it.

    The bundle is written when its files agree with torch, or not at all.

        $ foveal export runs/fast_x4_3 -o bundles/fast_x4 --quality fast
        bundles/fast_x4: 21056 parameters, margin 8, 8-bit path yes
        parity with torch: 1.2e-07 at 1×3×17×17, 1.1e-07 at 1×3×19×23, 1.2e-07 at 2×3×80×49
        1×3×256×256, 2 threads: torch 21.3 ms, onnxruntime 14.0 ms, openvino 15.1 ms
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
            data=data,
            calibration=int8,
            overwrite=overwrite,
            **described,
        )
    except (FovealError, BundleError) as error:
        typer.echo(f"foveal export: {error}", err=True)
        raise typer.Exit(2) from None
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

    Fine-tunings that began from the same weights lie in one valley, and their mean is often better than each of them:
    M. Wortsman et al., "Model soups", ICML 2022 (arXiv:2203.05482).
    """
    import torch

    from foveal.export.deployable import ExportError

    (model, described), *others = loaded
    for _, other in others:
        if other != described:
            raise ExportError(f"weights can be averaged for one network only, got {described} and {other}")
    states = [network.state_dict() for network, _ in loaded]
    model.load_state_dict({name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]})
    return model, described


def _load(source: str, scale: int) -> tuple[Any, dict[str, Any]]:
    """The network and what the card says of it."""
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
    """The network by its name, and what the card says of it."""
    from foveal.export.deployable import ExportError
    from foveal.models import create_model

    try:
        model = create_model(name, scale=scale, **arguments)
    except (TypeError, ValueError) as error:
        raise ExportError(str(error)) from error
    purpose = "restoration" if scale == 1 else "super-resolution"
    return model.eval(), {"model_name": name, "arguments": arguments, "scale": scale, "purpose": purpose}


def _times(model: Any, result: Exported) -> dict[str, float]:
    """Median milliseconds of the network in torch and of the file in every engine that is here."""
    import numpy as np
    import torch

    from foveal.measure.cost import latency
    from foveal.runtime.engines import available, create

    around = 2 * result.card["margin"] if result.card["trims"] else 0
    x = np.random.default_rng(0).random((1, 3, 256 + around, 256 + around), np.float32)
    tensor = torch.from_numpy(x)
    file = result.folder / result.card["files"]["float"]
    with torch.inference_mode():
        times = {"torch": latency(lambda: model(tensor[..., :256, :256]), threads=2).median * 1e3}
    for engine in available():
        if engine != "torch":
            run = partial(create(engine, file, threads=2).run, x)
            times[engine] = latency(run, threads=2).median * 1e3
    return times
