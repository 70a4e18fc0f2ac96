"""Memory of tensors that a computation holds at once, counted instead of measured: the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["live_bytes"]


class _Live(TorchDispatchMode):
    """Largest number of bytes of tensors that operations made inside and that were held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        self.held = {at: (ref, size) for at, (ref, size) in self.held.items() if not ref.expired()}
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in known | self.held.keys():  # a view, or written in place
                    self.held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return out


def live_bytes(work: Callable[[], Any]) -> float:
    """Largest memory of the tensors that a computation made and held at once.

    Tensors that exist before do not count, nor what an operation allocates inside and frees before it returns;
    `foveal.measure.cost.peak_memory` measures all of it, on one machine.

    Args:
        work: computation without gradients; what it returns counts.

    Returns:
        Bytes.
    """
    with torch.inference_mode(False), torch.no_grad(), _Live() as counter:
        work()
    return float(counter.peak)
