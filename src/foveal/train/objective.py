"""What a training makes smaller: the objective of a model on a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["Objective", "supervised"]


class Objective(Protocol):
    """Loss of a model on a batch; any function of this form is one."""

    def __call__(self, model: nn.Module, batch: Any, /) -> Tensor:
        """Compute the loss.

        Args:
            model: network that is trained.
            batch: batch as `foveal.train.loop.fit` hands it over: tensors on the model's device.

        Returns:
            One number that depends on the model's parameters, to be made smaller.
        """
        ...


def supervised(loss: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """The objective that compares a model's output with a target.

    Args:
        loss: function of output and target, for example `torch.nn.functional.cross_entropy`.

    Returns:
        Objective of a batch of two: input and target. The output is compared in float32, also under autocast.
    """

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor], /) -> Tensor:
        inputs, targets = batch
        return loss(model(inputs).float(), targets)

    return objective
