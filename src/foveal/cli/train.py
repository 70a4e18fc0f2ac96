"""`foveal train`: a network from a recipe."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.train.loop import Progress


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe, for example recipes/fast_x4_1.toml.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/NAME without it. Resumes what is there.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder of training pictures, instead of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many steps, instead of the recipe's.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int, typer.Option(help="Processor threads; 0 takes all cores.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a network by a recipe; run again to resume where it stopped.

    Writes checkpoint.pt, log.csv and recipe.json while it runs, model.safetensors and log.png at the end. A training
    that is stopped and resumed gives the weights of one that was not.

        $ foveal train recipes/fast_x4_1.toml
        luma_sr_fast ×4 · 20000 steps · cpu, 2 threads · runs/fast_x4_1
        step 500/20000 · loss 0.02713 · 14.2 steps/s · 23 min left
        ...
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
        plan = Recipe.read(recipe, data=data, steps=steps)
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
        typer.echo(f"foveal train: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        kept = place / "checkpoint.pt"
        resume = f"run the same command again to resume from {kept}" if kept.exists() else "nothing was saved yet"
        typer.echo(f"\nstopped; {resume}", err=True)
        raise typer.Exit(130) from None
    if not quiet:
        print(f"done: {place / 'model.safetensors'}\nnext: foveal export {place} -o bundles/{place.name}")


def _device(name: str) -> str:
    """The device asked for; with "auto" the fastest that is here."""
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, found in here.items() if found)
    if not here.get(name.partition(":")[0]):
        found = ", ".join(device for device, is_here in here.items() if is_here)
        typer.echo(f"foveal train: --device must be auto or one that is here ({found}), got {name!r}", err=True)
        raise typer.Exit(2)
    return name


def _reporter() -> Callable[[Progress], None]:
    """A bar on a terminal, a line at every checkpoint in a pipe."""
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
