"""What routed upscaling gains and costs on the test pictures of `photos`: decibels over bicubic, counted multiply-adds.

Budgets are found on the low resolution of these pictures, so that two ways to route cost the same on them; the high
resolution is used for the score alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import photos

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["Outcome", "measured", "photograph", "pictures", "timed"]


class Outcome(NamedTuple):
    """Gain and cost on the test pictures.

    Args:
        gain: gain in luminance PSNR over bicubic, dB, the mean over the pictures.
        macs: multiply-adds of all pictures together.
    """

    gain: float
    macs: int


class _Seen(nn.Module):
    """Keeps what it is given, and repeats its pixels."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale, self.pictures = scale, list[torch.Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.pictures.append(x.clone())
        return x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


@cached(maxsize=4)
def pictures(scale: int, sets: Sequence[str] = photos.HELD_OUT) -> tuple[Tensor, ...]:
    """Low resolution of the test pictures.

    Args:
        scale: s.
        sets: names of benchmark sets.

    Returns:
        Pictures, (1, 3, h, w) each.
    """
    seen = _Seen(scale)
    photos.gain(seen, scale, sets=sets)
    return tuple(seen.pictures)


def measured(network: nn.Module, scale: int) -> Outcome:
    """Score and count in one pass over the test pictures.

    Args:
        network: network, (1, 3, h, w) to (1, 3, s·h, s·w), at its budget.
        scale: s.

    Returns:
        Gain and multiply-adds.
    """
    with FlopCounterMode(display=False) as counter:
        gain = photos.gain(network, scale)
    return Outcome(gain, counter.get_total_flops() // 2)


def photograph(height: int, width: int, scale: int = 2) -> Tensor:
    """A photograph of any size, put together from test pictures.

    Args:
        height: h.
        width: w.
        scale: factor by which the test pictures are reduced.

    Returns:
        Picture, (1, 3, h, w).
    """
    found = pictures(scale, ("BSD100",))
    side = found[0].shape[2:]
    found = tuple(x for x in found if x.shape[2:] == side)
    rows, columns = -(-height // side[0]), -(-width // side[1])
    whole = np.arange(rows * columns).reshape(rows, columns) % len(found)
    bands = [torch.cat([found[i] for i in row], 3) for row in whole]
    return torch.cat(bands, 2)[..., :height, :width]


def timed(prepare: Callable[[Tensor], nn.Module], height: int, width: int) -> Callable[[], Callable[[], Any]]:
    """A forward pass on a photograph, for `faster`.

    Args:
        prepare: function from the photograph to the network at its budget.
        height: height of the photograph.
        width: width of the photograph.

    Returns:
        Function that prepares and returns the function to time.
    """

    def ready() -> Callable[[], Any]:
        x = photograph(height, width)
        network = prepare(x).eval()

        def run() -> Any:
            with torch.inference_mode():
                return network(x)

        return run

    return ready
