"""Train a picture network by a recipe: super-resolution, or restoration at the same size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.measure.quality import evaluate, from_torch
from foveal.train import loop
from foveal.train.restore import cleaning, repairing
from foveal.train.restore.cleaning import BORDER, damaged_batches
from foveal.train.restore.losses import LUMINANCE, loss_of, luminance
from foveal.train.restore.pairs import SUFFIXES, Pairs, PicturesError, noisy
from foveal.train.restore.recipe import CLEAN, RecipeError
from foveal.train.restore.refit import LinearEnd, refit
from foveal.train.restore.teacher import answers
from foveal.train.run import Run, start_from
from foveal.train.trainable import LuminanceAlone

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from foveal.train.loop import Progress
    from foveal.train.objective import Objective
    from foveal.train.restore.recipe import Recipe

__all__ = ["fit", "objective", "optimizers", "validate"]

# The length of the schedule and the location of the data may change between two runs; what is learnt may not.
FREE = ("steps", "data", "validation", "every", "precision", "start", "refit")


def _pictures(batch: tuple[Tensor, ...], recipe: Recipe) -> tuple[Tensor, Tensor]:
    """uint8 (B, H, W, 3) to channels-last float (B, 3, H, W) in [0, 1]: the network's input and its target."""
    low, high, *taught = (t.permute(0, 3, 1, 2).float().div_(255) for t in batch)
    return low, high.lerp_(taught[0], recipe.teacher_share) if taught else high


def objective(recipe: Recipe) -> Objective:
    """The recipe's loss; where luminance is enough, networks that can compute it alone (`LuminanceAlone`) do so.

    Args:
        recipe: the training recipe.

    Returns:
        Objective on batches of uint8 pictures: low resolution (B, h, w, 3), high resolution (B, s·h, s·w, 3), and, with
        teachers, their answers in the same shape as the high resolution.
    """
    loss = loss_of(recipe.loss, features=recipe.features)

    def compare(model: nn.Module, batch: tuple[Tensor, ...], /) -> Tensor:
        low, high = _pictures(batch, recipe)
        if not recipe.loss.startswith("luma"):
            return loss(model(low).float(), high)  # type: ignore[no-any-return]
        if isinstance(model, LuminanceAlone):
            made = model.luminance(low, LUMINANCE.to(low)).float()
        else:
            made = luminance(model(low).float())
        return loss(made, luminance(high))  # type: ignore[no-any-return]

    return compare


def validate(model: nn.Module, folder: Path, scale: int, *, noise: float = 0.0) -> float:
    """Mean luminance PSNR over a folder of pictures, each reduced (and given noise) and then restored.

    Args:
        model: network, (1, 3, H, W) to (1, 3, s·H, s·W) in [0, 1].
        folder: folder of pictures; subfolders are not searched.
        scale: s, also the number of pixels shaved at the border.
        noise: standard deviation of the noise added to the network's input, in levels of 255; the same noise each time.

    Returns:
        PSNR, dB.

    Raises:
        ValueError: no pictures in `folder`.
    """
    restore, rng = from_torch(model), np.random.default_rng(0)

    def given(low: NDArray[np.uint8]) -> NDArray:
        return restore(noisy(low, noise, rng))

    return evaluate(given, folder, scale, structure=False).psnr


def _check(model: nn.Module, recipe: Recipe) -> None:
    """Raise before the first step for what would otherwise fail at a checkpoint or after the last step."""
    if recipe.refit and not isinstance(model, LinearEnd):
        raise RecipeError(
            f"refit solves for a last layer that is linear, and {type(model).__name__} does not offer one "
            "(foveal.train.restore.refit.LinearEnd); set refit = 0"
        )
    if recipe.loss == CLEAN and not hasattr(model, "separate"):
        raise RecipeError(
            f'loss "clean" is for networks that are told how damaged their input is, such as luma_clean_fast, got a '
            f"{type(model).__name__}; choose another loss"
        )
    if recipe.loss == CLEAN and (recipe.refit or recipe.noise):
        raise RecipeError(
            'loss "clean" damages its inputs itself and solves for no last layer; set noise and refit to 0'
        )
    if recipe.validation:
        folder = Path(recipe.validation)
        if not folder.is_dir() or not any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
            raise PicturesError(f"{folder}: no pictures in it to validate on; name another folder, or leave it out")


def optimizers(model: nn.Module, recipe: Recipe) -> list[Any]:
    """The recipe's optimisers.

    Args:
        model: network to train.
        recipe: the training recipe.

    Returns:
        One or two optimisers, which together hold every parameter exactly once.
    """
    if recipe.optimizer == "adam":
        return [torch.optim.Adam(model.parameters(), lr=recipe.lr, betas=(0.9, 0.99))]
    return loop.muon_and_adam(model, lr=recipe.lr, muon_lr=recipe.muon_lr)


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
    """Train a picture network, resuming if `out` contains a checkpoint.

    Args:
        model: network, (B, 3, H, W) to (B, 3, s·H, s·W), RGB in [0, 1]; trained in place.
        recipe: the recipe to follow.
        out: folder for `checkpoint.pt`, `log.csv`, `recipe.json`, and at the end `model.safetensors` and `log.png`.
        device: device to train on.
        report: function called about once a second and at every checkpoint.
        say: function called with lines of text: which weights of `start` do not fit, the progress of the teachers, and
            the gain of refitting.
        stop_after: step after which to save and return, as an interruption would.

    Returns:
        The model with its averaged weights, in eval mode.

    Raises:
        CheckpointError: the checkpoint in `out` belongs to another recipe, or is damaged.
        RecipeError: the recipe asks for a refit that the network does not allow.
        PicturesError: no pictures to train or validate on.
    """
    _check(model, recipe)
    cleans = recipe.loss == CLEAN
    run = Run(out, recipe, FREE, quality="psnr", unit="validation PSNR, dB")
    place = torch.device(device)
    model.to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = run.resume(place)
    pairs = Pairs.from_folder(
        Path(recipe.data),
        recipe.scale,
        patch=recipe.patch + (BORDER if cleans else repairing.BORDER if recipe.damage else 0),
        fraction=recipe.fraction,
        teach=partial(answers, teachers=recipe.teachers, say=say) if recipe.teachers else None,
        noise=recipe.noise,
    )
    if state is None and recipe.start and (left := start_from(Path(recipe.start), model)) and say is not None:
        say(left)
    run.begin(0 if state is None else state["step"])

    def clean_batch(step: int) -> tuple[NDArray, ...]:
        return pairs.batch(recipe.batch, np.random.default_rng((recipe.seed, step)))

    batch: Callable[[int], tuple[NDArray, ...]]
    compare: Objective
    if cleans:
        batch, compare = damaged_batches(pairs, recipe.batch, recipe.seed), cleaning.objective(recipe.teacher_share)
    elif recipe.damage:
        batch = repairing.repair_batches(pairs, recipe.batch, recipe.seed, recipe.damage)
        compare = repairing.objective
    else:
        batch, compare = clean_batch, objective(recipe)

    def tell(progress: Progress) -> None:
        if progress.saved:
            run.log(progress)
        if report is not None:
            report(progress)

    def quality(trained: nn.Module) -> float:
        return validate(trained, Path(recipe.validation), recipe.scale, noise=recipe.noise)

    with loop.fast_denormals():
        loop.fit(
            model,
            compare,
            batch,
            optimizers(model, recipe),
            steps=recipe.steps,
            warmup=recipe.warmup,
            ema=recipe.ema,
            precision=recipe.precision,
            seed=recipe.seed,
            every=recipe.every,
            state=state,
            save=run.save,
            validate=quality if recipe.validation else None,
            report=tell,
            stop_after=stop_after,
        )
        if stop_after is not None and stop_after < recipe.steps:
            return model
        if recipe.refit:
            fresh = (loop.to_device(batch(recipe.steps + k), place) for k in range(recipe.refit))
            gained = refit(model, (_pictures(b, recipe) for b in fresh), root=recipe.loss == "luma_root")
            if say is not None:
                say(f"last layer solved for over {recipe.refit} batches: {100 * gained:.2f} % less squared error there")
    run.finish(model)
    return model
