"""What makes one picture: a network, or two that share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveal.runtime.tiled import network_name, tiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from foveal.runtime.budget import Budget
    from foveal.runtime.engine_choice import EngineChoice
    from foveal.runtime.enlarge import Step
    from foveal.runtime.network import Network

__all__ = ["Running"]


@dataclass(frozen=True)
class Running:
    """The network of a picture, and the smaller one that makes a part of it.

    Args:
        network: the network.
        choice: its engine and tile.
        small: the smaller network; None where the other makes everything.
        budget: what shares the picture between them.
    """

    network: Network
    choice: EngineChoice
    small: Network | None = None
    budget: Budget | None = None

    @property
    def name(self) -> str:
        """Name for the user."""
        name = network_name(self.network)
        return name if self.budget is None or self.small is None else f"{name} at {self.budget.share:g}"

    @property
    def seconds(self) -> float:
        """Time that was spent in the engines."""
        return self.network.seconds + (0.0 if self.small is None else self.small.seconds)

    def bands(
        self,
        pixels: NDArray,
        *,
        alpha: bool,
        step: Step | None = None,
        out: NDArray | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> Iterator[NDArray]:
        """Enlarge a picture.

        Args:
            pixels: (H, W, C).
            alpha: the last channel is alpha.
            step: function called after each batch of tiles.
            out: array for the result; by default each band is an array of its own.
            note: function called with what the user should know.

        Returns:
            Bands, (s·n, s·W, C).
        """
        if self.budget is None or self.small is None:
            if self.budget is not None:
                note(f"budget {self.budget.share:g} takes no part: {network_name(self.network)} makes all frames alike")
            return tiled(pixels, self.network, self.choice, alpha=alpha, step=step, out=out, note=note)
        return self.budget.bands(
            pixels, self.network, self.choice, self.small, alpha=alpha, step=step, out=out, note=note
        )
