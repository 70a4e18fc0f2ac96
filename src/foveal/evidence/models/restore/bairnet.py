"""Evidence for BAIRNet: scales inside and outside its training, and five cycles, against bicubic and learned-up."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import torch

from foveal.evidence.tasks import rescaling
from foveal.models.restore.bairnet import BAIRNet, rescaling_loss
from foveal.nn.rescaling import resized, rounded
from foveal.record import equal, kept

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS, LR = 800, 5e-3
DATA = rescaling.data(STEPS)

small = partial(BAIRNet, dim=16, depth=2, fine=0)


def _loss(model: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
    pair = cast("BAIRNet", model)
    reduced = pair.down(x, size)
    return rescaling_loss(x, reduced, pair.up(reduced, (x.shape[-2], x.shape[-1])))


def _trained(seed: int, *, alone: bool = False) -> BAIRNet:
    return cast("BAIRNet", rescaling.trained(small, _loss, seed=seed, alone=alone, steps=STEPS, lr=LR))


def _lead(seed: int, *, scale: rescaling.Scale) -> float:
    return rescaling.lead(_trained(seed), _trained(seed, alone=True), scale)


def _cycles(seed: int) -> float:
    """PSNR that the rival loses over five cycles, less what the pair loses."""
    theirs = rescaling.loss_of_cycles(_trained(seed, alone=True), alone=True)
    return theirs - rescaling.loss_of_cycles(_trained(seed), alone=False)


def _untrained(*, ours: bool) -> Tensor:
    """A cycle of a network that has learnt nothing, or of bicubic."""
    x = torch.rand(1, 3, 17, 22, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return small()(x, (7, 15)) if ours else resized(rounded(resized(x, (7, 15))), (17, 22))


CLAIMS = (
    *(
        kept(
            f"At ×{scale} photographs come back 0.5 dB better than from bicubic by the same enlarging network.",
            paper="by a large margin",
            quality=partial(_lead, scale=scale),
            at_least=0.5,
            data=DATA,
            needs=rescaling.NEEDS,
            clause=1,
        )
        for scale in rescaling.SCALES
    ),
    kept(
        "From the first cycle to the fifth it loses less PSNR than bicubic and the same enlarging network.",
        paper="no severe degradation",
        quality=_cycles,
        at_least=0.0,
        data=f"{DATA}, mean over ×1.5, ×2.5 and ×3.5",
        needs=rescaling.NEEDS,
        clause=2,
    ),
    *(
        kept(
            f"At {name}, for which neither was trained, photographs come back better than from bicubic.",
            paper="works well untrained",
            quality=partial(_lead, scale=scale),
            at_least=0.0,
            data=DATA,
            needs=rescaling.NEEDS,
            beyond="asymmetric and unseen scales work",
        )
        for name, scale in (("×1.5 of rows and ×3.5 of columns", (1.5, 3.5)), ("×5", 5.0))
    ),
    kept(
        "Small pictures stay within 30 dB of bicubic ones.",
        paper="visual quality is kept",
        quality=lambda seed: rescaling.closeness(_trained(seed)),
        at_least=30.0,
        data=DATA,
        needs=rescaling.NEEDS,
        beyond="downscaled pictures keep their visual quality",
    ),
    equal(
        "It starts as bicubic in both directions.",
        ours=partial(_untrained, ours=True),
        theirs=partial(_untrained, ours=False),
        beyond="what is learnt is added to bicubic",
    ),
)
