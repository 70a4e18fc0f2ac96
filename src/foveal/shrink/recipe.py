"""Shrinking by a recipe: a model goes in, a cheaper one comes out, and every step is measured on this machine."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from foveal.export.deployable import ExportError
from foveal.measure.paired import paired, ratio
from foveal.shrink.data import calibration, check
from foveal.shrink.distill.distillation import Distil
from foveal.shrink.measured import Measured, Written, measure_files, write
from foveal.shrink.quantize.int8 import Quantise, quantise_files, quantised
from foveal.shrink.step import ShrinkError, Step, noted
from foveal.shrink.steps import check_order, describe, read_recipe, untouched

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foveal.shrink.data import Data

__all__ = ["Interrupted", "Shrunk", "Stage", "StepError", "shrink"]


@dataclass(frozen=True)
class Stage:
    """One line of a report: a step, what it cost and what it gave.

    Args:
        step: the step as text; "untouched" for the model that was given.
        measured: cost and quality after it.
        kept: False if the step was undone.
        notes: what the step says, such as layers it had to leave and why.
        seconds: seconds that the step itself took.
    """

    step: str
    measured: Measured
    kept: bool = True
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Shrunk:
    """The result of a recipe.

    Args:
        model: the cheaper network, in torch; int8 is in the file only.
        original: the network before the first step.
        stages: the untouched model, then one line for each step.
        written: files of the result.
        data: data that it was measured on.
        threads: processor threads of the measurements.
        keeper: keeps the folder of the files alive.
    """

    model: nn.Module
    original: nn.Module
    stages: tuple[Stage, ...]
    written: Written
    data: Data
    threads: int
    keeper: Any = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> Measured:
        """The untouched model."""
        return self.stages[0].measured

    @property
    def last(self) -> Measured:
        """The result: the last step that was kept."""
        return [stage.measured for stage in self.stages if stage.kept][-1]

    @property
    def lost(self) -> float:
        """Quality of the result minus that of the untouched model."""
        return self.last.quality - self.first.quality


class StepError(ShrinkError):
    """A step that could not be done.

    Args:
        text: the message.
        reached: what stood before the step.
    """

    def __init__(self, text: str, reached: Shrunk | None = None) -> None:
        super().__init__(text)
        self.reached = reached


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a recipe.

    Args:
        reached: what stood before the step that was interrupted.
    """

    def __init__(self, reached: Shrunk) -> None:
        super().__init__()
        self.reached = reached


def _shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """What a step must change to change the speed: modules and the shapes of their parameters."""
    modules = [(f"{name}:{type(module).__name__}", ()) for name, module in model.named_modules()]
    return [*modules, *((name, tuple(p.shape)) for name, p in model.named_parameters())]


def shrink(
    model: nn.Module,
    recipe: Sequence[Step] | Path | str,
    data: Data,
    budget: float | None = None,
    keep: float | None = None,
    insist: bool = False,
    threads: int = 2,
    *,
    batch: int = 1,
    folder: Path | None = None,
    memory: bool = True,
    seconds: float = 20.0,
    tell: Callable[[str], None] = lambda _: None,
) -> Shrunk:
    """Run the steps of a recipe on a copy of a model, and measure after each.

    After every step the network is exported and run in every engine that is installed; its fastest form is timed in
    turn with the untouched model's fastest form and with the network before the step. A step after which the network is
    slower, by more than the spread explains, is undone.

    Args:
        model: network with one input and one output.
        recipe: steps, the path of a TOML file, or its text.
        data: what steps calibrate and train on, and how quality is measured.
        budget: latency to reach, as a share of the untouched model's in its best engine; with it or `keep`, strengths
            of the recipe are searched (`foveal.shrink.search`).
        keep: smallest change of quality allowed, such as -1.0.
        insist: keep steps that make the model slower.
        threads: processor threads to measure with.
        batch: number of inputs of one call.
        folder: folder for files, which must exist; None takes a temporary one.
        memory: whether peak memory is measured.
        seconds: seconds that one timing should take at most.
        tell: function called with one line after each step.

    Returns:
        The cheaper network, its files and one line for each step.

    Raises:
        ShrinkError: a model, data or recipe that cannot be used.
        StepError: a step that could not be done; what stood before it is in `reached`.
        Interrupted: Ctrl-C, with `reached` too.

    Example:
        >>> import foveal
        >>> from foveal.shrink.prune.structure import Prune
        >>> shrunk = foveal.shrink(model, [Prune(keep=0.5)], data)  # doctest: +SKIP
    """
    steps = read_recipe(recipe) if isinstance(recipe, str | Path) else list(recipe)
    check_order(steps)
    if not isinstance(model, nn.Module):
        raise ShrinkError(f"shrink takes an nn.Module, got {type(model).__name__}")
    if found := quantised(model):
        raise ShrinkError(f"the model is quantised already ({found}); give the one in floats")
    if threads < 1 or batch < 1:
        raise ShrinkError(f"threads and batch must be at least 1, got {threads} and {batch}")
    original = copy.deepcopy(model).eval()
    check(original, data)
    if budget is not None or keep is not None:
        from foveal.shrink.search import search

        return search(
            model,
            steps,
            data,
            budget=budget,
            keep=keep,
            threads=threads,
            batch=batch,
            folder=folder,
            memory=memory,
            seconds=seconds,
            tell=tell,
        ).chosen
    run = _Run(original, data, threads=threads, batch=batch, folder=folder, memory=memory, seconds=seconds, tell=tell)
    for number, step in enumerate(steps, 1):
        try:
            run.take(step, insist=insist)
        except KeyboardInterrupt as error:
            raise Interrupted(run.result()) from error
        except (ShrinkError, ExportError, ValueError, TypeError, RuntimeError) as error:
            text = str(error) if str(error).startswith(type(step).__name__) else f"{type(step).__name__}: {error}"
            raise StepError(f"step {number} of {len(steps)}, {text}", run.result()) from error
    return run.result()


class _Folder:
    """A temporary folder that goes when nothing holds it any more."""

    def __init__(self) -> None:
        self.name = tempfile.mkdtemp(prefix="foveal-shrink-")
        weakref.finalize(self, shutil.rmtree, self.name, ignore_errors=True)


class _Run:
    """A recipe in progress."""

    def __init__(
        self,
        original: nn.Module,
        data: Data,
        *,
        threads: int,
        batch: int,
        folder: Path | None,
        memory: bool,
        seconds: float,
        tell: Callable[[str], None],
    ) -> None:
        self.keeper = None if folder else _Folder()
        self.folder = folder or Path(self.keeper.name if self.keeper else "")
        self.original, self.data, self.tell, self.number = original, data, tell, 0
        self.model = original
        inputs = calibration(data, step="shrink", limit=batch)
        self.example = inputs if len(inputs) == batch else inputs[:1].expand(batch, *inputs.shape[1:]).contiguous()
        self.options: dict[str, Any] = {"threads": threads, "with_memory": memory, "seconds": seconds}
        self.untouched = self.written = write(original, self.folder, "untouched", self.example)
        measured = measure_files(self.written, data, **self.options)
        self.best, self.form = measured.form, measured.form
        self.stages = [Stage("untouched", measured)]
        self._say(self.stages[0])

    def result(self) -> Shrunk:
        return Shrunk(
            self.model,
            self.original,
            tuple(self.stages),
            self.written,
            self.data,
            self.options["threads"],
            self.keeper,
        )

    def take(self, step: Step, *, insist: bool) -> None:
        begun = time.perf_counter()
        self.number += 1
        if isinstance(step, Distil) and step.teacher is untouched:
            step = replace(step, teacher=copy.deepcopy(self.original))
            shown = describe(replace(step, teacher=untouched))
        else:
            shown = describe(step)
        with noted() as notes:
            given: Any = self.data
            model = step.apply(copy.deepcopy(self.model), given).eval()
            taken = time.perf_counter() - begun
            if isinstance(step, Quantise):
                before = self.written
                inputs = calibration(self.data, step="Quantise", limit=max(step.samples, len(self.example)))
                files = quantise_files(before.files["float"], f"step{self.number}", inputs, step)
                written = Written({**before.files, **files}, before.shape, before.parameters, before.macs)
                kinds, changed = [*files], True
            else:
                written = write(model, self.folder, f"step{self.number}", self.example)
                kinds, changed = [], _shapes(model) != _shapes(self.model)
        measured = measure_files(
            written,
            self.data,
            untouched=self.untouched,
            best=self.best,
            previous=self.written.opened[self.form],
            kinds=kinds,
            **self.options,
        )
        against = measured.previous
        undone = changed and not insist and against is not None and against.slower
        if undone:  # a second look, at the two alone
            pair = written.opened[measured.form], self.written.opened[self.form]
            against = ratio(*paired(*pair, warm_up=4, settle=3, most=self.options["seconds"]))
            undone = against.slower
        if undone and against is not None:
            notes.append(f"undone: {against.median:.2f} times the time before it; insist keeps it")
        elif changed and against is not None and against.slower:
            notes.append(f"slower, {against.median:.2f} times the time before it, and kept because you insist")
        self.stages.append(Stage(shown, measured, not undone, tuple(notes), taken))
        if not undone:
            self.model, self.written, self.form = model, written, measured.form
        self._say(self.stages[-1])

    def _say(self, stage: Stage) -> None:
        found, first = stage.measured, self.stages[0].measured
        unit = self.data.unit
        text = f"{stage.step}: {1e3 * found.latency.median:.2f} ms ({found.form})"
        if stage is not self.stages[0]:
            text += f", {found.untouched.median:.2f} of untouched, {found.quality - first.quality:+.2f} {unit}"
        else:
            text += f", {found.quality:.2f} {unit}"
        self.tell(text + ("" if stage.kept else "; undone"))
