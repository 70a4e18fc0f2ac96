"""Training objectives: the loss of a model on a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["Objective", "supervised"]


class Objective(Protocol):
    """Loss of a model on a batch; any function with this signature is one."""

    def __call__(self, model: nn.Module, batch: Any, /) -> Tensor:
        """Compute the loss.

        Args:
            model: network in training.
            batch: batch as passed by `foveal.train.loop.fit`: tensors on the model's device.

        Returns:
            Scalar to minimise; it depends on the model's parameters.
        """
        ...


def supervised(loss: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """Objective that compares a model's output with a target.

    Args:
        loss: function of output and target, for example `torch.nn.functional.cross_entropy`.

    Returns:
        Objective on batches (input, target). The output is compared in float32, also under autocast.
    """

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor], /) -> Tensor:
        inputs, targets = batch
        return loss(model(inputs).float(), targets)

    return objective
