"""What a network costs and how good it is, as the file that would run: the line of a report."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from foveal.export.fixed import to_fixed_onnx
from foveal.measure.cost import Latency, count_macs, count_parameters
from foveal.measure.paired import Ratio, interleaved, ratio
from foveal.shrink.forms import Form, Opened, forms, memory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from foveal.shrink.data import Data

__all__ = ["Answering", "FormTime", "Measured", "Written", "measure_files", "write"]


@dataclass(frozen=True)
class FormTime:
    """Time of one form of a network.

    Args:
        name: name of the form, such as "onnxruntime int8".
        latency: time of one call.
        ratio: against the untouched model's fastest form in the same engine.
    """

    name: str
    latency: Latency
    ratio: Ratio


@dataclass(frozen=True)
class Measured:
    """Cost and quality of a network in its fastest form.

    Args:
        form: name of that form.
        latency: time of one call.
        untouched: against the untouched model in *its* fastest form.
        previous: against the network before the step, in its fastest form; None for the untouched model.
        forms: every form that was tried.
        memory: bytes that loading the file and running it take at most; None if not measured.
        size: bytes of the file.
        parameters: number of parameters.
        macs: multiply-adds of one call; None where torch cannot count them.
        quality: quality of that form on the held-out data.
    """

    form: str
    latency: Latency
    untouched: Ratio
    previous: Ratio | None
    forms: tuple[FormTime, ...]
    memory: int | None
    size: int
    parameters: int
    macs: int | None
    quality: float


@dataclass(frozen=True)
class Written:
    """Files of a network.

    Args:
        files: ONNX files by kind, "float", "int8" and "nncf".
        shape: shape of the input.
        parameters: number of parameters.
        macs: multiply-adds of one call; None where torch cannot count them.
        opened: files opened so far, by the name of the form.
    """

    files: dict[str, Path]
    shape: tuple[int, ...]
    parameters: int
    macs: int | None = None
    opened: dict[str, Opened] = field(default_factory=dict, compare=False)

    def open(self, threads: int, *kinds: str) -> dict[str, Opened]:
        """Open the files in every engine that is installed; each once.

        Args:
            threads: processor threads.
            *kinds: kinds of files; all without any.

        Returns:
            Opened files by the name of the form.
        """
        found = {}
        for form in forms(*(kinds or self.files)):
            if form.name not in self.opened:
                self.opened[form.name] = Opened(form, self.files[form.file], self.shape, threads)
            found[form.name] = self.opened[form.name]
        return found


class Answering(nn.Module):
    """A file in an engine, as a module that takes any number of inputs.

    Args:
        opened: the file.
    """

    def __init__(self, opened: Opened) -> None:
        super().__init__()
        self.opened = opened

    def forward(self, x: Tensor) -> Tensor:
        """Run the file.

        Args:
            x: inputs, (n, …).

        Returns:
            Outputs, (n, …).
        """
        size = self.opened.shape[0]
        made = []
        for part in x.detach().split(size):
            full = torch.cat([part, part[:1].expand(size - len(part), *part.shape[1:])]) if len(part) < size else part
            out = self.opened.engine.run(np.ascontiguousarray(full.numpy()))
            made.append(np.array(out[: len(part)]))  # the engine may use its buffer again
        return torch.from_numpy(np.concatenate(made)).float()


def write(model: nn.Module, folder: Path, name: str, example: Tensor) -> Written:
    """Write a network's file.

    Args:
        model: network in eval mode.
        folder: folder for the file.
        name: name of the file, without suffix.
        example: input whose shape the file takes.

    Returns:
        The file.
    """
    path = folder / f"{name}.onnx"
    to_fixed_onnx(copy.deepcopy(model).eval(), path, example)
    shape = tuple(example.shape)
    try:
        macs: int | None = count_macs(model, shape)
    except (RuntimeError, NotImplementedError, TypeError):  # an operator without a meta kernel
        macs = None
    return Written({"float": path}, shape, count_parameters(model), macs)


def _latency(seconds: Sequence[float], threads: int) -> Latency:
    lower, median, upper = np.percentile(seconds, (25, 50, 75))
    return Latency(float(median), float(lower), float(upper), len(seconds), threads)


def measure_files(
    written: Written,
    data: Data,
    *,
    untouched: Written | None = None,
    best: str = "",
    previous: Opened | None = None,
    kinds: Sequence[str] = (),
    threads: int = 2,
    with_memory: bool = True,
    seconds: float = 20.0,
) -> Measured:
    """Time a network's forms in turn with the untouched model's and with the network before, and score the fastest.

    Args:
        written: files of the network.
        data: held-out data.
        untouched: files of the untouched model; None if that is the network.
        best: name of the untouched model's fastest form.
        previous: the network before the step, in its fastest form.
        kinds: kinds of files to try; all if empty.
        threads: processor threads.
        with_memory: whether peak memory is measured, which starts a process.
        seconds: seconds that the timing should take at most.

    Returns:
        Cost and quality.
    """
    ours = written.open(threads, *kinds)
    theirs = untouched.open(threads) if untouched is not None else {}
    extra = {"previous": previous} if previous is not None else {}
    functions = {**{("ours", n): o for n, o in ours.items()}, **{("theirs", n): o for n, o in theirs.items()}}
    functions |= {("", n): o for n, o in extra.items()}
    times = dict(zip(functions, interleaved(list(functions.values()), warm_up=4, settle=3, most=seconds), strict=True))
    median = {key: float(np.median(taken)) for key, taken in times.items()}
    fastest = min(ours, key=lambda name: median["ours", name])
    mine = times["ours", fastest]
    side = "theirs" if theirs else "ours"
    rivals = theirs or ours

    def in_engine(form: Form) -> list[float]:
        same = [name for name, opened in rivals.items() if opened.form.engine == form.engine]
        return times[side, min(same, key=lambda name: median[side, name])]

    opened = ours[fastest]
    return Measured(
        form=fastest,
        latency=_latency(mine, threads),
        untouched=ratio(mine, times[side, best if theirs else fastest]),
        previous=ratio(mine, times["", "previous"]) if extra else None,
        forms=tuple(
            FormTime(n, _latency(times["ours", n], threads), ratio(times["ours", n], in_engine(o.form)))
            for n, o in ours.items()
        ),
        memory=memory(opened.form, opened.path, opened.shape, threads) if with_memory else None,
        size=opened.path.stat().st_size,
        parameters=written.parameters,
        macs=written.macs,
        quality=float(data.quality(Answering(opened))),
    )
