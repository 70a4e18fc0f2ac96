"""Whether Triton kernels can run; the counterpart of `foveal.ops.native` for the compiled ones."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["why_not"]


def why_not(u: Tensor) -> str | None:
    """Why Triton kernels cannot run.

    Args:
        u: input of the call.

    Returns:
        None if they can, else the reason and what to do.
    """
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if os.environ.get("TRITON_INTERPRET") != "1":  # Triton's interpreter accepts CPU tensors
        if not torch.cuda.is_available():
            return "no CUDA device"
        if u.device.type != "cuda":
            return f"Triton kernels run on CUDA devices, the tensors are on {u.device}; move them there"
    if u.dtype == torch.float64:
        return "Triton kernels compute in float32, the tensors are float64"
    return None
