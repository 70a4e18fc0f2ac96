"""Evidence of foveal.models.backbone.groupmamba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.models.backbone.groupmamba import VSSS, GroupMambaLayer, groupmamba_base, groupmamba_small, groupmamba_tiny
from foveal.nn.ss2d import S6, SS2D, one_route_each, one_route_each_back
from foveal.record import equal, faster, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


def _ungrouped(dim: int) -> SS2D:
    """The layer's rival: all channels in all four directions, as wide, with as many states."""
    return SS2D(dim, state=1, expand=1.0)


def _scan_macs(mixer: nn.Module, tokens: int = 196) -> float:
    """Multiply-adds of a layer's scans, 9 a state and one a skip, for each token."""
    (s6,) = (m for m in mixer.modules() if isinstance(m, S6))
    return float(tokens * (9 * s6.A_log.numel() + s6.D.numel()))


def _size(module: nn.Module) -> float:
    return float(sum(p.numel() for p in module.parameters()))


def _scanning(*, grouped: bool) -> Tensor:
    """The scans of one layer: as one, or each by the plain recurrence over the positions of its route."""
    from foveal.ops.scan2d import routes
    from foveal.ops.selective_scan.reference import selective_scan_reference

    torch.manual_seed(0)
    s6, x = S6(6, state=3, dt_rank=2).double(), torch.randn(2, 24, 7, 5, dtype=torch.float64)
    if grouped:
        with torch.inference_mode():
            return one_route_each_back(s6(one_route_each(x)), 7, 5)
    found = []
    with torch.inference_mode():
        for k, route in enumerate(routes("cross", 7, 5)):
            part = slice(6 * k, 6 * (k + 1))
            u = x[:, part].flatten(2)[..., route]
            step, weights_in, weights_out = (s6.x_proj[k] @ u).split((2, 3, 3), 1)
            decay, bias = -s6.A_log[part].exp(), s6.dt_bias[part]
            y, _ = selective_scan_reference(
                u, s6.dt_proj[k] @ step, decay, weights_in[:, None], weights_out[:, None], s6.D[part], None, bias, True
            )
            found.append(torch.zeros_like(y).index_copy_(2, route, y))
    return torch.cat(found, 1).view(x.shape)


def _layer(*, grouped: bool) -> Callable[[], Any]:
    torch.manual_seed(0)
    layer, x = GroupMambaLayer(64).eval(), torch.rand(1, 64, 56, 56)
    if not grouped:
        layer.vsss = _ungrouped(64).eval()  # type: ignore[assignment]

    def call() -> Tensor:
        with torch.inference_mode():
            return layer(x)

    return call


CLAIMS = (
    params("GroupMamba-T.", paper="23 M", model=groupmamba_tiny, expect=23_000_000, tolerance=0.02),
    params("GroupMamba-S.", paper="34 M", model=groupmamba_small, expect=34_781_555),
    params("GroupMamba-B.", paper="57 M", model=groupmamba_base, expect=57_150_838),
    smaller(
        "The scans of a grouped layer take at most 0.4 of the multiply-adds of an ungrouped one's four directions.",
        paper="a quarter of the channels in each direction",
        ours=lambda: _scan_macs(GroupMambaLayer(128)),
        theirs=lambda: _scan_macs(_ungrouped(128)),
        at_least=2.5,
    ),
    smaller(
        "The mixers of a grouped layer have at least 26% fewer parameters than an ungrouped one.",
        paper="26% fewer in the network",
        ours=lambda: _size(VSSS(128)),
        theirs=lambda: _size(_ungrouped(128)),
        at_least=1 / 0.74,
    ),
    equal(
        "The grouped scan is four plain scans, in float64.",
        ours=lambda: _scanning(grouped=True),
        theirs=lambda: _scanning(grouped=False),
        tolerance=1e-12,
    ),
    faster(
        "A grouped layer of 64 channels of 56×56 takes less time than one with ungrouped SS2D.",
        paper="no time given",
        ours=lambda: _layer(grouped=True),
        theirs=lambda: _layer(grouped=False),
    ),
)
