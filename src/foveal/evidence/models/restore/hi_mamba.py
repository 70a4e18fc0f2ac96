"""Evidence for Hi-Mamba: scans against a step-by-step recurrence, blocks against blocks with four directions."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.tasks import photos
from foveal.evidence.timing import call
from foveal.models.restore.hi_mamba import DIRECTIONS, DirectedScan, HiMambaGroup, hi_mamba_small
from foveal.record import equal, faster, smaller

four_small = partial(hi_mamba_small, four=True)


def _scanned(*, step_by_step: bool) -> Tensor:
    """All four directions over one map; the plain version rotates the map, scans its rows and rotates back."""
    torch.manual_seed(0)
    scans = [DirectedScan(6, (d,), state=5) for d in range(DIRECTIONS)]
    x = torch.randn(2, 6, 9, 7)
    with torch.inference_mode():
        return torch.stack([_walk(scan, x) if step_by_step else scan(x) for scan in scans])


def _walk(scan: DirectedScan, x: Tensor) -> Tensor:
    (direction,) = scan.directions
    turned = x.mT if direction % 2 else x
    line = turned.flatten(2).flip(-1) if direction > 1 else turned.flatten(2)
    delta, weights_in, weights_out = (t[:, 0] for t in scan.project(line))
    delta, decay = F.softplus(delta + scan.dt_bias[:, None]), -scan.A_log.exp()
    state, out = x.new_zeros(len(x), *decay.shape), []
    for t in range(line.shape[-1]):
        # (B, C, D): decay, then add the input
        taken = (delta[..., t] * line[..., t])[..., None] * weights_in[:, None, :, t]
        state = torch.exp(delta[..., t, None] * decay) * state + taken
        out.append((state * weights_out[:, None, :, t]).sum(-1) + scan.D * line[..., t])
    y = torch.stack(out, dim=-1)
    y = (y.flip(-1) if direction > 1 else y).view(turned.shape)
    return y.mT if direction % 2 else y


def _tokens(*, four: bool) -> float:
    """Positions that the scans of a group visit on a map of 64×64, counted once per direction."""
    group, count = HiMambaGroup(4, 8, four=four, state=1), 0  # the count does not depend on the width

    def hook(scan: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        nonlocal count
        assert isinstance(scan, DirectedScan)
        count += len(scan.directions) * inputs[0].shape[2] * inputs[0].shape[3]

    for module in group.modules():
        if isinstance(module, DirectedScan):
            module.register_forward_hook(hook)
    with torch.inference_mode():
        group(torch.rand(1, 4, 64, 64))
    return float(count)


CLAIMS = (
    equal(
        "The scan of each direction equals a walk step by step.",
        ours=lambda: _scanned(step_by_step=False),
        theirs=lambda: _scanned(step_by_step=True),
        tolerance=1e-4,
        clause=1,
    ),
    smaller(
        "A group scans fewer places than one that scans in four directions.",
        paper="one direction instead of four",
        ours=lambda: _tokens(four=False),
        theirs=lambda: _tokens(four=True),
        at_least=3.7,
        beyond="one direction per scan instead of four",
    ),
    faster(
        "A group takes less processor time than one as wide that scans in four directions, 96×96.",
        paper="",
        ours=call(partial(HiMambaGroup, 60, 8), 1, 60, 96, 96),
        theirs=call(partial(HiMambaGroup, 60, 8, four=True), 1, 60, 96, 96),
        at_least=1.5,
        clause=2,
    ),
    photos.above_bicubic(
        hi_mamba_small,
        "After minutes of training, a small ×2 is above bicubic on pictures it has not seen.",
        scale=2,
        steps=600,
        by=0.0,
        paper="0.29 dB above light MambaIR, Manga109 ×3",
        luminance=True,
        clause=3,
    ),
    photos.better(
        hi_mamba_small,
        "It is within 0.05 dB of the same network with four directions a block.",
        than=four_small,
        scale=2,
        steps=600,
        by=-0.05,
        paper="",
        luminance=True,
        clause=4,
    ),
)
