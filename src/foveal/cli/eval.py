"""`foveal eval`: PSNR and SSIM on benchmark pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli._options import Benchmarks, Json, Threads, data_folder, stop

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["eval"]

DEFAULT_SETS = ["Set5", "Set14"]


def eval(  # noqa: A001  named after the command
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A bundle's name or folder, a model.safetensors, a registered name with shipped weights, bicubic, or "
            "restore for what foveal restore does.",
        ),
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME|PATH",
            help="Benchmark set or folder of pictures; repeat it for more.  [default: Set5, Set14]",
        ),
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option("--scale", "-s", metavar="N", min=1, help="Upscaling factor.  [default: the model's, else 4]"),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most N pictures of each set.")] = None,
    fix: Annotated[
        str, typer.Option("--fix", metavar="auto|NAMES", help="Of restore: what to repair, as of foveal restore.")
    ] = "auto",
    damage: Annotated[
        list[str] | None,
        typer.Option(
            "--damage",
            metavar="NAME[=N]",
            help="Of restore: what is done to the pictures, such as noise=25, jpeg=20 or rain; repeat it for more.",
        ),
    ] = None,
    data: Benchmarks = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """PSNR and SSIM on luminance, without the outermost `scale` pixels: the protocol of published tables.

    A plain folder of pictures is reduced with the benchmarks' bicubic and compared with the originals.

    foveal eval restore damages the pictures instead, by the degradations of foveal.train.restore.bank, and restores
    them at their own size: PSNR of RGB and SSIM of luminance before and after, how many pictures came out worse, and
    seconds a megapixel. A strength that is not given is drawn for each picture by a fixed seed; "+" stands between
    degradations that follow one another, as in dark=0.1+jpeg=40.

    Args:
        model: bundle, weights, registered name, or bicubic.
        sets: benchmark sets or folders of pictures.
        scale: upscaling factor.
        limit: largest number of pictures of each set.
        fix: of restore, what to repair.
        damage: of restore, what is done to the pictures.
        data: folder of benchmark sets.
        threads: processor threads.
        as_json: print one JSON document.

    Raises:
        typer.Exit: an unknown model or set, or a scale that the model does not have.

    Example:
        $ foveal eval bicubic --set samples --scale 4
        set      scale  pictures  PSNR   SSIM
        samples  ×4     4         28.31  0.7763

        $ foveal eval restore --fix noise --damage noise=25 --set samples
        set      damage    pictures  PSNR   restored  gain    SSIM    restored  worse  s/MP
        samples  noise=25  4         20.51  31.61     +11.10  0.4941  0.9149    0      0.61
    """
    from foveal.cli._eval_restore import eval_restore
    from foveal.cli._tables import console, table
    from foveal.measure.quality import evaluate

    try:
        with data_folder("eval", data):
            if model == "restore":
                if scale is not None:
                    raise ValueError(f"restore keeps the size of a picture, and --scale asks for {scale}; leave it out")
                folders = _folders(sets)
                eval_restore(folders, fix=fix, damages=damage or [], limit=limit, threads=threads, as_json=as_json)
                return
            if damage or fix != "auto":
                raise ValueError(f"--fix and --damage are of restore, and {model} enlarges; say foveal eval restore")
            upscale, s = _upscaler(model, scale, threads)
            folders = _folders(sets)
        scores = [evaluate(upscale, folder, s, limit=limit) for folder in folders]
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        stop("eval", error)
    if as_json:
        print(json.dumps({"model": model, "scores": [score.to_json() for score in scores]}, indent=2))
        return
    lines = [(x.name, f"×{x.scale}", str(x.pictures), f"{x.psnr:.2f}", f"{x.ssim:.4f}") for x in scores]
    table(console(), ("set", "scale", "pictures", "PSNR", "SSIM"), lines)


def _folders(sets: list[str] | None) -> list[Path]:
    from foveal.measure.benchmarks import find

    return [Path(name) if Path(name).is_dir() else find(name) for name in sets or DEFAULT_SETS]


def _upscaler(model: str, scale: int | None, threads: int | None) -> tuple[Callable[..., Any], int]:
    """Function of 8-bit arrays that upscales, and its scale."""
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
