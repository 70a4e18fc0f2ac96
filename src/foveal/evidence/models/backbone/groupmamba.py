"""Evidence for GroupMamba: its layer against one that scans all channels in all four directions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveal.evidence.timing import call
from foveal.measure.cost import count_parameters
from foveal.models.backbone.groupmamba import VSSS, GroupMambaLayer, groupmamba_base, groupmamba_small, groupmamba_tiny
from foveal.nn.ss2d import S6, SS2D, one_route_each, one_route_each_back
from foveal.ops.scan2d import routes
from foveal.ops.selective_scan.reference import selective_scan_reference
from foveal.record import equal, faster, params, smaller


def ungrouped(dim: int) -> SS2D:
    """The layer's rival: all channels in all four directions, with the same width and number of states.

    Args:
        dim: number of channels, C.

    Returns:
        The rival mixer.
    """
    return SS2D(dim, state=1, expand=1.0)


def scan_macs(mixer: nn.Module, tokens: int = 196) -> float:
    """Multiply-adds of a layer's scans: per token, 9 for each state and one for each skip.

    Args:
        mixer: mixer with one `S6`.
        tokens: number of tokens of the map.

    Returns:
        Number of multiply-adds.
    """
    (s6,) = (m for m in mixer.modules() if isinstance(m, S6))
    return float(tokens * (9 * s6.A_log.numel() + s6.D.numel()))


def _scanning(*, grouped: bool) -> Tensor:
    """The scans of one layer: jointly, or each by the plain recurrence over the positions of its route."""
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


def _layer(*, grouped: bool) -> GroupMambaLayer:
    layer: Any = GroupMambaLayer(64)
    if not grouped:
        layer.vsss = ungrouped(64)
    return layer


CLAIMS = (
    params("GroupMamba-T.", paper="23 M", model=groupmamba_tiny, expect="23 M", tolerance=0.02, clause=1),
    params("GroupMamba-S.", paper="34 M", model=groupmamba_small, expect="34 M", beyond="sizes as printed"),
    params("GroupMamba-B.", paper="57 M", model=groupmamba_base, expect="57 M", beyond="sizes as printed"),
    smaller(
        "The scans of a grouped layer take at most 0.4 of the multiply-adds of an ungrouped one's four directions.",
        paper="a quarter of the channels in each direction",
        ours=lambda: scan_macs(GroupMambaLayer(128)),
        theirs=lambda: scan_macs(ungrouped(128)),
        at_least=2.5,
        clause=2,
    ),
    smaller(
        "The mixers of a grouped layer have at least 26% fewer parameters than an ungrouped one.",
        paper="26% fewer in the network",
        ours=lambda: float(count_parameters(VSSS(128))),
        theirs=lambda: float(count_parameters(ungrouped(128))),
        at_least=1 / 0.74,
        beyond="26% fewer parameters",
    ),
    equal(
        "The grouped scan is four plain scans, in float64.",
        ours=lambda: _scanning(grouped=True),
        theirs=lambda: _scanning(grouped=False),
        tolerance=1e-12,
        clause=4,
    ),
    faster(
        "A grouped layer of 64 channels of 56×56 takes less time than one with ungrouped SS2D.",
        paper="no time given",
        ours=call(partial(_layer, grouped=True), 1, 64, 56, 56),
        theirs=call(partial(_layer, grouped=False), 1, 64, 56, 56),
        clause=3,
    ),
)
