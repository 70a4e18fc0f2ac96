"""A rolling shutter: each row is exposed at its own time, so what moves is sheared. Differentiable.

Row v of H is seen at the time  t(v) = (v / (H − 1) − ½) · read,  in units of the time between frames, top to bottom, or
bottom to top when reversed; a picture that moves by m pixels a frame shows there what is at  x − m · t(v).

*Source*: the row-time model of C.-K. Liang, L.-W. Chang, H. Chen, "Analysis and Compensation of Rolling Shutter
Effect", IEEE TIP 17(8), 2008. Borders are repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.train.restore.bank._chance import between, checked

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["RollingShutter", "row_times", "shifted"]


def row_times(height: int, read: float = 1.0, *, reverse: bool = False) -> Tensor:
    """When each row is seen.

    Args:
        height: H.
        read: share of the time between frames that reading takes.
        reverse: bottom to top.

    Returns:
        (H,), in frames from the middle row's time.
    """
    times = torch.linspace(-0.5, 0.5, height) * read
    return times.flip(0) if reverse else times


def shifted(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pictures read elsewhere: y(v, u) = x(v + rows, u + columns), bilinear, borders repeated.

    Args:
        pictures: (B, C, H, W).
        rows: pixels down, broadcast to (B, H, W).
        columns: pixels to the right, broadcast to (B, H, W).

    Returns:
        The same shape.
    """
    batch, _, height, width = pictures.shape
    v = torch.arange(height).to(pictures).view(1, -1, 1) + rows
    u = torch.arange(width).to(pictures).view(1, 1, -1) + columns
    grid = torch.stack(torch.broadcast_tensors(2 * u / max(width - 1, 1) - 1, 2 * v / max(height - 1, 1) - 1), -1)
    grid = grid.expand(batch, height, width, 2)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=True)


@dataclass(frozen=True)
class RollingShutter:
    """A picture that moved while its rows were read.

    Args:
        across: movement to the right, -64 to 64 pixels a frame.
        down: movement down, -64 to 64 pixels a frame.
        read: share of a frame's time that reading takes, 0 to 1.
        reverse: read bottom to top.

    Raises:
        ValueError: a strength outside its range.
    """

    across: float = 8.0
    down: float = 0.0
    read: float = 1.0
    reverse: bool = False

    def __post_init__(self) -> None:
        checked("shutter", across=(self.across, -64, 64), down=(self.down, -64, 64), read=(self.read, 0, 1))

    @classmethod
    def draw(cls, generator: Generator) -> RollingShutter:
        """Up to 16 pixels across and 4 down a frame.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        return cls(between(-16, 16, generator), between(-4, 4, generator))

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1], as they are at the middle row's time.
            generator: takes no part.

        Returns:
            The same shape, in [0, 1].
        """
        times = row_times(pictures.shape[-2], self.read, reverse=self.reverse).to(pictures).view(1, -1, 1)
        return shifted(pictures, -self.down * times, -self.across * times)
