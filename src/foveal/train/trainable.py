"""Optional protocols that let a network be trained better; a network without them trains all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["Deepened", "LinearKernels", "LuminanceAlone"]


@runtime_checkable
class LinearKernels(Protocol):
    """A network with kernels that no activation follows; steps of a fixed norm (Muon) do not suit them.

    Args:
        linear: names of those parameters.
    """

    linear: Sequence[str]


@runtime_checkable
class LuminanceAlone(Protocol):
    """A picture network that computes a weighted sum of its colours more cheaply than all of them."""

    def luminance(self, x: Tensor, weights: Tensor) -> Tensor:
        """A weighted sum of the network's output colours.

        Args:
            x: pictures, (B, 3, H, W).
            weights: weights of red, green and blue, (3,).

        Returns:
            The weighted sum, (B, 1, s·H, s·W).
        """
        ...


@runtime_checkable
class Deepened(Protocol):
    """A network that can take the weights of a shallower one and then computes the same."""

    def deepened(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a shallower network as weights of this one.

        Args:
            weights: weights by name; those of a network as deep or deeper are returned unchanged.

        Returns:
            Weights by name.
        """
        ...
