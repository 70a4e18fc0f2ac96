"""Evidence for DREAM: the ordinary loss at λ = 0, diffusers' function, and ten sampling steps on photographs, ×4.

The rival is the ordinary loss, trained for as many network evaluations: a step of DREAM takes two, so it gets half the
steps. Both draw the same patches, times and noise at each step they share, and are sampled from the same noise.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import diffusing
from foveal.nn.unet import UNet
from foveal.record import equal, kept
from foveal.train.diffusion import cosine_schedule, denoising_loss, ordinary_pair, q_sample
from foveal.train.restore.dream_diffusion import Dream, correct

if TYPE_CHECKING:
    from torch import Tensor

    from foveal.train.restore.residual_sr import ResidualSR

EVALUATIONS = 1200  # of the network while it learns: so many ordinary steps, or half as many of DREAM
DATA = (
    f"{EVALUATIONS} evaluations, 8 patches each, bsds400; one sample of the middles of 30 of BSD100, 64×64, RGB, ×4, "
    "DDIM, paired"
)
# Input and target that diffusers 0.42.1 (`compute_dream_and_update_latents`) made of `_shared`, at p = 1 and at p = 2.
DIFFUSERS = (
    0.03860372, 0.9533052, -0.2210714, -0.9539124, 0.5155438, 0.7840365, -0.3535931, -0.2968364, 0.2534786,
    0.7759787, -1.419018, 0.6709034, -1.393892, 1.759617, -2.122133, 1.665163, -0.9923589, 0.7317003, -0.4669567,
    0.1321993, 0.1291742, -0.4626117, 0.8980041, -1.344863, 1.536458, -1.514281, 1.368711, -1.129943, 0.8591545,
    -0.565109, 0.5514234, 0.5195459, -1.056803, 0.8980786, -1.205759, 1.68702, -2.03483, 2.008748, -1.887209,
    1.676702, -1.529974, 1.097673, -0.4665979, 0.1318183, 0.1289135, -0.4621634, 0.8981494, -1.345349, 0.03771073,
    0.954722, -0.2220617, -0.9537416, 0.5153791, 0.784838, -0.4458709, -0.3814941, 0.3845758, 0.7643219, -1.39815,
    0.5812809, -1.34162, 1.713665, -2.083253, 1.633748, -0.9556767, 0.7096485, -0.4669568, 0.1321993, 0.1291742,
    -0.4626117, 0.8980041, -1.344863, 1.500916, -1.457891, 1.329295, -1.123145, 0.8526033, -0.5332086, 0.3573128,
    0.3414648, -0.7810344, 0.8735579, -1.161863, 1.498495, -1.976725, 1.957667, -1.84399, 1.641781, -1.489198,
    1.07316, -0.4665979, 0.1318183, 0.1289135, -0.4621634, 0.8981494, -1.345349,
)  # fmt: skip


def _loss(*, dreaming: bool) -> Tensor:
    """Loss and gradients of a small network, with λ = 0 or without DREAM."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(dim=8, multiples=(1,))
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.2)
        clean, low, t = torch.rand(6, 3, 8, 8), torch.rand(6, 3, 4, 4), torch.tensor([0, 20, 40, 60, 80, 99])
        noise = torch.randn_like(clean)
    pair = Dream(math.inf) if dreaming else ordinary_pair
    with torch.enable_grad():
        loss = denoising_loss(network, clean, cosine_schedule(100), condition=low, t=t, noise=noise, pair=pair)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([loss.detach()[None], *(g.flatten() for g in gradients)])


def _shared() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy pictures, noise, a prediction and ᾱ, from formulas, so that they are the same anywhere."""
    place = torch.arange(4 * 3 * 2, dtype=torch.float64)
    clean, noise = (f(place * k).float().view(4, 3, 2, 1) for f, k in ((torch.sin, 1.7), (torch.cos, 2.9)))
    kept = cosine_schedule(100)[torch.tensor([0, 30, 70, 99])]
    noisy = q_sample(clean, 1.5 * noise, kept)
    return noisy, 1.5 * noise, torch.tanh(1.3 * noisy), kept


def _corrected() -> Tensor:
    noisy, noise, predicted, kept = _shared()
    return torch.cat([x.flatten() for p in (1.0, 2.0) for x in correct(noisy, noise, predicted, kept, power=p)])


@cached(maxsize=8)
def _model(seed: int, *, dreaming: bool) -> ResidualSR:
    if dreaming:
        return diffusing.trained(seed, steps=EVALUATIONS // 2, pair=lambda _: Dream())
    return diffusing.trained(seed, steps=EVALUATIONS)


def _gain(seed: int, *, steps: int) -> float:
    """PSNR of a sample with DREAM less that without, dB."""
    ours, theirs = (diffusing.score(_model(seed, dreaming=d), steps=steps) for d in (True, False))
    return ours - theirs


CLAIMS = (
    equal(
        "With λ = 0, loss and gradients are those of ordinary training, bit for bit.",
        ours=partial(_loss, dreaming=True),
        theirs=partial(_loss, dreaming=False),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "Input and target are those that diffusers made of the same numbers, p = 1 and 2.",
        paper="diffusers 0.42.1",
        ours=_corrected,
        theirs=lambda: torch.tensor(DIFFUSERS),
        tolerance=1e-6,
        clause=2,
    ),
    kept(
        "After equal network evaluations, ten steps of sampling give at least 0.3 dB more than without.",
        paper="10 to 20 times fewer steps",
        quality=partial(_gain, steps=10),
        at_least=0.3,
        data=DATA,
        needs=diffusing.NEEDS,
        clause=3,
    ),
    kept(
        "It is no worse at forty steps.",
        paper="better at any number of steps",
        quality=partial(_gain, steps=40),
        at_least=0.0,
        data=DATA,
        needs=diffusing.NEEDS,
        beyond="PSNR against number of steps",
    ),
)
