"""Pyramids whose last map is normalised after it is pooled, as in ConvNeXt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PooledNormPyramid"]


class PooledNormPyramid(Pyramid):
    """A `Pyramid` with `head_norm`, (B, C) to (B, C), which its network sets."""

    head_norm: nn.Module

    def pool(self, x: Tensor) -> Tensor:
        """The mean of a map, normalised.

        Args:
            x: last map, (B, C, H', W').

        Returns:
            (B, C).
        """
        pooled: Tensor = self.head_norm(super().pool(x))
        return pooled

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what intermediate maps do not need.

        Args:
            indices: as for `forward_intermediates`.
            prune_norm: whether the norm after pooling goes; it goes with the last stage.
            prune_head: whether the classifier goes; it too goes with the last stage.

        Returns:
            Indices of the stages whose maps are kept for output.
        """
        width = self.num_features
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_norm or self.num_features != width:
            self.head_norm = nn.Identity()
        return taken
