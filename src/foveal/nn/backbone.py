"""What timm's tools ask of every backbone whose feature maps come from a list of modules, one map a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """Base of `Pyramid` and `Isotropic`, which have a `norm`, a `head` and the list that `parts` names."""

    parts: str
    """Name of the attribute that holds the modules, an `nn.ModuleList`."""

    norm: nn.Module
    head: nn.Module

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place.

        Args:
            num_classes: 0 for none.
            global_pool: what the head reads is fixed; taken for timm's sake.
        """
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        """The last layer.

        Returns:
            A linear layer, or the identity.
        """
        return self.head

    def chosen(self, indices: int | Sequence[int] | None, output_fmt: str = "NCHW") -> list[int]:
        """Which modules' maps are meant.

        Args:
            indices: negative from the end; an int takes the last so many; None takes all.
            output_fmt: "NCHW".

        Returns:
            Indices from 0, in the order given.

        Raises:
            ValueError: an index or format that there is not.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt!r}")
        count = len(getattr(self, self.parts))
        if indices is None:
            return list(range(count))
        wanted = range(count)[-indices:] if isinstance(indices, int) else indices
        if any(not -count <= i < count for i in wanted):
            raise ValueError(f"indices must be in {-count}…{count - 1}, got {list(wanted)}")
        return [i % count for i in wanted]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what intermediate maps do not need.

        Args:
            indices: as for `forward_intermediates`.
            prune_norm: whether the last norm goes.
            prune_head: whether the classifier goes.

        Returns:
            Indices of the modules whose maps are kept for output.
        """
        taken = self.chosen(indices)
        setattr(self, self.parts, getattr(self, self.parts)[: max(taken) + 1])
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken
