"""Evidence for RepairNet: its plain form against the trained network, and noise against DnCNN's shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.dncnn import DnCNN
from foveal.evidence.tasks import restoring
from foveal.measure.cost import count_macs
from foveal.models.restore.repair_net import RepairNet, repair_clean
from foveal.record import equal, smaller

LEVEL = (0.8, 0.3, 0.2)
SHAPE = (1, 3, 64, 64)


def _inside(*, plain: bool) -> Tensor:
    torch.manual_seed(0)
    network = repair_clean(channels=16, depth=2).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    m = network.margin
    x = torch.rand(1, 3, 44, 38)
    with torch.inference_mode():
        return network.plain(LEVEL)(x) if plain else network(x, torch.tensor([LEVEL]))[..., m:-m, m:-m]


def _rival() -> nn.Module:
    return DnCNN()


CLAIMS = (
    equal(
        "The plain form of a level equals the trained network inside its margin.",
        paper="",
        ours=lambda: _inside(plain=True),
        theirs=lambda: _inside(plain=False),
        tolerance=1e-4,
        beyond="plain form",
    ),
    smaller(
        "A tenth of the multiply-adds of DnCNN's shape.",
        paper="",
        ours=lambda: count_macs(repair_clean(), SHAPE),
        theirs=lambda: count_macs(DnCNN(), SHAPE),
        at_least=10,
        beyond="a tenth of the work",
    ),
    restoring.better(
        RepairNet,
        "With noise it is at most 0.3 dB below DnCNN's shape after as many steps.",
        than=_rival,
        names=("noise",),
        steps=250,
        by=-0.3,
        paper="",
        beyond="as good on noise as a network of ten times the work",
    ),
)
