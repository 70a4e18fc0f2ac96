"""Memory that autograd keeps for the backward pass, counted instead of measured: the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

__all__ = ["saved_bytes"]


def saved_bytes(work: Callable[[], Any], besides: Iterable[Tensor] = ()) -> float:
    """Memory of the tensors that a computation saves for its backward pass, each storage once.

    What a custom function keeps without `save_for_backward` does not count, nor what the backward pass computes again.
    Works on the meta device too, where it takes neither time nor memory.

    Args:
        work: forward pass with gradients.
        besides: tensors that do not count, such as the parameters and buffers of a model.

    Returns:
        Bytes.
    """
    apart = {tensor.untyped_storage()._cdata for tensor in besides}
    found: dict[int, Tensor] = {}  # alive, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage()._cdata, tensor.detach())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    del result
    return float(sum(tensor.untyped_storage().nbytes() for at, tensor in found.items() if at not in apart))
