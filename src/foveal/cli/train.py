"""`foveal train`: train a network by a recipe."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli._options import Threads, stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.train.loop import Progress

__all__ = ["train"]


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML file, for example recipes/fast_x4_1.toml.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="PATH", help="Folder of the run, resumed if it exists.  [default: runs/NAME]"
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder of data: training pictures, instead of the recipe's.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Number of steps, instead of the recipe's.")] = None,
    loss: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Loss, instead of the recipe's: l1, luma_root, ms-ssim, perceptual, …"),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = "auto",
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Train a network by a recipe; run the command again to resume an interrupted training.

    Writes checkpoint.pt, log.csv and recipe.json during training, model.safetensors and log.png at the end. An
    interrupted and resumed training gives the same weights as an uninterrupted one.

    Args:
        recipe: TOML file of the recipe.
        out: folder of the run; None for runs/NAME.
        data: folder of training pictures, instead of the recipe's.
        steps: number of steps, instead of the recipe's.
        loss: name of the loss, instead of the recipe's.
        device: device to train on; "auto" takes the fastest.
        threads: processor threads.
        quiet: print nothing but errors.

    Raises:
        typer.Exit: an invalid recipe or device, a training that cannot run, or an interruption.

    Example:
        $ foveal train recipes/fast_x4_1.toml --data photos --steps 5
        luma_sr_fast ×4 · 5 steps · cpu, 2 threads · runs/fast_x4_1
        step 5/5 · loss 0.02438 · 13.1 steps/s · 0 s left
        done: runs/fast_x4_1/model.safetensors
        next: foveal export runs/fast_x4_1 -o bundles/fast_x4_1
    """
    import torch

    from foveal.errors import FovealError
    from foveal.runtime.bundle import BundleError
    from foveal.train.restore.fit import fit
    from foveal.train.restore.recipe import Recipe

    place = out or Path("runs") / recipe.stem
    try:
        plan = Recipe.read(recipe, data=data, steps=steps, loss=loss)
        if threads:
            torch.set_num_threads(threads)
        device = _device(device)
        model = plan.build()
        if not quiet:
            where = f"{device}, {torch.get_num_threads()} threads" if device == "cpu" else device
            print(f"{plan.model} ×{plan.scale} · {plan.steps} steps · {where} · {place}", flush=True)
        say = None if quiet else functools.partial(print, flush=True)
        fit(model, plan, place, device=device, report=None if quiet else _reporter(), say=say)
    except (FovealError, BundleError) as error:
        stop("train", error)
    except KeyboardInterrupt:
        kept = place / "checkpoint.pt"
        resume = f"run the same command again to resume from {kept}" if kept.exists() else "nothing was saved yet"
        typer.echo(f"\nstopped; {resume}", err=True)
        raise typer.Exit(130) from None
    if not quiet:
        print(f"done: {place / 'model.safetensors'}\nnext: foveal export {place} -o bundles/{place.name}")


def _device(name: str) -> str:
    """The requested device; for "auto" the fastest one available."""
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, found in here.items() if found)
    if not here.get(name.partition(":")[0]):
        found = ", ".join(device for device, is_here in here.items() if is_here)
        stop("train", f"--device must be auto or one of this machine's ({found}), got {name!r}")
    return name


def _reporter() -> Callable[[Progress], None]:
    """Progress as one updated line on a terminal, as separate lines in a pipe."""
    terminal = sys.stderr.isatty()
    last = [0]

    def report(p: Progress) -> None:
        quality = "" if p.quality is None else f" · {p.quality:.2f} dB"
        minutes = f"{p.left / 60:.0f} min left" if p.left >= 90 else f"{p.left:.0f} s left"
        text = f"step {p.step}/{p.steps} · loss {p.loss:.5f}{quality} · {p.rate:.1f} steps/s · {minutes}"
        done = p.step == p.steps
        if terminal:
            print(f"\r\x1b[K{text}", end="\n" if done or quality else "", file=sys.stderr, flush=True)
        elif done or quality or p.step - last[0] >= max(1, p.steps // 40):
            last[0] = p.step
            print(text, flush=True)

    return report
