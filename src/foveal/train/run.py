"""The folder of a run: recipe, checkpoint, log and, at the end, the weights.

recipe.json        the recipe, written when the run starts or resumes
checkpoint.pt      everything that the next step depends on
log.csv, log.png   loss and quality at each checkpoint
model.safetensors  the averaged weights at the end, the recipe in their header
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from foveal.errors import FovealError
from foveal.train.trainable import Deepened

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from torch import nn

    from foveal.train.loop import Progress

__all__ = ["CheckpointError", "Run", "start_from"]


class CheckpointError(FovealError, RuntimeError):
    """A checkpoint that belongs to another training or cannot be read."""


@dataclass(frozen=True)
class Run:
    """Folder of one training run.

    Args:
        folder: folder of the run; created when something is written.
        recipe: dataclass instance whose fields, plain values, determine the result of the training.
        free: fields that may change when a training is resumed (number of steps, folders).
        quality: name of the quality in the log.
        unit: label of the quality in the plot.
    """

    folder: Path
    recipe: Any
    free: Collection[str] = ()
    quality: str = "quality"
    unit: str = "quality"

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint, which need not exist."""
        return self.folder / "checkpoint.pt"

    @property
    def weights(self) -> Path:
        """Path of the trained weights, which need not exist."""
        return self.folder / "model.safetensors"

    def resume(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """Load the state of the last checkpoint.

        Args:
            device: device to load its tensors to.

        Returns:
            The saved state; None if there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint belongs to another recipe, or is damaged.
        """
        path = self.checkpoint
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
            made = self._defaults() | state["recipe"]  # an older foveal may have known fewer keys
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be read ({type(error).__name__}); remove it to train from the beginning"
            ) from error
        for name, value in asdict(self.recipe).items():
            if name not in self.free and made.get(name) != value:
                was = made.get(name)
                raise CheckpointError(
                    f"{path} was made with {name} = {was!r}, the recipe says {value!r}; use another folder"
                )
        return state

    def _defaults(self) -> dict[str, Any]:
        given = {f.name: f.default for f in fields(self.recipe) if f.default is not MISSING}
        made = {f.name: f.default_factory() for f in fields(self.recipe) if f.default_factory is not MISSING}
        return given | made

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint; an interruption leaves the previous one intact.

        Args:
            state: state from `foveal.train.loop.fit`.
        """
        part = self.checkpoint.with_suffix(".part")
        torch.save({**state, "recipe": asdict(self.recipe)}, part)
        part.replace(self.checkpoint)

    def begin(self, step: int) -> None:
        """Write recipe.json and remove from the log the steps that will be trained again.

        Args:
            step: next step to train, from 0.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.json").write_text(json.dumps(asdict(self.recipe), indent=2) + "\n")
        log, rows = self.folder / "log.csv", []
        if step and log.exists():
            with log.open() as file:
                rows = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= step]
        with log.open("w", newline="") as file:
            csv.writer(file).writerows([("step", "loss", self.quality, "seconds"), *rows])

    def log(self, progress: Progress) -> None:
        """Append a line to the log.

        Args:
            progress: progress of the training.
        """
        quality = "" if progress.quality is None else f"{progress.quality:.3f}"
        with (self.folder / "log.csv").open("a", newline="") as file:
            csv.writer(file).writerow((progress.step, f"{progress.loss:.6f}", quality, f"{progress.seconds:.1f}"))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, model: nn.Module) -> None:
        """Write the weights, with the recipe in their header, and a plot of the log.

        Args:
            model: the trained model.
        """
        from safetensors.torch import save_file

        tensors = {n: t.contiguous() for n, t in model.state_dict().items()}
        part = self.weights.with_suffix(".safetensors.part")
        save_file(tensors, part, metadata={"recipe": json.dumps(asdict(self.recipe))})
        part.replace(self.weights)
        self._plot()

    def _plot(self) -> None:
        from matplotlib.figure import Figure

        with (self.folder / "log.csv").open() as file:
            rows = list(csv.DictReader(file))
        steps = [int(row["step"]) for row in rows]
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, [float(row["loss"]) for row in rows], color="tab:blue")
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        if all(row[self.quality] for row in rows):
            other = axes.twinx()
            other.plot(steps, [float(row[self.quality]) for row in rows], color="tab:orange")
            other.set_ylabel(self.unit)
        figure.savefig(self.folder / "log.png", dpi=110)


def start_from(path: Path, model: nn.Module) -> str:
    """Copy every weight of the same name and shape from a file of weights or a checkpoint.

    A network of another scale gives its body, and one with fewer layers gives all of them if the new network can make
    its other layers identities (`Deepened`). From a checkpoint, whose training may not have ended, the running average
    is taken.

    Args:
        path: `.safetensors` file or checkpoint.
        model: network whose weights are overwritten.

    Returns:
        A line for the user if some weights did not fit, "" otherwise.

    Raises:
        CheckpointError: no such file, an unreadable file, or none of its weights fits.
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise CheckpointError(f"{path}: no such weights to start from")
    try:
        saved = load_file(path) if path.suffix == ".safetensors" else _averaged(path)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); start from a checkpoint.pt or model.safetensors"
        ) from error
    if isinstance(model, Deepened):
        saved = model.deepened(saved)
    own = model.state_dict()
    fitting = {n: w for n, w in saved.items() if n in own and own[n].shape == w.shape}
    if not fitting:
        raise CheckpointError(f"{path}: none of its weights fits this network; start from another, or leave start out")
    model.load_state_dict(fitting, strict=False)
    parts = [(", ".join(sorted(of.keys() - fitting.keys())), said) for of, said in ((saved, "unused"), (own, "new"))]
    left = "; ".join(f"{said}: {names}" for names, said in parts if names)
    return left and f"{path}: {len(fitting)} weights fit this network; {left}"


def _averaged(path: Path) -> dict[str, torch.Tensor]:
    average: dict[str, torch.Tensor] = torch.load(path, weights_only=True, map_location="cpu")["average"]
    return average
