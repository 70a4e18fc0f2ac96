"""Protocol of compression steps: frozen dataclasses that turn a model into a cheaper one.

A step's fields are its whole configuration, so its `repr` can be printed in a report. `apply` may change the model in
place or wrap it; callers continue with the model it returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Inputs", "Step"]

Inputs: TypeAlias = Tensor | Iterable[Tensor]  # inputs of the model, as one tensor or in batches


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
