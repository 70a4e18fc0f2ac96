"""Functions that later builds of the compiled kernels added: whether the installed build has one."""

from __future__ import annotations

import torch

from foveal.ops.native import library, why_not

__all__ = ["lacks"]


@torch.compiler.assume_constant_result
def lacks(function: str) -> str | None:
    """Why a function of the kernels cannot be called here.

    Args:
        function: its name in the library.

    Returns:
        None if it can, else the reason and what to do.
    """
    reason = why_not()
    if reason is None and not hasattr(library(), function):
        return (
            f"the installed foveal-kernels has no {function}; run `pip install --force-reinstall --no-deps ./kernels` "
            "in foveal's folder"
        )
    return reason
