"""Queries and keys of one attention of transformers, which fused kernels do not give away."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["EnoughError", "Tap", "tapped"]

_TAP = "foveal_tap"


class EnoughError(Exception):
    """Queries and keys were read; the rest of the attention is not needed."""


@dataclass
class Tap:
    """Queries and keys, read where they enter an attention's kernel.

    Args:
        implementation: name of the kernel in transformers' registry.
        stop: whether to end once they are read.
        found: queries, keys and the factor on their products; None before the attention ran.
    """

    implementation: str
    stop: bool
    found: tuple[Tensor, Tensor, float] | None = None


_TAPS: WeakKeyDictionary[nn.Module, Tap] = WeakKeyDictionary()


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    tap = _TAPS[module]
    tap.found = query, key, float(options.get("scaling") or query.shape[-1] ** -0.5)
    if tap.stop:
        raise EnoughError
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(tap.implementation, eager)
    return attend(module, query, key, value, attention_mask, **options)


def tapped(attention: Any, *, stop: bool) -> Callable[[], Tap]:
    """Let an attention give away its queries and keys.

    Args:
        attention: attention of a decoder's layer.
        stop: whether to end with `EnoughError` once they are read, before the attention is computed.

    Returns:
        Function that puts the attention back and returns what was read.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if _TAP not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(_TAP, _attend)
    original = attention.config
    tap = _TAPS[attention] = Tap(original._attn_implementation, stop)
    # A copy for this one module: layers share their config.
    attention.config = copy.copy(original)
    attention.config._attn_implementation = _TAP

    def undo() -> Tap:
        attention.config = original
        _TAPS.pop(attention, None)
        return tap

    return undo
