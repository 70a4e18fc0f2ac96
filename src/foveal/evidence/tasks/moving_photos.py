"""Films of real photographs with exact motion: a photograph pans, and pieces of another one move across it.

Everything is drawn from a seed and seen at any time, or with a time for each row, as a rolling shutter sees it; the
motion of every pixel is known. Training films are made of bsds400, test films of BSD100. The time is in frames and 0 in
the middle: at time t the background has moved by v · t pixels and piece k by vₖ · t. The floor for anything that
computes a frame is a copy of a given one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import restoring
from foveal.train.restore.bank.blur import filtered, gaussian

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["NEEDS", "SIDE", "Film", "drawn", "films", "held_out"]

NEEDS = restoring.NEEDS
SIDE = 64  # of a frame, in pixels
SOURCE, STEP = 128, 1.5  # side of a source photograph, and its pixels for one of a frame
EDGE = 1.5  # pixels over which the edge of a piece is soft


@dataclass(frozen=True)
class Film:
    """A batch of scenes.

    Args:
        photos: backgrounds, (B, 3, h, w) in [0, 1].
        textures: photographs that pieces are cut from, (B, K, 3, h, w).
        velocity: of the background, pixels a frame to the right and down, (B, 2).
        places: centres of the pieces at time 0, pixels from the middle of the frame, (B, K, 2).
        radii: half axes of the pieces, which are ellipses, in pixels, (B, K, 2).
        velocities: of the pieces, (B, K, 2).
        side: of a frame, in pixels.
    """

    photos: Tensor
    textures: Tensor
    velocity: Tensor
    places: Tensor
    radii: Tensor
    velocities: Tensor
    side: int = SIDE

    def _pixels(self) -> Tensor:
        """Pixels from the middle of the frame, to the right and down, (2, H, W)."""
        line = torch.arange(self.side) - (self.side - 1) / 2
        return torch.stack([line.expand(self.side, -1), line[:, None].expand(-1, self.side)])

    def _read(self, photos: Tensor, places: Tensor) -> Tensor:
        """Photographs at places in pixels of a frame from their middle, (B, 2, H, W)."""
        scale = 2 * STEP / (torch.tensor(photos.shape[:-3:-1]) - 1)
        grid = (places * scale[:, None, None]).permute(0, 2, 3, 1)
        return F.grid_sample(photos, grid, mode="bicubic", padding_mode="border", align_corners=True).clamp(0, 1)

    def _piece(self, k: int, time: Tensor) -> tuple[Tensor, Tensor]:
        """Places within piece k, (B, 2, H, W), and how opaque it is there, (B, 1, H, W)."""
        local = self._pixels() - self.places[:, k, :, None, None] - self.velocities[:, k, :, None, None] * time
        radii = self.radii[:, k, :, None, None]
        beyond = ((local / radii).square().sum(1, keepdim=True).sqrt() - 1) * radii.amin(1, keepdim=True)
        return local, (0.5 - beyond / EDGE).clamp(0, 1)

    def seen(self, time: float | Tensor) -> Tensor:
        """What a camera sees.

        Args:
            time: of the frame, or of each of its rows, (H, 1).

        Returns:
            (B, 3, H, W) in [0, 1].
        """
        times = torch.as_tensor(time, dtype=torch.float32)
        out = self._read(self.photos, self._pixels() - self.velocity[..., None, None] * times)
        for k in range(self.places.shape[1]):
            local, opaque = self._piece(k, times)
            out = out + opaque * (self._read(self.textures[:, k], local) - out)
        return out

    def motion(self, time: float | Tensor) -> Tensor:
        """Velocity of what each pixel shows.

        Args:
            time: of the frame, or of each of its rows, (H, 1).

        Returns:
            Pixels a frame to the right and down, (B, 2, H, W).
        """
        times = torch.as_tensor(time, dtype=torch.float32)
        out = self.velocity[..., None, None].expand(-1, -1, self.side, self.side)
        for k in range(self.places.shape[1]):
            out = torch.where(self._piece(k, times)[1] > 0.5, self.velocities[:, k, :, None, None], out)
        return out


def drawn(
    photos: Tensor,
    generator: torch.Generator,
    *,
    speed: tuple[float, float] = (6.0, 2.0),
    pieces: int = 1,
    side: int = SIDE,
) -> Film:
    """A batch of scenes with drawn motion, each with pieces of the photographs after its own.

    Args:
        photos: (B, 3, h, w) in [0, 1].
        generator: source of all choices.
        speed: largest velocity across and down, pixels a frame.
        pieces: K, moving pieces of each scene.
        side: of a frame, in pixels.

    Returns:
        The scenes.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, 2, generator=generator) * 2 - 1

    batch, largest = len(photos), torch.tensor(speed)
    smooth = filtered(photos, gaussian(0.7))  # frames have fewer pixels than photographs
    textures = [smooth.roll(-1 - k, 0) for k in range(pieces)]
    return Film(
        photos=smooth,
        textures=torch.stack(textures, 1) if pieces else smooth.new_zeros(batch, 0, *photos.shape[1:]),
        velocity=uniform(batch) * largest,
        places=uniform(batch, pieces) * 0.3 * side,
        radii=(0.15 + 0.05 * uniform(batch, pieces)) * side,
        velocities=uniform(batch, pieces) * largest,
        side=side,
    )


def films(seed: int, *, batch: int = 8, **motion: float) -> Callable[[int], Film]:
    """Training films.

    Args:
        seed: seed of photographs and motion.
        batch: B.
        **motion: `speed`, `pieces` and `side` of `drawn`.

    Returns:
        Function from a step to B scenes.
    """
    load = restoring.clean(seed, patch=SOURCE, batch=batch)

    def film(step: int) -> Film:
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + step)
        return drawn(load(step), generator, **motion)  # type: ignore[arg-type]

    return film


@cached(maxsize=2)
def held_out(*, speed: tuple[float, float] = (6.0, 2.0), pieces: int = 1) -> Film:
    """Test films.

    Args:
        speed: largest velocity across and down, pixels a frame.
        pieces: moving pieces of each scene.

    Returns:
        30 scenes of BSD100.
    """
    photos = restoring.crops()
    if rehearsing():
        photos = F.interpolate(photos, (SOURCE, SOURCE), mode="bilinear")
    return drawn(photos, torch.Generator().manual_seed(30), speed=speed, pieces=pieces)
