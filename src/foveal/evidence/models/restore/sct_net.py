"""Evidence for SCTNet: moving things in brackets of real photographs, against weighted fusion and its spatial half."""

from __future__ import annotations

from functools import partial

from foveal.evidence.tasks import bracketing, restoring
from foveal.models.restore.sct_net import SCTNet
from foveal.record import kept, params

STEPS = 200
DATA = (
    f"{STEPS} steps on brackets of bsds400; brackets of crops of {restoring.SIDE} pixels of {restoring.COUNT} of "
    "BSD100, PSNR-μ where something moves"
)
small = partial(SCTNet, dim=24, depths=(2, 2), num_heads=3)
spatial = partial(small, across=False)


def _above_debevec(seed: int) -> float:
    model = bracketing.trained(small, steps=STEPS, seed=seed)
    return bracketing.moved_psnr(model) - bracketing.moved_psnr(bracketing.debevec)


def _above_spatial(seed: int) -> float:
    ours, twin = (bracketing.trained(build, steps=STEPS, seed=seed) for build in (small, spatial))
    return bracketing.moved_psnr(ours) - bracketing.moved_psnr(twin)


CLAIMS = (
    kept(
        "Where things move, a small network trained here is above the classical mean weighted by exposure.",
        paper="above all earlier methods",
        quality=_above_debevec,
        at_least=0.0,
        data=DATA,
        needs=bracketing.NEEDS,
        clause=1,
    ),
    kept(
        "Where things move, it is above its twin without attention to the other frames, trained as long.",
        paper="an ablation's gain",
        quality=_above_spatial,
        at_least=0.0,
        data=DATA,
        needs=bracketing.NEEDS,
        clause=2,
    ),
    params(
        "Parameters of the authors' default.",
        paper="layer sizes of the authors' code",
        model=SCTNet,
        expect=994_555,
        beyond="best quality for its compute: parameters counted exactly",
    ),
)
