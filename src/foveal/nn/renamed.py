"""Rename weights saved by other code to foveal's parameter names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["renamed"]


def renamed(
    state_dict: Mapping[str, Tensor], rules: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
) -> dict[str, Tensor]:
    """Rename the entries of a state dict.

    Args:
        state_dict: name → tensor.
        rules: regular expressions and their replacements, as for `re.sub`, applied in order.

    Returns:
        A new dict with the same tensors, in the same order.

    Raises:
        ValueError: if two entries get the same name.
    """
    found: dict[str, Tensor] = {}
    for old, value in state_dict.items():
        name = old
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in found:
            raise ValueError(
                f"two entries would be called {name!r}, the second is {old!r}; give a state dict of one network"
            )
        found[name] = value
    return found
