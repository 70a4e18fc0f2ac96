"""Evidence for LumaSR: its plain form against the trained network, flat pictures, rotated and flipped pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.models.restore.luma_sr import LumaSR, luma_sr_fast
from foveal.nn.equivariant import MOVES, back, moved
from foveal.record import equal


def _changed() -> LumaSR:
    """A network with back-projection whose parameters all differ from their initial values."""
    torch.manual_seed(0)
    network = luma_sr_fast(4, back_projection=True).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def _inside(*, plain: bool) -> Tensor:
    network, m, s = _changed(), _changed().margin, 4
    x = torch.rand(1, 3, 40, 37)
    with torch.inference_mode():
        return network.plain()(x) if plain else network(x)[..., m * s : -m * s, m * s : -m * s]


def _flat() -> Tensor:
    m = _changed().margin
    x = torch.tensor([0.2, 0.7, 0.4]).view(1, 3, 1, 1).expand(1, 3, 9 + 2 * m, 11 + 2 * m)
    with torch.inference_mode():
        return _changed().plain()(x)


def _each_way(*, turned: bool) -> Tensor:
    """(8, 3, 48, 36): outputs of an equivariant network for the eight orientations of a picture, each undone."""
    torch.manual_seed(0)
    network = luma_sr_fast(4, equivariant=True, back_projection=True).eval()
    with torch.inference_mode():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x = torch.rand(1, 3, 12, 9)
        made = [moved(network(moved(x, back(move))), move) if turned else network(x) for move in MOVES]
    return torch.cat(made)


CLAIMS = (
    equal(
        "The plain form equals the trained network inside its margin.",
        paper="",
        ours=lambda: _inside(plain=True),
        theirs=lambda: _inside(plain=False),
        tolerance=1e-4,
        beyond="nothing but plain convolutions at run time",
    ),
    equal(
        "A picture of one colour comes out as that colour.",
        paper="",
        ours=_flat,
        theirs=lambda: torch.tensor([0.2, 0.7, 0.4]).view(1, 3, 1, 1).expand(1, 3, 36, 44),
        tolerance=1e-4,
        beyond="flat stays flat",
    ),
    equal(
        "An equivariant network makes of a turned or mirrored picture the turned or mirrored result.",
        paper="",
        ours=lambda: _each_way(turned=True),
        theirs=lambda: _each_way(turned=False),
        tolerance=1e-4,
        beyond="kernels alike for all eight moves",
    ),
)
