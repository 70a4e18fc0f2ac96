"""Evidence for TiC: its operator pixel by pixel, as global attention and away from the border, and the zoo trial."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks.zoo import Zoo, widths
from foveal.measure.cost import count_macs
from foveal.models.backbone.tic import MSAConv, TiC, msa_conv, msa_conv_reference
from foveal.record import equal, grows

if TYPE_CHECKING:
    from collections.abc import Callable

REACH = 4  # of two operators in a row, with windows of 5×5


def _tensors(height: int, width: int, *, kernel_size: int) -> list[Tensor]:
    """Queries, keys, values and bias of two heads."""
    torch.manual_seed(0)
    return [*(torch.randn(2, 2, 5, height, width) for _ in range(3)), torch.randn(2, kernel_size**2)]


def _sliding(function: Callable[..., Tensor], *, dilation: int, backward: bool = False) -> Tensor:
    """What an implementation gives, or the gradients of the sum of its squares."""
    inputs = [x.requires_grad_() for x in _tensors(7, 9, kernel_size=5)]
    out = function(*inputs, dilation=dilation)
    if not backward:
        return out.detach()
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(out.square().sum(), inputs)])


def _covering(*, everywhere: bool) -> Tensor:
    """Windows that cover a map of 6×5 from every pixel, or attention among all pixels with the same bias."""
    query, key, value, bias = _tensors(6, 5, kernel_size=11)
    if not everywhere:
        return msa_conv(query, key, value, bias)
    rows, columns = torch.arange(6).repeat_interleave(5), torch.arange(5).repeat(6)
    places = 11 * (rows - rows[:, None] + 5) + columns - columns[:, None] + 5
    q, k, v = (x.flatten(3).mT for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, bias[:, places]).mT.unflatten(3, (6, 5))


@torch.no_grad()
def _two(x: Tensor) -> Tensor:
    """Two operators in a row, away from the border."""
    torch.manual_seed(1)
    layers = nn.Sequential(*(MSAConv(8, 2, kernel_size=5) for _ in range(2)))
    return layers(x)[..., REACH:-REACH, REACH:-REACH]


def _picture() -> Tensor:
    return torch.randn(1, 8, 24, 21, generator=torch.Generator().manual_seed(0))


def _overlap(shift: tuple[int, int], *, moved: bool) -> Tensor:
    """Outputs at the same contents of a picture and of one moved on by some pixels."""
    down, right = shift
    out = _two(_picture().roll(shift, (2, 3)) if moved else _picture())
    return out[..., 2 * down :, 2 * right :] if moved else out[..., down:-down, right:-right]


ZOO = Zoo(  # both cut pictures into patches of 4×4
    partial(TiC, dims=(96, 192), depths=(2, 2), num_heads=(3, 6), kernel_size=3, mlp_ratio=2, num_classes=10),
    widths(lambda dim: small_vit(dim=dim, depth=4, num_heads=4), range(48, 257, 4)),
    "a plain vision transformer",
    minutes=1.5,
)

CLAIMS = (
    *(
        equal(
            f"The sliding operator is masked attention pixel by pixel, dilation {dilation}.",
            ours=partial(_sliding, msa_conv, dilation=dilation),
            theirs=partial(_sliding, msa_conv_reference, dilation=dilation),
            clause=1,
        )
        for dilation in (1, 2)
    ),
    equal(
        "So are its gradients.",
        ours=partial(_sliding, msa_conv, dilation=1, backward=True),
        theirs=partial(_sliding, msa_conv_reference, dilation=1, backward=True),
        clause=1,
    ),
    equal(
        "With a window that covers the map it is global attention.",
        ours=partial(_covering, everywhere=False),
        theirs=partial(_covering, everywhere=True),
        clause=2,
    ),
    equal(
        "Away from the border, outputs move with the picture.",
        ours=partial(_overlap, (2, 3), moved=True),
        theirs=partial(_overlap, (2, 3), moved=False),
        clause=3,
    ),
    equal(
        "They do not depend on the picture's size: a part of it gives the same.",
        ours=lambda: _two(_picture()[..., 3:21, 2:19]),
        theirs=lambda: _two(_picture())[..., 3:13, 2:11],
        clause=3,
    ),
    grows(
        "Its multiply-adds grow with the pixels.",
        paper="linear, not quadratic",
        cost=lambda side: float(count_macs(MSAConv(16, 2), (1, 16, side, side))),
        sizes=(14, 28, 56),
        of=lambda side: float(side**2),
        exponent=(0.99, 1.01),
        beyond="linear in the pixels",
    ),
    *ZOO.claims(clause=4),
)
