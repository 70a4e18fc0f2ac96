"""Where the tokens of a prompt went."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

__all__ = ["Route"]


@dataclass(frozen=True)
class Route:
    """Tokens of each layer in the last prefill.

    Args:
        tokens: tokens that enter each layer, the same for all rows of a batch.
        visual: visual ones among them, of each row.
        cached: tokens in each layer's cache after it; as many as entered, or fewer.
    """

    tokens: tuple[int, ...] = ()
    visual: tuple[tuple[int, ...], ...] = ()
    cached: tuple[int, ...] = ()

    def __str__(self) -> str:
        said, first = [], 0
        for (tokens, visual, cached), group in groupby(zip(self.tokens, self.visual, self.cached, strict=True)):
            last = first + len(list(group)) - 1
            name = f"layer {first}" if first == last else f"layers {first} to {last}"
            numbers = " and ".join(str(n) for n in visual) if len(set(visual)) > 1 else str(visual[0])
            kept = "" if cached == tokens else f", {cached} cached"
            said.append(f"{name}: {tokens:,} tokens, {numbers} visual{kept}")
            first = last + 1
        return "; ".join(said) or "nothing read yet"
