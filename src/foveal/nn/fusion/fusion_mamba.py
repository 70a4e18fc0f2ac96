"""Fusion-Mamba: two streams swap channels, then each gates the other's states of a scan over the map.

*Source*: W. Dong et al., "Fusion-Mamba for Cross-modality Object Detection", 2024 (arXiv:2404.09146), section 3. For
streams x and y, (B, C, H, W), such as visible and infrared:

    shallow (SSCS): the channels are cut into four parts, the second and the fourth change sides;
        x ← VSS_x(x),  y ← VSS_y(y)                        VSS(x) = x + SS2D(norm(x)), see `foveal.nn.ss2d`
    deep (DSSF), several times:
        [u, z] = W_in norm(x)                              (B, C, H, W) to two of (B, 2·C, H, W), and from y likewise
        s_x = norm(S6(silu(dwconv(u_x)))),  s_y likewise   the same scans along four routes for both streams
        x ← x + W_x (s_x ∘ silu(z_x) + silu(z_x) ∘ s_y)
        y ← y + W_y (s_y ∘ silu(z_y) + silu(z_y) ∘ s_x)
    out = what came in + what the deep part gives, for each stream

*Differs from the paper*: what is added has a gain for each channel, 1 at the start, or 0 with `zero_init`.
*Provenance*: written from the abstract and from summaries of the paper; where the parts stand, that both streams share
the weights of the scan, and the eight repetitions were looked up in the authors' code. For the second stream that code
gates what the first has become; here both use the states, as in the formula.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.fusion import check_pair
from foveal.nn.ss2d import S6, SS2D
from foveal.record import Method, Paper

__all__ = [
    "DualStateFusion",
    "FusionMamba",
    "gate_states",
    "gate_states_reference",
    "swap_channels",
    "swap_channels_reference",
]


def swap_channels(x: Tensor, y: Tensor, *, parts: int = 4) -> tuple[Tensor, Tensor]:
    """Exchange every second part of the channels; a second call brings them back.

    Args:
        x: one stream, (B, C, …).
        y: the other, (B, C, …).
        parts: number of parts.

    Returns:
        Both streams, (B, C, …) each.
    """
    part = torch.arange(x.shape[1], device=x.device) * parts // x.shape[1]
    swapped = (part % 2 == 1).view(-1, *[1] * (x.ndim - 2))
    return torch.where(swapped, y, x), torch.where(swapped, x, y)


def swap_channels_reference(x: Tensor, y: Tensor, *, parts: int = 4) -> tuple[Tensor, Tensor]:
    """`swap_channels` part by part, for channels that the parts divide.

    Args:
        x: as in `swap_channels`.
        y: as in `swap_channels`.
        parts: as in `swap_channels`.

    Returns:
        Both streams, (B, C, …) each.
    """
    pairs = list(zip(x.chunk(parts, 1), y.chunk(parts, 1), strict=True))
    return (
        torch.cat([pair[place % 2] for place, pair in enumerate(pairs)], 1),
        torch.cat([pair[1 - place % 2] for place, pair in enumerate(pairs)], 1),
    )


def gate_states(states_x: Tensor, states_y: Tensor, z_x: Tensor, z_y: Tensor) -> tuple[Tensor, Tensor]:
    """Each stream's gate on the sum of both streams' states.

    Args:
        states_x: output of the scan of one stream, (B, E, H, W).
        states_y: output of the scan of the other, (B, E, H, W).
        z_x: gate of the one before its SiLU, (B, E, H, W).
        z_y: gate of the other, (B, E, H, W).

    Returns:
        Both, (B, E, H, W) each.
    """
    both = states_x + states_y
    return both * F.silu(z_x), both * F.silu(z_y)


def gate_states_reference(states_x: Tensor, states_y: Tensor, z_x: Tensor, z_y: Tensor) -> tuple[Tensor, Tensor]:
    """`gate_states` as the paper writes it: own states gated, and the own gate on the other's.

    Args:
        states_x: as in `gate_states`.
        states_y: as in `gate_states`.
        z_x: as in `gate_states`.
        z_y: as in `gate_states`.

    Returns:
        Both, (B, E, H, W) each.
    """
    gate_x, gate_y = z_x / (1 + (-z_x).exp()), z_y / (1 + (-z_y).exp())
    return states_x * gate_x + gate_x * states_y, states_y * gate_y + gate_y * states_x


class DualStateFusion(nn.Module):
    """One repetition of the deep part, two of (B, dim, H, W) to the same.

    Args:
        dim: C.
        state: state size of each scanned channel.
        expand: ratio of scanned channels to `dim`.
    """

    def __init__(self, dim: int, *, state: int = 16, expand: float = 2.0) -> None:
        super().__init__()
        inner = int(expand * dim)
        self.norm = nn.ModuleList(LayerNorm2d(dim) for _ in range(2))
        self.in_proj = nn.ModuleList(nn.Conv2d(dim, 2 * inner, 1, bias=False) for _ in range(2))
        self.conv = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1, groups=inner) for _ in range(2))
        self.s6 = S6(inner, state=state, dt_rank=-(-dim // 16))
        self.out_norm = nn.ModuleList(LayerNorm2d(inner, eps=1e-5) for _ in range(2))
        self.out_proj = nn.ModuleList(nn.Conv2d(inner, dim, 1, bias=False) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scanned, gates = [], []
        for stream, norm, in_proj, conv in zip((x, y), self.norm, self.in_proj, self.conv, strict=True):
            u, z = in_proj(norm(stream)).chunk(2, dim=1)
            scanned.append(F.silu(conv(u)))
            gates.append(z)
        # (2·B, E, H, W): one call, because the weights are the same
        states = self.s6.along(torch.cat(scanned)).chunk(2)
        made = gate_states(*(norm(s) for norm, s in zip(self.out_norm, states, strict=True)), *gates)
        return x + self.out_proj[0](made[0]), y + self.out_proj[1](made[1])


class FusionMamba(nn.Module):
    """Fusion of two streams in the state space, two of (B, dim, H, W) to the same; a `foveal.nn.fusion.Fusion`.

    Args:
        dim: C.
        depth: repetitions of the deep part.
        state: state size of each scanned channel.
        expand: ratio of scanned channels to `dim`.
        zero_init: whether the block starts as the identity.
    """

    def __init__(
        self, dim: int, *, depth: int = 8, state: int = 16, expand: float = 2.0, zero_init: bool = False
    ) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.ModuleList(LayerNorm2d(dim) for _ in range(2))
        self.shallow = nn.ModuleList(SS2D(dim, state=state, expand=expand) for _ in range(2))
        self.deep = nn.ModuleList(DualStateFusion(dim, state=state, expand=expand) for _ in range(depth))
        self.gain = nn.Parameter(torch.full((2, dim, 1, 1), 0.0 if zero_init else 1.0))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        check_pair(x, y, self.dim)
        streams = swap_channels(x, y)
        a, b = (s + mix(norm(s)) for s, norm, mix in zip(streams, self.norm, self.shallow, strict=True))
        for fuse in self.deep:
            a, b = fuse(a, b)
        return x + self.gain[0] * a, y + self.gain[1] * b


def _draw(seed: int, *names: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, 8, 3, 5, generator=generator) for name in names}


METHOD = Method(
    id=7,
    name="Fusion-Mamba",
    kind="operator",
    summary="Two streams swap channels, are scanned over the map, and each gates the states of both.",
    paper=Paper("Fusion-Mamba for Cross-modality Object Detection", "W. Dong et al.", 2024, "arXiv:2404.09146"),
    cases={
        "swap": Operator(swap_channels, swap_channels_reference, lambda seed: _draw(seed, "x", "y")),
        "gates": Operator(
            gate_states, gate_states_reference, lambda seed: _draw(seed, "states_x", "states_y", "z_x", "z_y")
        ),
    },
)
