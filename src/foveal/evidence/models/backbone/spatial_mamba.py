"""Evidence for Spatial-Mamba: its fused states against matrices, one scan with fusion against SS2D's four scans."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.models.backbone.spatial_mamba import (
    SpatialMamba,
    StateFusion,
    StructureAwareMixer,
    spatial_mamba_base,
    spatial_mamba_small,
    spatial_mamba_tiny,
)
from foveal.nn.fused_states import FusedStates, hidden_states
from foveal.nn.ss2d import SS2D
from foveal.ops import selective_scan
from foveal.record import equal, faster, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


def _fused(*, identity: bool = False) -> tuple[FusedStates, StateFusion, Tensor]:
    """A small scan with two states, its fusion, and a map, (2, 3, 4, 5)."""
    torch.manual_seed(0)
    # In double precision, so that "exactly" does not depend on the order of sums.
    ssm, fusion = FusedStates(3, state=2).double(), StateFusion(6).double()
    if identity:
        fusion.make_identity_()
    else:
        for parameter in fusion.parameters():
            nn.init.normal_(parameter)
    return ssm, fusion, torch.randn(2, 3, 4, 5, dtype=torch.float64)


def _applied(*, identity: bool = False) -> Tensor:
    ssm, fusion, x = _fused(identity=identity)
    return ssm(x, fusion)


def _plain_scan() -> Tensor:
    ssm, _, x = _fused(identity=True)
    delta, weights_in, weights_out = (made[:, 0] for made in ssm.s6.project(x.flatten(2)))
    s6 = ssm.s6
    y: Any = selective_scan(
        x.flatten(2), delta, -s6.A_log.exp(), weights_in, weights_out, s6.D, delta_bias=s6.dt_bias, delta_softplus=True
    )
    return y.view(x.shape)


def _matrix_form() -> Tensor:
    """For each channel Σ_D diag(C_D) F_D S_D u + W_D u, with S the matrix of the scan and F that of the fusion."""
    ssm, fusion, x = _fused()
    s6, u = ssm.s6, x.flatten(2)
    length, (channels, states) = u.shape[2], s6.A_log.shape
    delta, weights_in, weights_out = (made[:, 0] for made in s6.project(u))
    delta = F.softplus(delta + s6.dt_bias[:, None])
    passed = delta.cumsum(-1)
    # (B, C, D, L, L): share of the input of step j left at step i
    exponent = (passed[..., :, None] - passed[..., None, :])[:, :, None] * -s6.A_log.exp()[:, :, None, None]
    scan = exponent.exp().tril() * delta[:, :, None, None, :] * weights_in[:, None, :, None, :]
    # (L, D·C, H, W): the fusion's response to each unit map; as matrices (D, C, L, L)
    unit = torch.eye(length, dtype=x.dtype).view(length, 1, *x.shape[2:]).expand(-1, states * channels, -1, -1)
    fused = fusion(unit).flatten(2).permute(1, 2, 0).unflatten(0, (states, channels))
    matrix = (weights_out[:, None, :, :, None] * (fused.transpose(0, 1) @ scan)).sum(2)
    return ((matrix @ u[..., None]).squeeze(-1) + s6.D[:, None] * u).view(x.shape)


def _attention(*, linear: bool) -> Tensor:
    """Values 4 wide, queries and keys 6 wide, 11 tokens; as a scan that forgets nothing, or as linear attention."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 11), torch.randn(2, 6, 11), torch.randn(2, 4, 11)
    if linear:
        return value @ (query.transpose(1, 2) @ key).tril().transpose(1, 2)
    states = hidden_states(value, torch.ones_like(value), torch.zeros(4, 6), key, delta_softplus=False)
    return (states * query[:, :, None]).sum(1)


def _apart(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with the three convolutions of each fusion kept separate, as the paper counts them."""
    model = build()
    for module in model.modules():
        if isinstance(module, StateFusion):
            module.as_one = False
    return model


def _cost(build: Callable[[], nn.Module]) -> float:
    return float(count_macs(_apart(build), (1, 64, 56, 56)))


_ours, _theirs = partial(StructureAwareMixer, 64), partial(SS2D, 64, state=1)
_small = partial(SpatialMamba, dim=16, depths=(1, 1, 1), mlp_ratio=2, num_classes=10)

CLAIMS = (
    params(
        "Spatial-Mamba-T.",
        paper="27 M",
        model=spatial_mamba_tiny,
        expect="27 M",
        beyond="sizes of the paper's networks",
    ),
    params(
        "Spatial-Mamba-S.",
        paper="43 M",
        model=spatial_mamba_small,
        expect="43 M",
        beyond="sizes of the paper's networks",
    ),
    params(
        "Spatial-Mamba-B.",
        paper="96 M",
        model=spatial_mamba_base,
        expect="96 M",
        beyond="sizes of the paper's networks",
    ),
    macs(
        "Spatial-Mamba-T at 224×224, the three convolutions of a fusion apart.",
        paper="4.5 G",
        model=partial(_apart, spatial_mamba_tiny),
        shape=(1, 3, 224, 224),
        expect="4.5 G",
        tolerance=0.02,
        beyond="cost of the paper's networks",
    ),
    macs(
        "Spatial-Mamba-S at 224×224, the three convolutions of a fusion apart.",
        paper="7.1 G",
        model=partial(_apart, spatial_mamba_small),
        shape=(1, 3, 224, 224),
        expect="7.1 G",
        tolerance=0.02,
        beyond="cost of the paper's networks",
    ),
    macs(
        "Spatial-Mamba-B at 224×224, the three convolutions of a fusion apart.",
        paper="15.8 G",
        model=partial(_apart, spatial_mamba_base),
        shape=(1, 3, 224, 224),
        expect="15.8 G",
        tolerance=0.02,
        beyond="cost of the paper's networks",
    ),
    equal(
        "With weights that pass the states on it is a plain scan in one direction.",
        ours=lambda: _applied(identity=True),
        theirs=_plain_scan,
        tolerance=1e-12,
        clause=1,
    ),
    equal(
        "One matrix a channel, fusion times scan, gives the same outputs.",
        ours=_applied,
        theirs=_matrix_form,
        tolerance=1e-4,
        clause=2,
    ),
    equal(
        "A scan that forgets nothing, with steps of 1 and no fusion, is causal linear attention.",
        ours=lambda: _attention(linear=False),
        theirs=lambda: _attention(linear=True),
        beyond="linear attention is a special case",
    ),
    smaller(
        "The mixer takes fewer multiply-adds than four scans of the same width, 64 channels of 56×56.",
        paper="one scan and depthwise convolutions",
        ours=lambda: _cost(_ours),
        theirs=lambda: _cost(_theirs),
        beyond="one scan and depthwise convolutions cost less than four scans",
    ),
    faster(
        "It takes less processor time, too.",
        paper="higher throughput than VMamba's at equal size",
        ours=call(_ours, 1, 64, 56, 56),
        theirs=call(_theirs, 1, 64, 56, 56),
        threads=1,
        clause=3,
    ),
    cifar10.better(
        _small,
        "A small network with one scan is within a point of the same one with four, at parameters within 2 %.",
        than=partial(_small, mixer=partial(SS2D, state=1)),
        steps=400,
        by=-1.0,
        paper="on par or above on ImageNet",
        beyond="a single scan suffices",
    ),
)
