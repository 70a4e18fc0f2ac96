"""`foveal eval`: quality on benchmark pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["eval"]

DEFAULT_SETS = ["Set5", "Set14"]


def eval(  # noqa: A001  named after the command
    model: Annotated[
        str,
        typer.Argument(
            help="A bundle's name or folder, a model.safetensors, a registered name with shipped weights, or bicubic."
        ),
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Benchmark name or folder of pictures; give it again for more. Set5 and Set14."),
    ] = None,
    scale: Annotated[
        int | None, typer.Option("--scale", "-s", min=1, help="A bundle's own if left out, else 4.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many pictures of each set.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Processor threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """PSNR and SSIM on luminance, without the outermost `scale` pixels: the protocol of published tables.

    \b
    $ foveal eval bicubic --set Set5 --scale 4
    set   scale  pictures  PSNR   SSIM
    Set5  ×4     5         28.43  0.8111
    """  # noqa: D301  \b keeps the transcript's lines apart in the help
    from foveal.cli._tables import console, table
    from foveal.measure.benchmarks import find
    from foveal.measure.quality import evaluate

    try:
        upscale, s = _upscaler(model, scale, threads)
        folders = [Path(name) if Path(name).is_dir() else find(name) for name in sets or DEFAULT_SETS]
        scores = [evaluate(upscale, folder, s, limit=limit) for folder in folders]
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        print(json.dumps({"model": model, "scores": [score.to_json() for score in scores]}, indent=2))
        return
    lines = [(x.name, f"×{x.scale}", str(x.pictures), f"{x.psnr:.2f}", f"{x.ssim:.4f}") for x in scores]
    table(console(), ("set", "scale", "pictures", "PSNR", "SSIM"), lines)


def _upscaler(model: str, scale: int | None, threads: int | None) -> tuple[Callable[..., Any], int]:
    """A function of 8-bit arrays, and its scale."""
    from foveal.measure.quality import bicubic, from_torch

    if model == "bicubic":
        return bicubic(scale or 4), scale or 4
    from foveal.runtime.bundle import SHIPPED

    if (Path(model) / "card.json").is_file() or (SHIPPED / model / "card.json").is_file():
        from foveal.runtime import Upscaler

        whole = Upscaler(model=model, threads=threads)
        upscaler: Callable[..., Any] = whole
        own = whole.scale
    else:
        import torch

        from foveal.models import create_model, load_model

        if threads:
            torch.set_num_threads(threads)
        given: dict[str, Any] = {} if scale is None else {"scale": scale}
        network: Any = (
            load_model(model) if model.endswith(".safetensors") else create_model(model, pretrained=True, **given)
        )
        upscaler, own = from_torch(network), int(network.scale)
    if scale not in (None, own):
        raise ValueError(f"{model} enlarges by {own}, not by {scale}; leave --scale out")
    return upscaler, own
