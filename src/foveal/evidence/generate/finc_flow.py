"""Evidence for FInC Flow: its inverse and determinant, diagonals beside single pixels, and pictures beside Glow."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from foveal.evidence.tasks import flowing
from foveal.generate.finc_flow import QUARTERS, FInCUnit, finc_inverse, finc_step
from foveal.generate.glow import glow_step
from foveal.ops.inverse_conv import inverse_conv, masked_kernel
from foveal.record import bound, equal, faster, kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SIDE, DIM = 64, 12  # 12 channels: RGB pictures after one squeeze
PICTURES = 16


def one_by_one(y: Tensor, weight: Tensor) -> Tensor:
    """The inverse pixel by pixel, with the same products as the sweeps: one for each pixel, over its whole window.

    Args:
        y: outputs of four groups, padded at the top left, (B, C, H, W).
        weight: kernels, (C, C/4, k, k).

    Returns:
        x, (B, C, H, W).
    """
    taps = masked_kernel(weight, groups=4).unflatten(0, (4, -1))  # (4, C/4, C/4, k, k)
    size = taps.shape[-1]
    inverse = torch.linalg.inv(taps[..., -1, -1])
    # (4, C/4, k²·C/4), the last tap 0
    left = (inverse @ taps.permute(0, 1, 3, 4, 2).flatten(2)).unflatten(2, (size**2, -1))
    left[:, :, -1] = 0
    left = left.flatten(2)
    right = inverse @ y.unflatten(1, (4, -1)).permute(3, 4, 1, 2, 0)  # (H, W, 4, C/4, B)
    # (H + k - 1, W + k - 1, 4, C/4, B)
    done = F.pad(torch.zeros_like(right), (0, 0, 0, 0, 0, 0, size - 1, 0, size - 1, 0))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            window = done[i : i + size, j : j + size].permute(2, 0, 1, 3, 4).reshape(4, -1, len(y))
            done[i + size - 1, j + size - 1] = torch.baddbmm(right[i, j], left, window, alpha=-1)
    return done[size - 1 :, size - 1 :].permute(4, 2, 3, 0, 1).reshape(y.shape)


def _pictures() -> Tensor:
    return torch.rand(PICTURES, 1, 28, 28, generator=torch.Generator().manual_seed(0)) - 0.5


def _round_trip() -> float:
    """Largest error of pictures that go through the flow and back, and of latents that go back and through."""
    flow = flowing.drawn_flow(finc_step, depth=flowing.DEPTH, width=flowing.WIDTH)
    x = _pictures()
    with torch.no_grad():
        latents = flow(x)[0]
        back = flow.inverse(latents)
        again = flow(back)[0]
    return max(float((one - other).abs().max()) for one, other in [(back, x), *zip(again, latents, strict=True)])


def _unit(*, dense: bool) -> Tensor:
    """Determinant of a unit alone."""
    torch.manual_seed(0)
    unit, x = FInCUnit(8).double(), torch.randn(8 * 5 * 4, dtype=torch.float64)
    if not dense:
        return unit(x.view(1, 8, 5, 4))[1].exp()
    matrix = torch.autograd.functional.jacobian(lambda v: unit(v.view(1, 8, 5, 4))[0].flatten(), x)
    return matrix.det()


def _drawn(side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, DIM, side, side, generator=generator), 0.05 * torch.randn(
        DIM, DIM // 4, 3, 3, generator=generator
    )


def _quarters(y: Tensor, weight: Tensor) -> Tensor:
    parts = zip(y.chunk(4, 1), weight.chunk(4), QUARTERS, strict=True)
    return torch.cat([inverse_conv(part.flip(axes), of_part).flip(axes) for part, of_part, axes in parts], 1)


def _inverted(solve: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        given = _drawn(SIDE)
        return torch.no_grad()(lambda: solve(*given))

    return prepare


def gained(seed: int) -> float:
    """Bits per dimension that the units save.

    Args:
        seed: seed of both flows.

    Returns:
        Glow's minus ours.
    """
    return flowing.bits(glow_step, seed) - flowing.bits(finc_step, seed)


CLAIMS = (
    bound(
        "Pictures come back from the latents, and latents from the pictures, in single precision.",
        paper="exact",
        value=_round_trip,
        at_most=1e-5,
        unit="largest error",
        clause=1,
    ),
    equal(
        "What the flow says of its determinant is the logarithm of the Jacobian's.",
        ours=partial(flowing.log_dets, finc_step, dense=False),
        theirs=partial(flowing.log_dets, finc_step, dense=True),
        tolerance=1e-10,
        clause=2,
    ),
    equal(
        "The determinant of a unit is 1, as it says.",
        ours=partial(_unit, dense=False),
        theirs=partial(_unit, dense=True),
        tolerance=1e-10,
        clause=2,
    ),
    equal(
        f"Diagonals give what single pixels give at {SIDE}×{SIDE}.",
        ours=lambda: inverse_conv(*_drawn(SIDE), groups=4),
        theirs=lambda: one_by_one(*_drawn(SIDE)),
        clause=3,
    ),
    faster(
        f"Diagonals take a fifth of the time of single pixels at {SIDE}×{SIDE}.",
        paper="O(n k²) instead of O(n² k²)",
        ours=_inverted(partial(inverse_conv, groups=4)),
        theirs=_inverted(one_by_one),
        at_least=5.0,
        clause=3,
    ),
    kept(
        "It needs fewer bits per dimension than Glow with 1×1 convolutions after equal steps.",
        paper="comparable bits per dimension",
        quality=gained,
        at_least=0.0,
        unit="bits per dimension",
        data=flowing.DATA,
        needs=flowing.NEEDS,
        clause=4,
    ),
    equal(
        "The four quarters, inverted together, are inverted as they are one after the other.",
        ours=lambda: finc_inverse(*_drawn(9)),
        theirs=lambda: _quarters(*_drawn(9)),
        beyond="four orientations over channel groups",
    ),
)
