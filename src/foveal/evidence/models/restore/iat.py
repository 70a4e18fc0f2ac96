"""Evidence for IAT: its count, and dark and wrongly exposed photographs against gain and gamma by the histogram."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import restoring
from foveal.measure.quality import BT601
from foveal.models.restore.iat import IAT
from foveal.record import equal, kept, params

NAMES = ("dark", "exposure")
STEPS, PATCH = 500, 96
QUANTILES = (0.1, 0.5, 0.95)  # of luminance, that the rival brings to those of photographs
GAMMAS = torch.linspace(0.2, 2.0, 37)


def _luminance(x: Tensor) -> Tensor:
    weights = torch.tensor(BT601)
    return torch.einsum("bchw,c->bhw", x, weights / weights.sum()).flatten()


@cached(maxsize=1)
def _usual() -> Tensor:
    """Quantiles of luminance of training photographs, their mean."""
    load = restoring.clean(0, patch=PATCH)
    each = [torch.quantile(_luminance(one), torch.tensor(QUANTILES)) for k in range(8) for one in load(k).split(1)]
    return torch.stack(each).mean(0)


def by_histogram(x: Tensor) -> Tensor:
    """One gain and one gamma for a picture: those that bring its histogram nearest to that of photographs.

    Args:
        x: (1, 3, H, W).

    Returns:
        clamp(g · x^γ): γ of a grid, g by least squares of the quantiles, both by what the input shows.
    """
    quantiles = torch.quantile(_luminance(x), torch.tensor(QUANTILES)).clamp_min(1e-4)
    powers = quantiles[None] ** GAMMAS[:, None]
    gains = (powers * _usual()).sum(1) / powers.square().sum(1)
    best = (gains[:, None] * powers - _usual()).square().sum(1).argmin()
    return (gains[best] * x.clamp_min(1e-6) ** GAMMAS[best]).clamp(0, 1)


def _above_histogram(seed: int) -> float:
    model = restoring.trained(IAT, NAMES, steps=STEPS, seed=seed, each=True, patch=PATCH, lr=1e-3)
    differences = [restoring.gain(model, (n,)) - restoring.gain_of(by_histogram, (n,)) for n in NAMES]
    return sum(differences) / len(differences)


def _in_parts(*, parts: bool) -> Tensor:
    """A picture at once, or by the exported form with the ten numbers that a look at the picture gave."""
    torch.manual_seed(0)
    network = IAT().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        x = torch.rand(1, 3, 61, 70)
        if not parts:
            return network(x)
        numbers = network.control(network.view(x))[0]
        fixed: Any = network.collapse()
        fixed.matrix.copy_(numbers[:9].view(3, 3, 1, 1))
        fixed.gamma.copy_(numbers[9:])
        return fixed(x)


CLAIMS = (
    params("Parameters.", paper="about 90 K", model=IAT, expect=90_000, tolerance=0.03, clause=1),
    kept(
        "After minutes of training it is 2 dB above the gain and gamma that fit the histogram, on dark and on wrongly "
        "exposed photographs.",
        paper="best PSNR on LOL at its time",
        quality=_above_histogram,
        at_least=2.0,
        data=f"{STEPS} steps on bsds400 with dark or exposure; crops of 128 pixels of 30 of BSD100, RGB",
        needs=restoring.NEEDS,
        clause=2,
    ),
    equal(
        "The exported form with a picture's ten numbers equals the network.",
        paper="",
        ours=lambda: _in_parts(parts=True),
        theirs=lambda: _in_parts(parts=False),
        tolerance=1e-5,
        beyond="a small part that sees the whole picture, a large part that runs tile by tile",
    ),
)
