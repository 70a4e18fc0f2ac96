"""Conversions shared by the state dicts of networks that are derived from the authors' VMamba code.

Their maps are channels-last, so their projections are linear layers and ours are 1×1 convolutions. Their patch merging
concatenates whole maps, column by column; `PatchMerging` keeps the four neighbours of a channel together.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["S6_NAMES", "as_convolutions", "interleaved"]

# Rules for `foveal.nn.renamed`, for the parameters of `SS2D` and its `S6`.
S6_NAMES = (
    (r"\.conv2d\.", ".conv."),
    (r"\.out_norm\.", ".norm."),
    (r"\.x_proj_weight$", ".s6.x_proj"),
    (r"\.dt_projs_weight$", ".s6.dt_proj"),
    (r"\.dt_projs_bias$", ".s6.dt_bias"),
    (r"\.A_logs$", ".s6.A_log"),
    (r"\.Ds$", ".s6.D"),
)


def interleaved(weight: Tensor) -> Tensor:
    """Reorder the weight of a patch merging, or of its norm, so that each channel's four neighbours are adjacent.

    Args:
        weight: weight, (…, 4·C), with entry (2·j + i)·C + c for row i, column j and channel c.

    Returns:
        (…, 4·C), with entry 4·c + 2·i + j for the same.
    """
    # (…, j, i, C) to (…, C, i, j)
    return weight.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3)


def as_convolutions(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert renamed weights to the shapes of foveal's parameters.

    Args:
        state_dict: name → tensor, under foveal's names; the names of a merging end in "reduction" and "norm".

    Returns:
        Step biases with a single axis, linear layers except the head's as 1×1 convolutions, mergings interleaved.
    """
    merging = {name.removesuffix("reduction.weight") for name in state_dict if name.endswith("reduction.weight")}

    def shaped(name: str, value: Tensor) -> Tensor:
        if re.sub(r"(norm|reduction)\.(weight|bias)$", "", name) in merging:
            value = interleaved(value)
        if name.endswith(".dt_bias"):
            return value.flatten()
        linear = value.ndim == 2 and name.endswith(".weight") and not name.startswith("head")
        return value[..., None, None] if linear else value

    return {name: shaped(name, value) for name, value in state_dict.items()}
