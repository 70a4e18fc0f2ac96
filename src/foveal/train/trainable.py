"""What a network may say of itself to be trained better; each is optional, and a network without it trains as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["Deepened", "LinearKernels", "LuminanceAlone"]


@runtime_checkable
class LinearKernels(Protocol):
    """A network with kernels that no activation follows; steps of one norm (Muon) do not suit them.

    Args:
        linear: names of those parameters.
    """

    linear: Sequence[str]


@runtime_checkable
class LuminanceAlone(Protocol):
    """A network of pictures that makes a mixture of its colours for less than all of them."""

    def luminance(self, x: Tensor, weights: Tensor) -> Tensor:
        """A weighted sum of the colours that the network makes.

        Args:
            x: pictures, (B, 3, H, W).
            weights: weights of red, green and blue, (3,).

        Returns:
            (B, 1, s·H, s·W).
        """
        ...


@runtime_checkable
class Deepened(Protocol):
    """A network that takes the weights of a shallower one and then computes the same."""

    def deepened(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a shallower network as weights of this one.

        Args:
            weights: weights by name; those of a network as deep or deeper are returned as they are.

        Returns:
            Weights by name.
        """
        ...
