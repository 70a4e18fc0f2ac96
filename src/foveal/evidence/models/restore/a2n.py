"""Evidence for A2N: super-image's network, each of its branches alone, and EDSR with as many parameters."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from foveal.evidence.rivals.edsr import EDSR
from foveal.evidence.tasks import photos
from foveal.evidence.tasks.equal_minutes import Trial
from foveal.measure.cost import count_parameters
from foveal.models.restore.a2n import A2N, a2n_m
from foveal.record import bound, equal, kept, params

small = partial(A2N, dim=20, up_dim=12, depth=4)
attending = partial(small, plain=False)
unattending = partial(small, attention=False)
plain = partial(EDSR, dim=17, depth=11)  # as many parameters to 1 %
TRIAL = Trial((small, attending, unattending, plain), 2, 0.6)

# What super-image 0.2.0 makes of the picture with the weights of `_known`: [0, :, ::13, ::17] of its output, ×4.
SUPER_IMAGE = (
    *(1.8464517936, 1.7404465199, 1.2216321978, 1.5324330548),
    *(0.5243519667, 0.6623690508, 1.0589130728, 0.9334405802),
    *(1.2260400342, 1.1651859610, 1.2294682678, 1.0667550585),
)


def _wave(shape: torch.Size | tuple[int, ...], number: int) -> Tensor:
    """Numbers in [-1, 1] that anyone can draw again."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * (number + 2) ** 0.5 + number).view(shape)


@torch.no_grad()
def _known() -> Tensor:
    """Output for given weights and a given picture, (3, 2, 2); the weights of the branches differ from one half."""
    network = A2N(4).double().eval()
    for number, (name, parameter) in enumerate(network.named_parameters()):
        fan_in = parameter[0].numel() if parameter.ndim > 1 else len(parameter)
        parameter.copy_(_wave(parameter.shape, number) * (10 if "weigh." in name else 1.5) / fan_in**0.5)
    return network(_wave((1, 3, 5, 7), 1) / 2 + 0.5)[0, :, ::13, ::17]


CLAIMS = (
    params("Parameters of A2N ×4.", paper="1,047 K", model=A2N, expect=1_047_459, clause=1),
    params("Parameters of A2N ×2.", paper="1,036 K", model=partial(A2N, 2), expect=1_036_443, beyond="size at ×2"),
    params("Parameters of A2N-M ×4.", paper="843 K", model=a2n_m, expect="843 K", beyond="size of A2N-M"),
    equal(
        "With the same weights it gives the pixels that super-image's network gives.",
        ours=_known,
        theirs=lambda: torch.tensor(SUPER_IMAGE, dtype=torch.float64).view(3, 2, 2),
        tolerance=1e-8,
        clause=2,
    ),
    TRIAL.better(
        small,
        "After equal processor minutes a small ×2 is above the network whose blocks always attend.",
        than=attending,
        by=0.0,
        paper="better than always attending",
        clause=3,
    ),
    TRIAL.better(
        small,
        "After equal processor minutes a small ×2 is above the network whose blocks never attend.",
        than=unattending,
        by=0.0,
        paper="better than never attending",
        clause=3,
    ),
    TRIAL.better(
        small,
        "After equal processor minutes a small ×2 is not below EDSR with as many parameters.",
        than=plain,
        by=0.0,
        paper="better than networks of similar size",
        clause=4,
    ),
    bound(
        "The two have the same number of parameters to 1 %.",
        paper="",
        value=lambda: count_parameters(small(2)) / count_parameters(plain(2)),
        at_least=0.99,
        at_most=1.01,
        clause=4,
    ),
    kept(
        "The small network has learnt in its minutes: it is above bicubic.",
        paper="",
        quality=partial(TRIAL.gain, small),
        at_least=0.0,
        data=TRIAL.data,
        needs=photos.NEEDS,
        beyond="what is compared has been learnt",
    ),
)
