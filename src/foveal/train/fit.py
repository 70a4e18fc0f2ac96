"""The training loop, read from top to bottom.

A batch depends on seed and step only, and a checkpoint holds everything else that changes (weights, their running
average, the optimisers), so a training that was stopped and resumed ends with the same weights, bit for bit, as one
that was not.
"""

from __future__ import annotations

import csv
import ctypes
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from foveal.measure.quality import evaluate, from_torch
from foveal.train.losses import LOSSES, LUMINANCE, luminance
from foveal.train.muon import Muon
from foveal.train.pairs import Pairs
from foveal.train.recipe import Recipe
from foveal.train.refit import refit

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["CheckpointError", "Progress", "fit", "learning_rate", "validate"]


class CheckpointError(RuntimeError):
    """A checkpoint that does not belong to this training or cannot be read."""


@dataclass(frozen=True)
class Progress:
    """What is known after a step.

    Args:
        step: steps done.
        steps: steps in all.
        loss: mean since the last report.
        rate: steps per second since the training began or resumed.
        left: seconds left at that rate.
        psnr: on the validation pictures, dB; None when it was not measured at this step.
    """

    step: int
    steps: int
    loss: float
    rate: float
    left: float
    psnr: float | None = None


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Share of the peak step size: a straight rise, then half a cosine down to 0.

    Args:
        step: from 0.
        steps: in all.
        warmup: steps of the rise.

    Returns:
        A number in [0, 1].
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for kernels, Adam for the rest; a parameter named in `model.linear` is not a hidden kernel: Adam's too."""
    linear = set(getattr(model, "linear", ()))
    kernels = [p for n, p in model.named_parameters() if p.ndim >= 2 and n not in linear]
    if recipe.optimizer == "adam" or not kernels:
        return [torch.optim.Adam(model.parameters(), lr=recipe.lr, betas=(0.9, 0.99))]
    rest = [p for n, p in model.named_parameters() if p.ndim < 2 or n in linear]
    muon = Muon(kernels, lr=recipe.muon_lr)
    return [muon, torch.optim.Adam(rest, lr=recipe.lr, betas=(0.9, 0.99))] if rest else [muon]


def _tensors(batch: tuple[np.ndarray, ...], device: torch.device, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """uint8 (B, H, W, 3) pictures to channels-last float tensors (B, 3, H, W) in [0, 1]: what is given and wanted."""
    low, high, *taught = (torch.from_numpy(a).to(device).permute(0, 3, 1, 2).float().div_(255) for a in batch)
    return low, high.lerp_(taught[0], recipe.teacher_share) if taught else high


def _objective(model: nn.Module, recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    """The recipe's loss of a batch, low and high resolution; networks that can make luminance alone are asked to."""
    loss = LOSSES[recipe.loss]
    if not recipe.loss.startswith("luma"):
        return lambda low, high: loss(model(low).float(), high)
    alone = getattr(model, "luminance", None)
    if alone is None:
        return lambda low, high: loss(luminance(model(low).float()), luminance(high))
    return lambda low, high: loss(alone(low, LUMINANCE.to(low)).float(), luminance(high))


def _precision(model: nn.Module, recipe: Recipe, batch: tuple[Tensor, Tensor]) -> str:
    """The faster of fp32 and bf16 autocast for one forward and backward pass here, timed in turn."""
    if recipe.precision != "auto":
        return recipe.precision
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(3):
        for name, taken in times.items():
            begun = time.perf_counter()
            with _autocast(name, batch[0].device):
                loss = F.l1_loss(model(batch[0]), batch[1])
            loss.backward()
            taken.append(time.perf_counter() - begun)
    model.zero_grad()
    return min(times, key=lambda name: min(times[name]))


def _autocast(precision: str, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def validate(model: nn.Module, folder: Path, scale: int) -> float:
    """Mean luminance PSNR over a folder of pictures, each reduced and enlarged again.

    Args:
        model: (1, 3, H, W) to (1, 3, s·H, s·W) in [0, 1].
        folder: pictures, not in subfolders.
        scale: s; as many pixels are cut off at the border.

    Returns:
        dB.
    """
    return evaluate(from_torch(model), folder, scale, structure=False).psnr


def _keep_memory() -> None:
    """Ask glibc not to hand freed memory back: every step allocates the same large tensors, and page faults cost."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)
        mallopt(mmap_max, 0)


def _save(path: Path, state: dict[str, Any]) -> None:
    """Write beside and rename, so that a stop in the middle leaves the last checkpoint whole."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def fit(
    model: nn.Module,
    recipe: Recipe,
    out: Path,
    *,
    device: str = "cpu",
    report: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
    stop_after: int | None = None,
) -> nn.Module:
    """Train a super-resolution network, resuming when `out` holds a checkpoint.

    Args:
        model: (B, 3, H, W) to (B, 3, s·H, s·W), RGB in [0, 1]; trained in place.
        recipe: what to do.
        out: folder for `checkpoint.pt`, `log.csv`, `recipe.json`, and at the end `model.safetensors` and `log.png`.
        device: where to train.
        report: called about once a second and at every checkpoint.
        say: told, before the first step, which weights of the recipe's start do not fit, now and then how far its
            teachers are, and what refitting gave.
        stop_after: save and return after this step, as a stop by hand would.

    Returns:
        The model with its averaged weights, in eval mode.

    Raises:
        CheckpointError: the checkpoint in `out` was made by another recipe, or is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    place = torch.device(device)
    # Adam's second moments begin as denormal numbers, which a CPU handles a hundred times slower.
    torch.set_flush_denormal(True)
    _keep_memory()
    model.to(place).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    pairs = Pairs.from_folder(
        Path(recipe.data),
        recipe.scale,
        patch=recipe.patch,
        fraction=recipe.fraction,
        teachers=recipe.teachers,
        say=say,
    )
    optimizers = _optimizers(model, recipe)
    peaks = [group["lr"] for o in optimizers for group in o.param_groups]
    average = [p.detach().clone() for p in model.parameters()]
    first = _resume(out, model, optimizers, average, recipe, say)
    _log_start(out, recipe, first)
    objective = _objective(model, recipe)

    def load(step: int) -> tuple[np.ndarray, ...]:
        return pairs.batch(recipe.batch, np.random.default_rng((recipe.seed, step)))

    def checkpoint(step: int) -> None:
        names = (name for name, _ in model.named_parameters())
        means = dict(zip(names, average, strict=True))
        state = {"step": step, "model": model.state_dict(), "average": means, "recipe": asdict(recipe)}
        _save(out / "checkpoint.pt", {**state, "optimizers": [o.state_dict() for o in optimizers]})

    precision = _precision(model, recipe, _tensors(load(first), place, recipe))
    losses: list[Tensor] = []
    begun = spoken = time.perf_counter()
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(load, first)
        for step in range(first, recipe.steps):
            low, high = _tensors(waiting.result(), place, recipe)
            waiting = ahead.submit(load, step + 1)
            share = learning_rate(step, recipe.steps, recipe.warmup)
            for group, peak in zip((g for o in optimizers for g in o.param_groups), peaks, strict=True):
                group["lr"] = peak * share
            with _autocast(precision, place):
                loss = objective(low, high)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            # The average follows faster at the beginning, when the weights still run.
            keep = min(recipe.ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 1 - keep)
            losses.append(loss.detach())

            done, now = step + 1, time.perf_counter()
            last = done in (recipe.steps, stop_after)
            saving = last or done % recipe.every == 0
            if saving or now - spoken > 1:
                rate = (done - first) / (now - begun)
                mean = float(torch.stack(losses).mean())
                quality = None
                if saving:
                    checkpoint(done)
                    quality = _validated(model, average, recipe)
                    _log(out, done, mean, quality, now - begun)
                    losses.clear()
                spoken = time.perf_counter()
                if report is not None:
                    report(Progress(done, recipe.steps, mean, rate, (recipe.steps - done) / rate, quality))
            if done == stop_after:
                break
    _exchange(model, average)
    model.eval()
    if stop_after is None or stop_after >= recipe.steps:
        if recipe.refit:
            fresh = range(recipe.steps, recipe.steps + recipe.refit)
            gained = refit(model, (_tensors(load(k), place, recipe) for k in fresh), root=recipe.loss == "luma_root")
            if say is not None:
                say(f"last layer solved for over {recipe.refit} batches: {100 * gained:.2f} % less squared error there")
        _finish(out, model, recipe)
    return model


def _exchange(model: nn.Module, average: list[Tensor]) -> None:
    """Swap the weights and their running average."""
    with torch.no_grad():
        for p, a in zip(model.parameters(), average, strict=True):
            kept = p.detach().clone()
            p.copy_(a)
            a.copy_(kept)


def _validated(model: nn.Module, average: list[Tensor], recipe: Recipe) -> float | None:
    if not recipe.validation:
        return None
    _exchange(model, average)
    quality = validate(model, Path(recipe.validation), recipe.scale)
    _exchange(model, average)
    return quality


def _resume(
    out: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: list[Tensor],
    recipe: Recipe,
    say: Callable[[str], None] | None,
) -> int:
    """Load the checkpoint in `out` if there is one, else the weights the recipe starts from; returns the next step."""
    path = out / "checkpoint.pt"
    if not path.exists():
        if recipe.start:
            told = _start_from(Path(recipe.start), model, average)
            if told and say is not None:
                say(told)
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location=next(model.parameters()).device)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); remove it to train from the beginning"
        ) from error
    # A longer or shorter schedule, and where data lies, may change between two runs; what is learnt may not.
    free = {"steps", "data", "validation", "every", "precision", "start", "refit"}
    made = asdict(Recipe("", recipe.scale, "", 1)) | state["recipe"]  # by a foveal that knew fewer keys, perhaps
    for name, value in asdict(recipe).items():
        if name not in free and made[name] != value:
            was = made[name]
            raise CheckpointError(
                f"{path} was made with {name} = {was!r}, the recipe says {value!r}; use another folder"
            )
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    for a, (name, _) in zip(average, model.named_parameters(), strict=True):
        a.copy_(state["average"][name])
    return int(state["step"])


def _start_from(path: Path, model: nn.Module, average: list[Tensor]) -> str:
    """Copy every weight of the same name and shape; a network of another scale gives its body.

    One of fewer layers gives them all where the new network can let its others pass (`deepened`). Of a
    checkpoint, whose training may not have ended, the running average is taken. Returns a line for the user where
    something was left over.
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise CheckpointError(f"{path}: no such weights to start from")
    saved = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["average"]
    if deepened := getattr(model, "deepened", None):
        saved = deepened(saved)
    own = model.state_dict()
    fitting = {n: w for n, w in saved.items() if n in own and own[n].shape == w.shape}
    if not fitting:
        raise CheckpointError(f"{path}: none of its weights fits this network; start from another, or leave start out")
    model.load_state_dict(fitting, strict=False)
    for a, p in zip(average, model.parameters(), strict=True):
        a.copy_(p.detach())
    parts = [(", ".join(sorted(of.keys() - fitting.keys())), said) for of, said in ((saved, "unused"), (own, "new"))]
    left = "; ".join(f"{said}: {names}" for names, said in parts if names)
    return left and f"{path}: {len(fitting)} weights fit this network; {left}"


def _log_start(out: Path, recipe: Recipe, first: int) -> None:
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    rows = []
    if first and (out / "log.csv").exists():
        with (out / "log.csv").open() as file:
            rows = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= first]
    with (out / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss", "psnr", "seconds"), *rows])


def _log(out: Path, step: int, loss: float, quality: float | None, seconds: float) -> None:
    with (out / "log.csv").open("a", newline="") as file:
        row = (step, f"{loss:.6f}", "" if quality is None else f"{quality:.3f}", f"{seconds:.1f}")
        csv.writer(file).writerow(row)
        file.flush()
        os.fsync(file.fileno())


def _finish(out: Path, model: nn.Module, recipe: Recipe) -> None:
    """The averaged weights as safetensors, with the recipe in its header, and the log as a plot."""
    from safetensors.torch import save_file

    tensors = {n: t.contiguous() for n, t in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors.part", metadata={"recipe": json.dumps(asdict(recipe))})
    (out / "model.safetensors.part").replace(out / "model.safetensors")
    _plot(out)


def _plot(out: Path) -> None:
    from matplotlib.figure import Figure

    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, [float(row["loss"]) for row in rows], color="tab:blue")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    if all(row["psnr"] for row in rows):
        other = axes.twinx()
        other.plot(steps, [float(row["psnr"]) for row in rows], color="tab:orange")
        other.set_ylabel("validation PSNR, dB")
    figure.savefig(out / "log.png", dpi=110)
