"""Protocol of compression steps: frozen dataclasses that turn a model into a cheaper one.

A step's fields are its whole configuration, so its `repr` can be printed in a report. `apply` may change the model in
place or wrap it; callers continue with the model it returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from foveal.errors import FovealError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["Inputs", "ShrinkError", "Step", "note", "noted"]

Inputs: TypeAlias = Tensor | Iterable[Tensor]  # inputs of the model, as one tensor or in batches

_NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)


class ShrinkError(FovealError, ValueError):
    """A model, a recipe or a budget that cannot be used as asked."""


def note(text: str) -> None:
    """Say something for the report, such as a layer that a step had to leave as it is, and why.

    Args:
        text: one line; dropped unless someone listens with `noted`.
    """
    notes = _NOTES.get()
    if notes is not None and text not in notes:
        notes.append(text)


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collect what steps say inside the block.

    Yields:
        The notes, in order, each once.
    """
    notes: list[str] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


@runtime_checkable
class Step(Protocol):
    """One step, such as `Quamba()` or `ToPViM(keep=0.6)`."""

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:
        """Apply the step to a model.

        Args:
            model: model to change; in eval mode for steps that observe activations.
            data: inputs for calibration, such as pictures.

        Returns:
            The cheaper model; the same object if the step works in place.
        """
        ...
