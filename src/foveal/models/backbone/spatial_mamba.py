"""Spatial-Mamba: one scan, whose hidden states are mixed with their neighbours in the plane before they are read.

*Source*: C. Xiao, M. Li, Z. Zhang, D. Meng, L. Zhang, "Spatial-Mamba: Effective Visual State Space Models via
Structure-aware State Fusion", ICLR 2025 (arXiv:2410.15091), sections 4.1 and 4.2. A convolutional stem to a quarter of
the sides, four stages, each but the first begun by an inverted bottleneck of stride 2; every block is

    x = x + dw₃(x);  x = x + mixer(norm(x));  x = x + dw₃(x);  x = x + mlp(norm(x))

The mixer, with dw₃,d a depthwise 3×3 convolution of dilation d whose border repeats:

    [u, z] = W_in x;  u = silu(dw₃(u))                                (B, C, H, W) to two of (B, 2C, H, W)
    h = states of the scan of u in raster order
    h' = Σ_{d = 1, 3, 5} a_d dw₃,d(h)
    y_t = C_tᵀ h'_t + D ∘ u_t;  out = W_out (norm(y) ∘ silu(z))

*Differs from the paper*: nothing.
*Provenance*: written from the paper; the layers of the stem and between stages, the widths, the repeated border and how
parameters begin were looked up in the authors' code.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import Tensor, nn

from foveal.models.backbone.vmamba import init_weights
from foveal.nn.conv_stem import ConvStem, halving
from foveal.nn.fused_states import FusedStates, hidden_states
from foveal.nn.pyramid import Pyramid
from foveal.nn.ss2d import SS2D
from foveal.ops import selective_scan
from foveal.record import Method, Paper, equal, faster, kept, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "SpatialMamba",
    "StateFusion",
    "StructureAwareMixer",
    "spatial_mamba_base",
    "spatial_mamba_small",
    "spatial_mamba_tiny",
]

DILATIONS = (1, 3, 5)


class StateFusion(nn.Module):
    """Three dilated depthwise 3×3 convolutions, weighted and summed, (B, C, H, W) to the same.

    After training they run as one 11×11 convolution: it multiplies more, zeros too, and takes a third of the time.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.ones(len(DILATIONS), channels, 1, 3, 3))
        self.alpha = nn.Parameter(torch.ones(len(DILATIONS)))
        self.as_one = True

    def forward(self, h: Tensor) -> Tensor:
        most = max(DILATIONS)
        wide = F.pad(h, (most,) * 4, mode="replicate")
        kernels = self.alpha[:, None, None, None, None] * self.kernels
        if self.as_one and not self.training:
            whole = kernels.new_zeros(h.shape[1], 1, 2 * most + 1, 2 * most + 1)
            for kernel, dilation in zip(kernels, DILATIONS, strict=True):
                taps = slice(most - dilation, most + dilation + 1, dilation)
                whole[:, :, taps, taps] += kernel
            return F.conv2d(wide, whole, groups=h.shape[1])
        found = []
        for kernel, dilation in zip(kernels, DILATIONS, strict=True):
            cut = most - dilation
            part = wide[:, :, cut : wide.shape[2] - cut, cut : wide.shape[3] - cut]
            found.append(F.conv2d(part, kernel, dilation=dilation, groups=h.shape[1]))
        return found[0] + found[1] + found[2]

    def make_identity_(self) -> None:
        """Make it pass on what it gets: the mixer is then a plain scan."""
        with torch.no_grad():
            self.kernels.zero_()[0, :, 0, 1, 1] = 1
            self.alpha.fill_(1)


class StructureAwareMixer(nn.Module):
    """A gated scan with fused states, (B, C, H, W) to the same.

    Args:
        dim: C.
        state: D, numbers that each scanned channel remembers.
        expand: scanned channels over C.
    """

    def __init__(self, dim: int, *, state: int = 1, expand: int = 2) -> None:
        super().__init__()
        inner = expand * dim
        self.in_proj = nn.Conv2d(dim, 2 * inner, 1, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.ssm = FusedStates(inner, state=state, dt_rank=-(-dim // 16))
        self.fusion = StateFusion(state * inner)
        self.norm = LayerNorm2d(inner, eps=1e-5)
        self.out_proj = nn.Conv2d(inner, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=1)
        y = self.ssm(F.silu(self.conv(u)), self.fusion)
        return self.out_proj(self.norm(y) * F.silu(z))


class _Block(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, mixer: nn.Module, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.local1, self.local2 = (nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(2))
        self.norm1, self.norm2 = (LayerNorm2d(dim, eps=1e-5) for _ in range(2))
        self.mixer = mixer
        self.mlp = Mlp(dim, int(mlp_ratio * dim), use_conv=True)
        self.drop_path = DropPath(drop_path)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local1(x)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.local2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SpatialMamba(Pyramid):
    """Picture classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dim: channels of the first stage; each stage doubles them.
        depths: blocks of each stage.
        state: D of the scans.
        mlp_ratio: hidden channels over a block's.
        mixer: makes a block's mixer from its channels; None takes `StructureAwareMixer`.
        in_channels: of the picture.
        num_classes: 0 gives pooled features.
        drop_path: probability of dropping a branch of the last block; it rises to that from 0.
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        depths: Sequence[int] = (2, 4, 8, 4),
        state: int = 1,
        mlp_ratio: float = 4.0,
        mixer: Callable[[int], nn.Module] | None = None,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        dims = [dim * 2**i for i in range(len(depths))]
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        make = mixer or (lambda width: StructureAwareMixer(width, state=state))
        stages = [
            nn.Sequential(
                *([halving(dims[i - 1], dims[i])] if i else []),
                *(_Block(dims[i], make(dims[i]), mlp_ratio=mlp_ratio, drop_path=next(drops)) for _ in range(depth)),
            )
            for i, depth in enumerate(depths)
        ]
        super().__init__(
            ConvStem(in_channels, dim),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=LayerNorm2d(dims[-1], eps=1e-5),
        )
        self.head.apply(init_weights)


def spatial_mamba_tiny(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 64,
    depths: Sequence[int] = (2, 4, 8, 4),
    state: int = 1,
) -> SpatialMamba:
    """Spatial-Mamba-T, 27 M parameters; trained with `drop_path` 0.2.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dim: channels of the first stage.
        depths: blocks of each stage.
        state: D of the scans.

    Returns:
        The network.
    """
    return SpatialMamba(
        dim=dim, depths=depths, state=state, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path
    )


def spatial_mamba_small(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 64,
    depths: Sequence[int] = (2, 4, 21, 5),
    state: int = 1,
) -> SpatialMamba:
    """Spatial-Mamba-S, 43 M parameters; trained with `drop_path` 0.3.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dim: channels of the first stage.
        depths: blocks of each stage.
        state: D of the scans.

    Returns:
        The network.
    """
    return SpatialMamba(
        dim=dim, depths=depths, state=state, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path
    )


def spatial_mamba_base(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 96,
    depths: Sequence[int] = (2, 4, 21, 5),
    state: int = 1,
) -> SpatialMamba:
    """Spatial-Mamba-B, 96 M parameters; trained with `drop_path` 0.5.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dim: channels of the first stage.
        depths: blocks of each stage.
        state: D of the scans.

    Returns:
        The network.
    """
    return SpatialMamba(
        dim=dim, depths=depths, state=state, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path
    )


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
    from foveal.train.classify import accuracy, train_classifier

    def build(mixer: Callable[[int], nn.Module] | None) -> Callable[[], nn.Module]:
        return lambda: SpatialMamba(dim=16, depths=(1, 1, 1), mlp_ratio=2, mixer=mixer, num_classes=10)

    fused, scanned = (
        accuracy(train_classifier(build(mixer), steps=400, seed=seed))
        for mixer in (None, lambda width: SS2D(width, state=1))
    )
    return fused - scanned


_TINY = {"dim": 8, "depths": (1, 1), "num_classes": 5}

METHOD = Method(
    id=291,
    name="Spatial-Mamba",
    kind="model",
    summary="One scan over the picture whose states are mixed by dilated convolutions before they are read.",
    paper=Paper(
        "Spatial-Mamba: Effective Visual State Space Models via Structure-aware State Fusion",
        "C. Xiao et al.",
        2025,
        "arXiv:2410.15091",
    ),
    models={
        "spatial_mamba_tiny": spatial_mamba_tiny,
        "spatial_mamba_small": spatial_mamba_small,
        "spatial_mamba_base": spatial_mamba_base,
    },
    cases={
        "spatial_mamba_tiny": _TINY,
        "spatial_mamba_small": {**_TINY, "state": 2},
        "spatial_mamba_base": {**_TINY, "in_channels": 1, "drop_path": 0.1},
    },
    claims=(
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
    ),
)
