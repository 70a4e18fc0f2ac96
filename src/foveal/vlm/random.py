"""Random dropping of visual tokens: the floor that every other method has to beat.

Rows of a batch with equally many visual tokens keep the same ones, and a seed gives the same choice each time.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.vlm.method import Cut, Seen, VlmError, count, share, top

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Random", "random_scores"]


def random_scores(visual: Tensor, *, seed: int) -> Tensor:
    """A random number for each visual token.

    Args:
        visual: visual tokens, (B, N).
        seed: seed.

    Returns:
        Scores in [0, 1), (B, N); those of a row depend on the number of a visual token in its row only.
    """
    drawn = torch.rand(visual.shape[1] + 1, generator=torch.Generator().manual_seed(seed)).to(visual.device)
    return drawn[visual.cumsum(1)]


@dataclass(frozen=True)
class Random:
    """Random dropping.

    Args:
        keep: share of the visual tokens that stays, in (0, 1].
        layer: first decoder layer that does without the others; 0 drops them before the language model.
        cache: whether they go from the caches after the prefill instead.
        seed: seed.

    Raises:
        VlmError: a number outside its range.
    """

    keep: float = 0.25
    layer: int = 0
    cache: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        share(self.keep)
        if self.layer < 0:
            raise VlmError(f"layer must be at least 0, got {self.layer}; 0 drops tokens before the language model")

    def cuts(self, depth: int) -> tuple[Cut, ...]:  # noqa: ARG002 - the same for every depth
        """Where tokens go.

        Args:
            depth: number of layers of the decoder.

        Returns:
            One cut.
        """
        return (Cut(self.layer, cache=self.cache),)

    def choose(self, seen: Seen, cut: int) -> Tensor:  # noqa: ARG002 - there is one
        """Which visual tokens stay.

        Args:
            seen: what there is to read.
            cut: number of the cut.

        Returns:
            Mask, (B, N).
        """
        return top(random_scores(seen.visual, seed=self.seed), seen.visual, count(seen.total, self.keep))
