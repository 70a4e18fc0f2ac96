"""Batches and objective of a network that is told how damaged its input is (`foveal.models.restore.luma_clean`).

The input is damaged anew at every step. Luminance is compared at the large size, with the original and with what a
network for clean pictures makes of the undamaged small one: its answer has none of the detail that nobody could know.
Colour is compared at the small size, where it is cleaned. Both are roots of each patch's mean squared error, so that
the worst damage does not count for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from foveal.train.restore.degradations import degrade
from foveal.train.restore.losses import LOSSES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from foveal.train.restore.pairs import Pairs

__all__ = ["BORDER", "Damaged", "Separate", "damaged_batches", "objective"]

BORDER = 16  # pixels of a patch that are cut off, so that the grid of its blocks lies anywhere
LUMINANCE = (0.299, 0.587, 0.114)
TO_CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Separate(Protocol):
    """A network that gives luminance and colour apart."""

    def separate(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Luminance of the result, and Cb and Cr of the small picture, cleaned.

        Args:
            x: (B, 3, H, W).
            level: (B, 3).

        Returns:
            (B, 1, s·H, s·W) and (B, 2, H, W).
        """
        ...


class Damaged(NamedTuple):
    """A batch.

    Args:
        given: damaged patches, (B, p, p, 3) uint8.
        clean: the same before, (B, p, p, 3) uint8.
        wanted: originals, (B, s·p, s·p, 3) uint8.
        taught: what teachers make of `clean`, as `wanted`; `wanted` itself without teachers.
        level: what a network is told, (B, 3).
    """

    given: NDArray[np.uint8]
    clean: NDArray[np.uint8]
    wanted: NDArray[np.uint8]
    taught: NDArray[np.uint8]
    level: NDArray[np.float32]


def damaged_batches(pairs: Pairs, size: int, seed: int) -> Callable[[int], Damaged]:
    """Batches of a training, each a function of seed and step alone.

    Args:
        pairs: pairs whose patches are `BORDER` pixels larger than those of the batches.
        size: B.
        seed: of all choices.

    Returns:
        Step to batch.

    Raises:
        ValueError: patches that leave nothing without the border.
    """
    side, scale = pairs.patch - BORDER, pairs.scale
    if side < 1:
        raise ValueError(f"pairs must have patches of more than {BORDER} pixels, got {pairs.patch}; take larger ones")

    def batch(step: int) -> Damaged:
        rng = np.random.default_rng((seed, step))
        low, high, *taught = pairs.batch(size, rng)
        cut = []
        for k in range(size):
            damaged = degrade(low[k], high[k], rng)
            top, left = (int(n) for n in rng.integers(0, BORDER + 1, 2))
            rows, columns = slice(top, top + side), slice(left, left + side)
            large = tuple(slice(s.start * scale, s.stop * scale) for s in (rows, columns))
            answer = taught[0] if taught else high
            small = (damaged.pixels[rows, columns], low[k][rows, columns])
            cut.append((*small, high[k][large], answer[k][large], np.array(damaged.level, np.float32)))
        return Damaged(*(np.stack(part) for part in zip(*cut, strict=True)))

    return batch


def objective(teacher_share: float, *, colour: float = 1.0) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    """The loss of a network that gives luminance and colour apart.

    Args:
        teacher_share: of the teachers' answers in what is learnt of luminance, in [0, 1].
        colour: weight of colour's loss beside that of luminance.

    Returns:
        A function of the network and a batch, as `Damaged` orders it.
    """
    roots = LOSSES["luma_root"]
    to_luminance = torch.tensor([LUMINANCE])
    to_chroma = torch.tensor(TO_CHROMA)

    def compare(model: nn.Module, batch: tuple[Tensor, ...], /) -> Tensor:
        *pictures, level = batch
        given, clean, wanted, taught = (t.permute(0, 3, 1, 2).float().div_(255) for t in pictures)
        luminance, chroma = model.separate(given, level)  # type: ignore[operator]
        target = torch.einsum("ic,bchw->bihw", to_luminance.to(given), wanted.lerp_(taught, teacher_share))
        of_colour = torch.einsum("ic,bchw->bihw", to_chroma.to(given), clean)
        loss: Tensor = roots(luminance.float(), target) + colour * roots(chroma.float(), of_colour)
        return loss

    return compare
