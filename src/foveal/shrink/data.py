"""Data of a compression: inputs to calibrate on, labelled batches to train on, and the quality to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveal.shrink.step import ShrinkError

if TYPE_CHECKING:
    from torch import nn

    from foveal.shrink.step import Inputs

__all__ = ["Data", "calibration", "check"]


@dataclass(frozen=True)
class Data:
    """What steps calibrate and train on, and how the quality of the result is measured.

    Args:
        inputs: inputs of the model for calibration, (n, …).
        quality: quality of a model on held-out data; higher is better.
        unit: unit of the quality, such as "points" or "dB".
        name: name of the held-out data in reports.
        batches: training batches (inputs, targets) by step, counted from 0, depending on nothing but the step; None
            if steps that train cannot be used.
        loss: function from output and target to a scalar; None if steps that train cannot be used.
    """

    inputs: Tensor
    quality: Callable[[nn.Module], float]
    unit: str = "points"
    name: str = "held-out data"
    batches: Callable[[int], tuple[Tensor, Tensor]] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None


def calibration(data: Inputs | Data | None, *, step: str, limit: int = 256) -> Tensor:
    """Inputs to calibrate on, as one tensor.

    Args:
        data: tensor of inputs, batches of inputs, or `Data`.
        step: name of the step that asks, for errors.
        limit: number of inputs to take from the start.

    Returns:
        Inputs, (n, …) with n ≤ limit.

    Raises:
        TypeError: something else than tensors.
        ValueError: no inputs.
    """
    given: Any = data.inputs if isinstance(data, Data) else data
    if given is None:
        raise ValueError(f"{step} observes activations and needs data, got none; pass some inputs of the model")
    if not isinstance(given, Tensor):
        batches: list[Any] = list(islice(given, limit)) if isinstance(given, Iterable) else [given]
        if wrong := next((x for x in batches if not isinstance(x, Tensor)), None):
            raise TypeError(
                f"{step} calibrates on tensors, got {type(wrong).__name__}; yield inputs alone, without labels"
            )
        if not batches:
            raise ValueError(f"{step} needs at least one batch of data, got none")
        given = torch.cat(batches)
    if not len(given):
        raise ValueError(f"{step} needs at least one input, got a tensor of shape {tuple(given.shape)}")
    return given[:limit]


@torch.no_grad()
def check(model: nn.Module, data: Data) -> None:
    """Try a model on its data, before any work starts.

    Args:
        model: network in eval mode.
        data: its data.

    Raises:
        TypeError: something else than `Data`.
        ShrinkError: inputs that the model does not take, an output that is not one tensor, or batches that are not
            inputs and targets which the loss takes.
    """
    if not isinstance(data, Data):
        raise TypeError(f"data must be foveal.shrink.data.Data, got {type(data).__name__}; it also says how to score")
    inputs = calibration(data, step="shrink", limit=2)

    def run(x: Tensor, what: str) -> Tensor:
        try:
            out: Any = model(x)
        except Exception as error:
            raise ShrinkError(
                f"{type(model).__name__} does not take {what} of shape {tuple(x.shape)}, {x.dtype}: {error}"
            ) from error
        if not isinstance(out, Tensor):
            raise ShrinkError(f"{type(model).__name__} must return one tensor, got {type(out).__name__}; wrap it")
        return out

    out = run(inputs, "the inputs")
    if len(out) != len(inputs):
        raise ShrinkError(f"{len(inputs)} inputs gave an output of shape {tuple(out.shape)}; the first axis must agree")
    if data.batches is None or data.loss is None:
        return
    batch: Any = data.batches(0)
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        got = (
            ", ".join(type(part).__name__ for part in batch)
            if isinstance(batch, tuple | list)
            else type(batch).__name__
        )
        raise ShrinkError(f"a training batch must be two tensors, inputs and targets, got {got}")
    x, y = batch
    if len(x) != len(y):
        raise ShrinkError(f"a training batch has {len(x)} inputs and {len(y)} targets; they must be as many")
    out = run(x, "training inputs")
    try:
        value = data.loss(out, y)
    except Exception as error:
        raise ShrinkError(
            f"the loss does not take an output of shape {tuple(out.shape)} and targets of shape {tuple(y.shape)}, "
            f"{y.dtype}: {error}"
        ) from error
    if value.ndim or not bool(torch.isfinite(value)):
        raise ShrinkError(f"the loss must be one finite number, got {value}; check inputs and targets")
