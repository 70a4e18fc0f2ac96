"""Evidence of foveal.models.backbone.spatial_mamba."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from foveal.record import equal, faster, kept, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


def _fused(*, identity: bool = False) -> tuple[FusedStates, StateFusion, Tensor]:
    """A small scan with two states, its fusion, and a map, (2, 3, 4, 5)."""
    torch.manual_seed(0)
    ssm, fusion = FusedStates(3, state=2), StateFusion(6)
    if identity:
        fusion.make_identity_()
    else:
        nn.init.normal_(fusion.kernels)
        nn.init.normal_(fusion.alpha)
    return ssm, fusion, torch.randn(2, 3, 4, 5)


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
    """For each channel Σ_D diag(C_D) F_D S_D u + W_D u, S the matrix of the scan and F that of the fusion."""
    ssm, fusion, x = _fused()
    s6, u = ssm.s6, x.flatten(2)
    length, (channels, states) = u.shape[2], s6.A_log.shape
    delta, weights_in, weights_out = (made[:, 0] for made in s6.project(u))
    delta = F.softplus(delta + s6.dt_bias[:, None])
    passed = delta.cumsum(-1)
    # (B, C, D, L, L): what of step j is left at step i
    exponent = (passed[..., :, None] - passed[..., None, :])[:, :, None] * -s6.A_log.exp()[:, :, None, None]
    scan = exponent.exp().tril() * delta[:, :, None, None, :] * weights_in[:, None, :, None, :]
    # (L, D·C, H, W): the fusion's answer to each unit map; as matrices (D, C, L, L)
    unit = torch.eye(length).view(length, 1, *x.shape[2:]).expand(-1, states * channels, -1, -1)
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
    """A network with the three convolutions of each fusion apart, as the paper counts them."""
    model = build()
    for module in model.modules():
        if isinstance(module, StateFusion):
            module.as_one = False
    return model


def _cost(mixer: nn.Module) -> float:
    from foveal.measure.cost import count_macs

    return float(count_macs(_apart(lambda: mixer), (1, 64, 56, 56)))


def _timed(mixer: nn.Module) -> Callable[[], Any]:
    x = torch.randn(1, 64, 56, 56)

    def call() -> Tensor:
        with torch.inference_mode():
            return mixer(x)

    return call


def _above_four_scans(seed: int) -> float:
    from foveal.evidence.tasks.cifar10 import accuracy, train_classifier

    def build(mixer: Callable[[int], nn.Module] | None) -> Callable[[], nn.Module]:
        return lambda: SpatialMamba(dim=16, depths=(1, 1, 1), mlp_ratio=2, mixer=mixer, num_classes=10)

    fused, scanned = (
        accuracy(train_classifier(build(mixer), steps=400, seed=seed))
        for mixer in (None, lambda width: SS2D(width, state=1))
    )
    return fused - scanned


CLAIMS = (
    params("Spatial-Mamba-T.", paper="27 M", model=spatial_mamba_tiny, expect=26_748_862),
    params("Spatial-Mamba-S.", paper="43 M", model=spatial_mamba_small, expect=43_074_280),
    params("Spatial-Mamba-B.", paper="96 M", model=spatial_mamba_base, expect=95_745_592),
    *(
        macs(
            f"Spatial-Mamba-{name} at 224×224, the three convolutions of a fusion apart.",
            paper=f"{paper} G",
            model=partial(_apart, model),
            shape=(1, 3, 224, 224),
            expect=paper * 1e9,
            tolerance=0.02,
        )
        for name, model, paper in (
            ("T", spatial_mamba_tiny, 4.5),
            ("S", spatial_mamba_small, 7.1),
            ("B", spatial_mamba_base, 15.8),
        )
    ),
    equal(
        "With weights that pass the states on it is a plain scan in one direction.",
        ours=lambda: _applied(identity=True),
        theirs=_plain_scan,
        tolerance=1e-6,
    ),
    equal(
        "One matrix a channel, fusion times scan, gives the same outputs.",
        ours=_applied,
        theirs=_matrix_form,
        tolerance=1e-4,
    ),
    equal(
        "A scan that forgets nothing, with steps of 1 and no fusion, is causal linear attention.",
        ours=lambda: _attention(linear=False),
        theirs=lambda: _attention(linear=True),
    ),
    smaller(
        "The mixer takes fewer multiply-adds than four scans of the same width, 64 channels of 56×56.",
        paper="one scan and depthwise convolutions",
        ours=lambda: _cost(StructureAwareMixer(64)),
        theirs=lambda: _cost(SS2D(64, state=1)),
    ),
    faster(
        "It takes less processor time, too.",
        paper="higher throughput than VMamba's at equal size",
        ours=lambda: _timed(StructureAwareMixer(64).eval()),
        theirs=lambda: _timed(SS2D(64, state=1).eval()),
        threads=1,
    ),
    kept(
        "A small network with one scan is within a point of the same one with four, at parameters within 2 %.",
        paper="on par or above on ImageNet",
        quality=_above_four_scans,
        at_least=-1.0,
        unit="points",
        seeds=3,
        data="400 steps on CIFAR-10, the first 2,000 test pictures",
        needs=("minutes", "cifar10_train", "cifar10_test"),
    ),
)
