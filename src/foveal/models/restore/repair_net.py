"""RepairNet: repairs a picture at its own size, computes at half of it, and may be told how damaged the picture is.

    h₀ = leaky(W₀ * unshuffle₂(x) + b₀ + tell₀)
    hₗ = hₗ₋₁ + Vₗ * leaky(Wₗ * hₗ₋₁ + bₗ + tellₗ(level))
    out = shuffle₂( unshuffle₂(x) + W * h )

*Source*: foveal's own. Working on 2×2 blocks of pixels, and being told the level of the damage, are ideas of K. Zhang,
W. Zuo, L. Zhang, "FFDNet: Toward a Fast and Flexible Solution for CNN-Based Image Denoising" (arXiv:1710.04026),
section III. Differs from the paper: colour pictures take one network for all three colours, blocks are residual, and
the level (step of the JPEG's table, noise, noise of colour: as in `luma_clean`) is no plane beside the picture but a
shift of every block's biases, so that at run time it costs nothing: all levels share their kernels.

At the start of a training the network is the identity.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RepairNet", "repair_clean", "repair_weather"]

BLOCK = 2  # side of the blocks of pixels that become channels
SLOPE = 0.1
_JPEG = (0.1, 0.18, 0.3, 0.5, 0.75, 1.1, 1.6, 2.4, 3.6, 5.5)
_NOISE = (0.25, 0.4, 0.6, 0.9, 1.3, 1.9, 2.7, 3.8, 5.2)
# Levels of a bundle: none, JPEGs, noise in colour and in grey, and JPEGs with noise.
GRID = (
    (0.0, 0.0, 0.0),
    *((jpeg, 0.0, 0.0) for jpeg in _JPEG),
    *((0.0, noise, colour * noise) for noise in _NOISE for colour in (0, 1)),
    *((jpeg, noise, colour * noise) for jpeg in (0.1, 0.3, 0.75) for noise in (0.4, 0.9, 1.9) for colour in (0, 1)),
)


class RepairNet(nn.Module):
    """Restoration network, (B, 3, H, W) to the same, H and W even; RGB in [0, 1].

    Args:
        scale: 1; it does not enlarge.
        channels: C, width.
        depth: L, residual blocks of two 3×3 convolutions.
        told: whether `forward` takes a level; a network for damage without levels is not told.
        tell: hidden width of the small network that turns a level into shifts.

    Raises:
        ValueError: another scale.
    """

    multiple = BLOCK

    def __init__(
        self, scale: int = 1, *, channels: int = 48, depth: int = 4, told: bool = False, tell: int = 32
    ) -> None:
        super().__init__()
        if scale != 1:
            raise ValueError(f"RepairNet repairs pictures at their own size, scale 1, got {scale}")
        self.scale, self.depth, self.levels = scale, depth, told
        planes = 3 * BLOCK**2
        self.head = nn.Conv2d(planes, channels, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.second = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.tail = nn.Conv2d(channels, planes, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(cast("Tensor", self.tail.bias))
        if told:
            self.tell = nn.Sequential(nn.Linear(6, tell), nn.SiLU(), nn.Linear(tell, (depth + 1) * channels))
            last = cast("nn.Linear", self.tell[2])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @property
    def linear(self) -> tuple[str, ...]:
        """Names of matrices that turn a level into shifts, which Adam trains."""
        return ("tell.0.weight", "tell.2.weight") if self.levels else ()

    @property
    def grid(self) -> tuple[tuple[float, float, float], ...]:
        """Levels that a bundle holds."""
        return GRID

    @property
    def margin(self) -> int:
        """Radius of the receptive field in input pixels."""
        return BLOCK * (2 * self.depth + 2)

    def shifts(self, level: Tensor) -> tuple[Tensor, ...]:
        """What a level adds to the biases.

        Args:
            level: step of the JPEG's table, noise, noise of colour, (B, 3).

        Returns:
            (B, C) for the first layer and every block.
        """
        told: Tensor = self.tell(torch.cat([level, level.clamp_min(0).sqrt()], 1))
        return told.chunk(self.depth + 1, 1)

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """Repair pictures.

        Args:
            x: (B, 3, H, W), sides even.
            level: (B, 3); None for clean pictures, and for a network that is not told.

        Returns:
            (B, 3, H, W).
        """
        blocks = F.pixel_unshuffle(x, BLOCK)
        shifts: Sequence[Any] = (0.0,) * (self.depth + 1)
        if self.levels:
            told = x.new_zeros(len(x), 3) if level is None else level
            shifts = [shift[..., None, None] for shift in self.shifts(told)]
        h = F.leaky_relu(self.head(blocks) + shifts[0], SLOPE)
        for one, two, shift in zip(self.first, self.second, shifts[1:], strict=True):
            h = h + two(F.leaky_relu(one(h) + shift, SLOPE))
        return F.pixel_shuffle(blocks + self.tail(h), BLOCK)

    @torch.no_grad()
    def plain(self, level: Sequence[float] = (0.0, 0.0, 0.0)) -> nn.Module:
        """The network of one level without padding.

        Args:
            level: step of the JPEG's table, noise, and noise of colour; a network that is not told ignores it.

        Returns:
            A module, (B, 3, H + 2r, W + 2r) to (B, 3, H, W) with r = its `margin`.
        """
        shifts: Sequence[Any] = [0.0] * (self.depth + 1)
        if self.levels:
            shifts = [shift[0] for shift in self.shifts(self.head.weight.new_tensor([level]))]
        head = _valid(self.head, shifts[0])
        first = [_valid(conv, shift) for conv, shift in zip(self.first, shifts[1:], strict=True)]
        return _Plain(head, first, [_valid(conv) for conv in self.second], _valid(self.tail)).eval()


class _Plain(nn.Module):
    """RepairNet of one level without padding."""

    def __init__(self, head: nn.Conv2d, first: list[nn.Conv2d], second: list[nn.Conv2d], tail: nn.Conv2d) -> None:
        super().__init__()
        self.head, self.tail = head, tail
        self.first, self.second = nn.ModuleList(first), nn.ModuleList(second)

    def forward(self, x: Tensor) -> Tensor:
        blocks = F.pixel_unshuffle(x, BLOCK)
        h = F.leaky_relu(self.head(blocks), SLOPE)
        for one, two in zip(self.first, self.second, strict=True):
            h = h[..., 2:-2, 2:-2] + two(F.leaky_relu(one(h), SLOPE))
        around = 2 * len(self.first) + 2
        return F.pixel_shuffle(blocks[..., around:-around, around:-around] + self.tail(h), BLOCK)


def _valid(conv: nn.Module, shift: Tensor | float = 0.0) -> nn.Conv2d:
    """The same convolution without padding, its biases shifted."""
    weight, bias = cast("Tensor", conv.weight), cast("Tensor", conv.bias)
    made = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2])
    made.weight.copy_(weight)
    cast("Tensor", made.bias).copy_(bias + shift)
    return made


repair_clean = partial(RepairNet, told=True)  # JPEG and noise
repair_weather = partial(RepairNet, channels=40, depth=6)  # rain and snow: streaks are long


METHOD = Method(
    id=None,
    name="RepairNet",
    kind="model",
    summary="Residual network on 2×2 blocks of pixels that repairs pictures, told the level through its biases.",
    paper=Paper("RepairNet", "foveal", 2026, "foveal.models.restore.repair_net"),
    models={"repair_clean": repair_clean, "repair_weather": repair_weather},
    cases={"repair_clean": {"channels": 8, "depth": 1}, "repair_weather": {"channels": 8, "depth": 2}},
)
