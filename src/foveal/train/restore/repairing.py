"""Batches and objective of networks that repair pictures at their own size: damage from the bank, drawn anew each step.

A network that is told how damaged its input is learns with the level that foveal will read in it
(`foveal.images.degradation`), which is the truth up to a reading error of 12 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from foveal.images.degradation import jpeg_level
from foveal.train.restore.bank import bank
from foveal.train.restore.bank.jpeg import Jpeg
from foveal.train.restore.bank.noise import Noise
from foveal.train.restore.losses import LOSSES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Generator, Tensor, nn

    from foveal.train.restore.pairs import Pairs

__all__ = ["BORDER", "Repaired", "objective", "repair_batches"]

BORDER = 8  # pixels of a patch that are cut off, so that the grid of a JPEG's blocks lies anywhere
NOISE_UNIT = 10.0  # levels of 255 that a noise of 1 stands for
MISREAD = 0.12  # standard deviation of the logarithm of a level that is read


class Repaired(NamedTuple):
    """A batch.

    Args:
        given: damaged patches, (B, p, p, 3) uint8.
        wanted: originals, (B, p, p, 3) uint8.
        level: step of the JPEG's table, noise in tens of levels, and noise of colour, (B, 3).
    """

    given: NDArray[np.uint8]
    wanted: NDArray[np.uint8]
    level: NDArray[np.float32]


def _damage(picture: Tensor, name: str, generator: Generator) -> tuple[Tensor, tuple[float, float, float]]:
    """A picture damaged once, and the level of a JPEG or of noise."""
    damage = bank(name).draw(generator)
    made = damage(picture, generator)
    misread = float(torch.exp(MISREAD * torch.randn((), generator=generator)))
    if isinstance(damage, Noise):
        noise = damage.sigma / NOISE_UNIT * (1.5 if damage.grey else 1.0) * misread
        return made, (0.0, noise, 0.0 if damage.grey else noise)
    return made, (jpeg_level(damage.quality), 0.0, 0.0) if isinstance(damage, Jpeg) else (0.0, 0.0, 0.0)


def repair_batches(pairs: Pairs, size: int, seed: int, names: Sequence[str]) -> Callable[[int], Repaired]:
    """Batches of a training, each a function of seed and step alone.

    Args:
        pairs: pairs of scale 1 whose patches are `BORDER` pixels larger than those of the batches.
        size: B.
        seed: of all choices.
        names: degradations of the bank, of which each picture has one; "a+b" for two, one after the other.

    Returns:
        Step to batch.

    Raises:
        ValueError: pairs of another scale, or patches that leave nothing without the border.
    """
    side = pairs.patch - BORDER
    if pairs.scale != 1 or side < 1:
        raise ValueError(
            f"pairs must be of scale 1 with patches of more than {BORDER} pixels, got scale {pairs.scale} and "
            f"{pairs.patch}"
        )

    def batch(step: int) -> Repaired:
        rng = np.random.default_rng((seed, step))
        high = pairs.batch(size, rng)[1]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        given, wanted, levels = [], [], []
        for k in range(size):
            one = torch.from_numpy(high[k]).permute(2, 0, 1)[None].float() / 255
            level = (0.0, 0.0, 0.0)
            for name in names[(step * size + k) % len(names)].split("+"):
                one, more = _damage(one, name, generator)
                level = tuple(max(a, b) for a, b in zip(level, more, strict=True))  # type: ignore[assignment]
            top, left = (int(n) for n in rng.integers(0, BORDER + 1, 2))
            cut = slice(top, top + side), slice(left, left + side)
            given.append(one[0].mul(255).round().byte().permute(1, 2, 0).numpy()[cut])
            wanted.append(high[k][cut])
            levels.append(level)
        return Repaired(np.stack(given), np.stack(wanted), np.array(levels, np.float32))

    return batch


def objective(model: nn.Module, batch: tuple[Tensor, ...], /) -> Tensor:
    """Root of each patch's mean squared error of RGB, so that the worst damage does not count for all.

    Args:
        model: network, (B, 3, H, W), and (B, 3) if it is told a level, to (B, 3, H, W).
        batch: as `Repaired` orders it.

    Returns:
        Loss, a scalar.
    """
    given, wanted = (t.permute(0, 3, 1, 2).float().div_(255) for t in batch[:2])
    made = model(given, batch[2]) if getattr(model, "levels", False) else model(given)
    loss: Tensor = LOSSES["luma_root"](made.float(), wanted)
    return loss
