"""SelfDRSC: frames free of rolling shutter from two that were read in opposite orders, learnt without such frames.

Row v of the two inputs is seen at the times  τ₁(v) = v / (H − 1)  and  τ₂(v) = 1 − τ₁(v).  A network predicts the
global-shutter frame of any time t, and what it says about motion, u, must carry each such frame back to both inputs:

    gₜ = m · warp(r₁, u · (τ₁ − t)) + (1 − m) · warp(r₂, u · (τ₂ − t)) + residual      correction
    r̂ᵢ = warp(gₜ, u · (t − τᵢ))                                                        distortion warping
    ℓ  = Σₜ Σᵢ ‖M · (r̂ᵢ − rᵢ)‖₁ + λ · Σₜ ‖gₜ(crops of r₁, r₂) − crop of ḡₜ(r₁, r₂)‖₁    cycle + self-distillation

with M the pixels that the warp reads inside the frame, and ḡ a running average of the network, which sees what lies
beyond the borders of the crop. A wrong motion cannot satisfy both inputs, since they are sheared in opposite ways.

*Source*: W. Shang et al., "Self-supervised Learning to Bring Dual Reversed Rolling Shutter Images Alive", ICCV 2023
(arXiv:2305.19862), sections 3.2 (bidirectional distortion warping), 3.3 (loss) and 3.4 (self-distillation).

*Differs from the paper*: the network is a small one that compares the inputs under each velocity of a grid, in place
of IFED; motion is its own in place of PWC-Net's between frames; each predicted frame alone reproduces both inputs, in
place of a blend of the two next in time; the loss is photometric, without features of a VGG network. So that the
motion is pinned down, both inputs carried to a time must agree there, and its total variation is small: in the middle
rows, read at the same time by both, no motion shows. The cycle is taken of whole pictures, the distillation of crops.

*Provenance*: written from the paper.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Procedure
from foveal.nn.motion import inside, row_map, warped
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Corrector", "SelfDistillation", "agreement", "cycle_loss", "reread", "roughness"]

SHARP = 160.0  # of the choice of a velocity, at the start, for differences of pictures in [0, 1]


def reread(frame: Tensor, velocity: Tensor, time: float, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Bidirectional distortion warping: a global-shutter frame as a rolling shutter would have read it.

    Args:
        frame: frame of one time, (B, C, H, W).
        velocity: pixels to the right and down in the time of a reading, (B, 2, H, W).
        time: t, of the frame, in [0, 1].
        rows: times of the rows, (H, 1), from `row_map`.

    Returns:
        The picture, (B, C, H, W), and which of its pixels were read inside the frame, (B, 1, H, W).
    """
    flow = velocity * (time - rows)
    return warped(frame, flow), inside(flow.detach())


def cycle_loss(
    frames: Sequence[Tensor],
    velocity: Tensor,
    pair: tuple[Tensor, Tensor],
    *,
    times: Sequence[float],
    rows: tuple[Tensor, Tensor],
) -> Tensor:
    """How far predicted frames, read again, are from the inputs.

    Args:
        frames: predicted frames, (B, C, H, W) each.
        velocity: pixels to the right and down in the time of a reading, (B, 2, H, W).
        pair: inputs, read top to bottom and bottom to top, (B, C, H, W) each.
        times: of the frames, in [0, 1].
        rows: times of the rows of both inputs, (H, 1) each.

    Returns:
        Mean absolute difference where the warp reads inside the frame.

    Raises:
        ValueError: not one time for each frame.
    """
    if len(frames) != len(times):
        raise ValueError(f"each frame has one time, got {len(frames)} frames and {len(times)} times")
    total, count = velocity.new_zeros(()), velocity.new_zeros(())
    for frame, time in zip(frames, times, strict=True):
        for given, when in zip(pair, rows, strict=True):
            made, mask = reread(frame, velocity, time, when)
            total = total + ((made - given).abs() * mask).sum()
            count = count + mask.sum() * given.shape[1]
    return total / count.clamp_min(1)


def agreement(
    pair: tuple[Tensor, Tensor], velocity: Tensor, *, times: Sequence[float], rows: tuple[Tensor, Tensor]
) -> Tensor:
    """How far the inputs are from one another when both are carried to one time.

    Args:
        pair: inputs, read top to bottom and bottom to top, (B, C, H, W) each.
        velocity: pixels to the right and down in the time of a reading, (B, 2, H, W).
        times: to which they are carried, in [0, 1].
        rows: times of the rows of both inputs, (H, 1) each.

    Returns:
        Mean absolute difference where both warps read inside the picture.
    """
    total, count = velocity.new_zeros(()), velocity.new_zeros(())
    for time in times:
        flows = [velocity * (when - time) for when in rows]
        one, two = (warped(x, flow) for x, flow in zip(pair, flows, strict=True))
        mask = inside(flows[0].detach()) * inside(flows[1].detach())
        total = total + ((one - two).abs() * mask).sum()
        count = count + mask.sum() * one.shape[1]
    return total / count.clamp_min(1)


def roughness(velocity: Tensor) -> Tensor:
    """Total variation of a motion: the rows in the middle, which both inputs read at one time, say nothing of it.

    Args:
        velocity: (B, 2, H, W).

    Returns:
        Mean absolute difference of neighbours, pixels.
    """
    down, across = velocity.diff(dim=2).abs().mean(), velocity.diff(dim=3).abs().mean()
    return down + across


class Corrector(nn.Module):
    """Two rolling-shutter pictures in, global-shutter frames of any times out.

    The motion is a mean over a grid of velocities, weighted by how alike the inputs are when both are carried along it
    to the middle time, and by convolutions that see how alike they are nearby.

    Args:
        reach: largest velocity across and down, in pixels in the time of a reading.
        step: distance of the grid's velocities, in pixels.
        dim: channels.
    """

    grid: Tensor

    def __init__(self, *, reach: tuple[int, int] = (8, 4), step: int = 2, dim: int = 24) -> None:
        super().__init__()
        across, down = (torch.arange(-r, r + 1, step, dtype=torch.float32) for r in reach)
        self.register_buffer("grid", torch.cartesian_prod(across, down), persistent=False)
        kinds = len(self.grid)
        self.sharp = nn.Parameter(torch.tensor(1.0))
        self.near = nn.Conv2d(2 * kinds + 1, 2 * dim, 3, 2, 1)
        self.wide = nn.ModuleList(nn.Conv2d(2 * dim, 2 * dim, 3, padding=1) for _ in range(3))
        self.tell = nn.Conv2d(2 * dim, kinds, 3, padding=1)
        self.look = nn.Conv2d(4 * 11, dim, 3, padding=1)
        self.think = nn.Conv2d(dim, dim, 3, padding=1)
        self.mix = nn.Conv2d(dim, 4 * 4, 3, padding=1)
        for layer in (self.tell, self.mix):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(cast("Tensor", layer.bias))

    def velocity(self, pair: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor]) -> Tensor:
        """Motion during a reading.

        Args:
            pair: inputs, (B, 3, H, W) each, sides multiples of 4.
            rows: times of their rows, (H, 1) each.

        Returns:
            Pixels to the right and down, (B, 2, H, W).
        """
        batch, _, height, width = pair[0].shape
        with torch.no_grad():
            half = [F.avg_pool2d(x, 2) for x in pair]
            gaps = [F.avg_pool2d((t - 0.5).expand(1, 1, height, width), 2).expand(batch, 2, -1, -1) for t in rows]
            costs = []
            for v in self.grid.view(-1, 2, 1, 1) / 2:
                one, two = (warped(x, v * gap) for x, gap in zip(half, gaps, strict=True))
                costs.append((one - two).abs().mean(1, keepdim=True))
            cost = torch.cat(costs, 1)
        overall = cost.mean((2, 3), keepdim=True)
        gap = gaps[0][:, :1] - gaps[1][:, :1]
        h = F.relu(self.near(torch.cat([cost, overall.expand_as(cost), gap], 1) * 4))
        for layer in self.wide:
            h = h + F.relu(layer(h))
        told = F.interpolate(self.tell(h), cost.shape[-2:], mode="bilinear", align_corners=False)
        near = F.avg_pool2d(cost, 5, 1, 2, count_include_pad=False)
        weights = (told - SHARP * self.sharp * (near + 0.3 * overall)).softmax(1)
        mean = torch.einsum("bnhw,nc->bchw", weights, self.grid)
        return F.interpolate(mean, (height, width), mode="bilinear", align_corners=False)

    def frame(self, pair: tuple[Tensor, Tensor], velocity: Tensor, time: float, rows: tuple[Tensor, Tensor]) -> Tensor:
        """The global-shutter frame of one time.

        Args:
            pair: inputs, (B, 3, H, W) each.
            velocity: (B, 2, H, W).
            time: t, in [0, 1].
            rows: times of the inputs' rows, (H, 1) each.

        Returns:
            (B, 3, H, W).
        """
        flows = [velocity * (when - time) for when in rows]
        carried = [warped(x, f) for x, f in zip(pair, flows, strict=True)]
        gaps = [(when - time).expand(len(velocity), 1, *velocity.shape[-2:]) for when in rows]
        reads = [inside(f.detach()) for f in flows]
        first = (gaps[1].abs() - gaps[0].abs()).sign()
        seen = F.pixel_unshuffle(torch.cat([*carried, *gaps, *reads, first], 1), 2)
        h = F.relu(self.look(seen))
        h = h + F.relu(self.think(h))
        told = F.pixel_shuffle(self.mix(h), 2)
        share = (told[:, :1] + 2 * (gaps[1].abs() - gaps[0].abs())).sigmoid()
        return share * carried[0] + (1 - share) * carried[1] + told[:, 1:]

    def forward(
        self, pair: tuple[Tensor, Tensor], times: Sequence[float], rows: tuple[Tensor, Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Correct.

        Args:
            pair: inputs, read top to bottom and bottom to top, (B, 3, H, W) each, sides multiples of 4.
            times: of the frames that are wanted, in [0, 1].
            rows: times of the inputs' rows, (H, 1) each; None for whole pictures.

        Returns:
            Frames, (B, 3, H, W) each, and the velocity, (B, 2, H, W).
        """
        if rows is None:
            down = row_map(pair[0].shape[-2]).to(pair[0])
            rows = down, down.flip(0)
        velocity = self.velocity(pair, rows)
        return [self.frame(pair, velocity, time, rows) for time in times], velocity


class SelfDistillation(nn.Module):
    """The objective of a training: a student, its running average as the teacher, and both terms of the loss.

    Args:
        student: network to train.
        weight: λ, of the distillation; 0 for the cycle alone.
        margin: pixels that the student's crop lacks on each side.
        decay: of the running average.
        warmup: steps before the distillation begins.
        smooth: weight of the motion's roughness.
    """

    def __init__(
        self,
        student: Corrector,
        *,
        weight: float = 1.0,
        margin: int = 8,
        decay: float = 0.98,
        warmup: int = 50,
        smooth: float = 0.01,
    ) -> None:
        super().__init__()
        self.student, self.weight, self.margin, self.decay, self.warmup = student, weight, margin, decay, warmup
        self.smooth = smooth
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.steps = 0

    @torch.no_grad()
    def follow(self) -> None:
        """Move the teacher towards the student."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)

    def forward(self, pair: tuple[Tensor, Tensor], times: Sequence[float]) -> Tensor:
        """Loss of a batch.

        Args:
            pair: inputs, (B, 3, H, W) each.
            times: of the frames, in [0, 1].

        Returns:
            A scalar.
        """
        self.follow()
        height, width = pair[0].shape[-2:]
        down = row_map(height).to(pair[0])
        rows = down, down.flip(0)
        frames, velocity = self.student(pair, times, rows)
        loss = cycle_loss(frames, velocity, pair, times=times, rows=rows)
        loss = loss + agreement(pair, velocity, times=times, rows=rows) + self.smooth * roughness(velocity)
        if not self.weight or self.steps <= self.warmup:
            return loss
        m = self.margin
        cut = ..., slice(m, height - m), slice(m, width - m)
        crops, _ = self.student((pair[0][cut], pair[1][cut]), times, (rows[0][m : height - m], rows[1][m : height - m]))
        with torch.no_grad():
            wanted, _ = self.teacher(pair, times)
        pieces = [F.l1_loss(crop, full[cut]) for crop, full in zip(crops, wanted, strict=True)]
        return loss + self.weight * torch.stack(pieces).mean()


def _corrected(seed: int) -> Tensor:
    """The middle frame of two random pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        frames, _ = Corrector(reach=(2, 2), dim=4)((torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)), (0.5,))
    return frames[0].detach()


def _without_frames() -> Tensor:
    nothing, rows = torch.zeros(1, 2, 3, 3), row_map(3)
    return cycle_loss([], nothing, (nothing, nothing), times=(0.5,), rows=(rows, rows))


METHOD = Method(
    id=321,
    name="SelfDRSC",
    kind="procedure",
    summary="Rolling shutter undone from two pictures read in opposite orders, learnt from such pictures alone.",
    paper=Paper(
        "Self-supervised Learning to Bring Dual Reversed Rolling Shutter Images Alive",
        "W. Shang et al.",
        2023,
        "arXiv:2305.19862",
    ),
    cases={
        "middle": Procedure(
            run=_corrected, empty=_without_frames, refuses="each frame has one time, got 0 frames and 1 times"
        )
    },
)
