"""Evidence of LumaClean: its plain form against the trained network, flat pictures, and turned ones."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.models.restore.luma_clean import LumaClean, luma_clean_fast
from foveal.nn.equivariant import MOVES, back, moved
from foveal.record import equal


def _changed(*, equivariant: bool = False) -> LumaClean:
    """A network whose every parameter has left its start."""
    torch.manual_seed(0)
    network = luma_clean_fast(4, depth=2, equivariant=equivariant).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


LEVEL = (0.8, 0.3, 0.2)  # of the claims


def _inside(*, plain: bool) -> Tensor:
    network, s = _changed(), 4
    m = network.margin * s
    x = torch.rand(1, 3, 30, 27)
    with torch.inference_mode():
        return network.plain(LEVEL)(x) if plain else network(x, torch.tensor([LEVEL]))[..., m:-m, m:-m]


def _flat() -> Tensor:
    network = _changed()
    m = network.margin
    x = torch.tensor([0.2, 0.7, 0.4]).view(1, 3, 1, 1).expand(1, 3, 9 + 2 * m, 11 + 2 * m)
    with torch.inference_mode():
        return network.plain(LEVEL)(x)


def _each_way(*, turned: bool) -> Tensor:
    """(8, 3, 48, 36): what an equivariant network makes of a picture in eight ways, each turned back."""
    network = _changed(equivariant=True)
    x, level = torch.rand(1, 3, 12, 9), torch.tensor([LEVEL])
    with torch.inference_mode():
        made = [moved(network(moved(x, back(move)), level), move) if turned else network(x, level) for move in MOVES]
    return torch.cat(made)


CLAIMS = (
    equal(
        "The plain form of a level equals the trained network inside its margin.",
        paper="",
        ours=lambda: _inside(plain=True),
        theirs=lambda: _inside(plain=False),
        tolerance=1e-4,
        beyond="plain form",
    ),
    equal(
        "A picture of one colour comes out as that colour, at every level.",
        paper="",
        ours=_flat,
        theirs=lambda: torch.tensor([0.2, 0.7, 0.4]).view(1, 3, 1, 1).expand(1, 3, 36, 44),
        tolerance=1e-4,
        beyond="flat pictures",
    ),
    equal(
        "An equivariant network makes of a turned or mirrored picture the turned or mirrored result.",
        paper="",
        ours=lambda: _each_way(turned=True),
        theirs=lambda: _each_way(turned=False),
        tolerance=1e-4,
        beyond="turned pictures",
    ),
)
