"""What every step of shrinking is: a frozen dataclass that turns a model into a cheaper one.

A step's fields are all that it needs to know, so its `repr` is what a report prints. `apply` may change the model in
place or wrap it; callers go on with what it returns.
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
            model: the model, in eval mode for steps that look at activations.
            data: inputs that the step may look at, such as calibration pictures.

        Returns:
            The cheaper model; the same object where the step works in place.
        """
        ...
