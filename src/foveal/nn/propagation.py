"""Features carried from frame to frame along the motion that is found between two frames.

    state_t = cell([x_t, warp(state_{t-1}, flow_{t→t-1})]),   state_{-1} = 0

The flow is found without learning: whole displacements are compared over windows, then Lucas and Kanade's least
squares make the best one finer, g being the gradient of y along the flow. Sums and means are over a window, and the
mean keeps the steps from diverging:

    d₀(p) = argmin_d Σ |x(p) - y(p + d)|²,   d ← mean(d + (Σ g gᵀ + ridge)⁻¹ Σ g (x - y(· + d)))

Networks for video take pretrained flow networks, frozen, at this place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.motion import warped

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ResidualCell", "film_flow", "found_flow", "he_", "propagated"]

RIDGE = 3e-4  # of the least squares, for mean squares of gradients of pictures in [0, 1]
SMALL = 0.75  # pixels by which the least squares may correct a whole displacement
OVERALL = 0.1  # weight of the whole picture's cost beside a window's, which decides where a window shows nothing


def _blurred(x: Tensor, window: int) -> Tensor:
    """Means over windows; those at the border are smaller."""
    return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)


@torch.no_grad()
def found_flow(x: Tensor, y: Tensor, *, reach: int = 3, window: int = 5, steps: int = 3) -> Tensor:
    """Flow along which y shows what x shows: `warped(y, flow)` is like x. No gradients.

    Args:
        x: (B, C, H, W) in [0, 1].
        y: the same.
        reach: largest whole displacement across and down, in pixels.
        window: side of a window, odd.
        steps: of least squares; 0 for whole displacements.

    Returns:
        Pixels to the right and down, (B, 2, H, W).

    Raises:
        ValueError: pictures of two shapes, or an even window.
    """
    if x.shape != y.shape or not window % 2:
        raise ValueError(
            f"a flow is found between pictures of one shape with an odd window, got {tuple(x.shape)}, "
            f"{tuple(y.shape)} and window {window}"
        )
    height, width = x.shape[-2:]
    padded = F.pad(y, (reach,) * 4, mode="replicate")
    line = torch.arange(-reach, reach + 1)
    grid = torch.cartesian_prod(line, line)  # across, down
    grid = grid[grid.square().sum(1).argsort(stable=True)]  # of equal costs the shortest wins
    costs = torch.cat(
        [
            (x - padded[..., reach + down : reach + down + height, reach + across : reach + across + width])
            .square()
            .mean(1, keepdim=True)
            for across, down in grid.tolist()
        ],
        1,
    )
    costs = _blurred(costs, window) + OVERALL * costs.mean((2, 3), keepdim=True)
    flow = grid.to(x)[costs.argmin(1)].permute(0, 3, 1, 2).contiguous()
    whole = flow
    for _ in range(steps):
        seen = warped(y, flow)
        around = F.pad(seen, (1, 1, 1, 1), mode="replicate")
        across = (around[..., 1:-1, 2:] - around[..., 1:-1, :-2]) / 2
        down = (around[..., 2:, 1:-1] - around[..., :-2, 1:-1]) / 2
        left = x - seen
        products = [across * across, across * down, down * down, across * left, down * left]
        xx, xy, yy, xe, ye = _blurred(torch.stack([p.mean(1) for p in products], 1), window).unbind(1)
        xx, yy = xx + RIDGE, yy + RIDGE
        found = torch.stack([yy * xe - xy * ye, xx * ye - xy * xe], 1) / (xx * yy - xy * xy)[:, None]
        flow = whole + _blurred((flow + found - whole).clamp(-SMALL, SMALL), window)
    return flow


def film_flow(frames: Tensor, *, ahead: int = 1, reach: int = 3) -> Tensor:
    """Flows from each frame to a later or an earlier one; beyond the ends stands the frame at the end.

    Args:
        frames: (B, T, C, H, W) in [0, 1].
        ahead: how many frames later, negative for earlier.
        reach: see `found_flow`.

    Returns:
        (B, T, 2, H, W).
    """
    batch, count = frames.shape[:2]
    other = frames[:, (torch.arange(count) + ahead).clamp(0, count - 1)]
    return found_flow(frames.flatten(0, 1), other.flatten(0, 1), reach=reach).unflatten(0, (batch, count))


def propagated(frames: Tensor, flows: Tensor, cell: Callable[[Tensor], Tensor], dim: int) -> Tensor:
    """Recurrence from the first frame to the last; flip frames, flows and result along T for the other direction.

    Args:
        frames: what the cell sees of each frame, (B, T, C, H, W).
        flows: from each frame to the one before, (B, T, 2, H, W); the first is not read.
        cell: (B, C + D, H, W) to (B, D, H, W).
        dim: D.

    Returns:
        States, (B, T, D, H, W).
    """
    batch, count, _, height, width = frames.shape
    state, states = frames.new_zeros(batch, dim, height, width), []
    for t in range(count):
        if t:
            state = warped(state, flows[:, t])
        state = cell(torch.cat([frames[:, t], state], 1))
        states.append(state)
    return torch.stack(states, 1)


@torch.no_grad()
def he_(module: nn.Module) -> None:
    """He's initialisation of all convolutions: maps keep their scale from layer to layer, however few steps there are.

    Args:
        module: changed in place.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, 0.1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ResidualCell(nn.Sequential):
    """A convolution and residual blocks, (B, C, H, W) to (B, D, H, W).

    Args:
        in_channels: C.
        dim: D.
        depth: residual blocks.
    """

    def __init__(self, in_channels: int, dim: int, depth: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, dim, 3, padding=1), nn.LeakyReLU(0.1), *(_Residual(dim) for _ in range(depth))
        )
        he_(self)
        for block in self:
            if isinstance(block, _Residual):  # branches begin small, so that depth does not add up
                block.two.weight.data.mul_(0.1)


class _Residual(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(x)))
