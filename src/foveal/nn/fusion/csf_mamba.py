"""CSFMamba: two streams are scanned with their own weights, and each reads the hidden states of the other.

*Source*: Q. Wang et al., "CSFMamba: Cross State Fusion Mamba Operator for Multimodal Remote Sensing Image
Classification", 2025 (arXiv:2509.00677), for hyperspectral pictures and height maps from LiDAR. The streams m = 1, 2
are sequences u_m, (B, E, L), each with its own delta, A, B, C and D as in `foveal.ops.selective_scan`:

    h_m,t = exp(delta_m,t A_m) ∘ h_m,t-1 + delta_m,t u_m,t B_m,t                        each state from its own stream
    y_t = C_1,tᵀ h_2,t + C_2,tᵀ h_1,t + D_1 u_1,t + D_2 u_2,t                          read with weights of the other

If both streams are equal, y is twice an ordinary selective scan. The block around it, for maps (B, C, H, W):

    [u_m, z_m] = W_in norm(x_m),  u_m ← silu(dwconv(u_m)),  in raster order
    y = (there and back, each with its own weights)
    x_m' = x_m + W_m (norm(y) ∘ silu(z_m))

*Differs from the paper*: nothing known; of the block only what the abstract names is certain: convolutions before the
operator, and states that cross.
*Provenance*: written from the abstract and a summary of the operator; the text and code of the paper were not at hand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.fusion import check_pair, zero_
from foveal.nn.ss2d import initial_step
from foveal.ops import selective_scan
from foveal.record import Method, Paper

__all__ = ["CSFMamba", "CrossState", "cross_state_scan", "cross_state_scan_reference"]


def cross_state_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803 - the paper's letters
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor,  # noqa: N803
) -> Tensor:
    """Selective scans of two streams whose states are read with each other's output weights, summed.

    Args:
        u: both streams, (2, batch, dim, length).
        delta: step sizes, positive, (2, batch, dim, length).
        A: decay of each state, negative, (2, dim, states).
        B: input weights, (2, batch, states, length).
        C: output weights, (2, batch, states, length).
        D: skip weights, (2, dim).

    Returns:
        (batch, dim, length).
    """
    # one scan of twice the channels, in two groups whose output weights are exchanged
    y = selective_scan(
        u.transpose(0, 1).flatten(1, 2),
        delta.transpose(0, 1).flatten(1, 2),
        A.flatten(0, 1),
        B.transpose(0, 1),
        C.flip(0).transpose(0, 1),
        D.flatten(),
    )
    return y.unflatten(1, (2, -1)).sum(1)


def cross_state_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor,  # noqa: N803
) -> Tensor:
    """`cross_state_scan` step by step.

    Args:
        u: as in `cross_state_scan`.
        delta: as in `cross_state_scan`.
        A: as in `cross_state_scan`.
        B: as in `cross_state_scan`.
        C: as in `cross_state_scan`.
        D: as in `cross_state_scan`.

    Returns:
        (batch, dim, length).
    """
    first, second = (u.new_zeros(*u.shape[1:3], A.shape[2]) for _ in range(2))
    outputs = []
    for t in range(u.shape[3]):
        entering = delta[..., t, None] * u[..., t, None] * B[:, :, None, :, t]
        decay = torch.exp(delta[..., t, None] * A[:, None])
        first, second = decay[0] * first + entering[0], decay[1] * second + entering[1]
        read = (C[0, :, None, :, t] * second).sum(-1) + (C[1, :, None, :, t] * first).sum(-1)
        outputs.append(read + D[0] * u[0, ..., t] + D[1] * u[1, ..., t])
    return torch.stack(outputs, -1)


class CrossState(nn.Module):
    """`cross_state_scan` with weights made from the streams, (2, B, dim, L) to (B, dim, L).

    Args:
        dim: number of channels of each stream.
        state: state size of each channel.
        dt_rank: rank of the step-size projection.
    """

    def __init__(self, dim: int, *, state: int = 16, dt_rank: int = 1) -> None:
        super().__init__()
        self.split = (dt_rank, state, state)
        self.x_proj = nn.Parameter(torch.empty(2, 1, sum(self.split), dim).uniform_(-1, 1) / dim**0.5)
        self.dt_proj = nn.Parameter(torch.empty(2, 1, dim, dt_rank).uniform_(-1, 1) / dt_rank**0.5)
        self.dt_bias = nn.Parameter(initial_step(2 * dim).view(2, 1, dim, 1))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(2, dim, 1))
        self.D = nn.Parameter(torch.ones(2, dim))

    def forward(self, u: Tensor) -> Tensor:
        step, weights_in, weights_out = (self.x_proj @ u).split(self.split, dim=2)
        delta = F.softplus(self.dt_proj @ step + self.dt_bias)
        return cross_state_scan(u, delta, -self.A_log.exp(), weights_in, weights_out, self.D)


class CSFMamba(nn.Module):
    """Fusion by crossed states, two of (B, dim, H, W) to the same; a `foveal.nn.fusion.Fusion`.

    Args:
        dim: C.
        state: state size of each scanned channel.
        expand: ratio of scanned channels to `dim`.
        zero_init: whether the block starts as the identity.
    """

    def __init__(self, dim: int, *, state: int = 16, expand: float = 2.0, zero_init: bool = False) -> None:
        super().__init__()
        inner, self.dim = int(expand * dim), dim
        self.norm = nn.ModuleList(LayerNorm2d(dim) for _ in range(2))
        self.in_proj = nn.ModuleList(nn.Conv2d(dim, 2 * inner, 1, bias=False) for _ in range(2))
        self.conv = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1, groups=inner) for _ in range(2))
        self.there, self.back = (CrossState(inner, state=state, dt_rank=-(-dim // 16)) for _ in range(2))
        self.out_norm = LayerNorm2d(inner)
        self.out_proj = nn.ModuleList(nn.Conv2d(inner, dim, 1, bias=False) for _ in range(2))
        if zero_init:
            zero_(*self.out_proj)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        check_pair(x, y, self.dim)
        entering, gates = [], []
        for stream, norm, in_proj, conv in zip((x, y), self.norm, self.in_proj, self.conv, strict=True):
            u, z = in_proj(norm(stream)).chunk(2, dim=1)
            entering.append(F.silu(conv(u)).flatten(2))
            gates.append(F.silu(z))
        u = torch.stack(entering)
        both = (self.there(u) + self.back(u.flip(-1)).flip(-1)).unflatten(2, x.shape[2:])
        both = self.out_norm(both)
        return x + self.out_proj[0](both * gates[0]), y + self.out_proj[1](both * gates[1])


def _draw(seed: int, batch: int, dim: int, states: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    streams, weights = (2, batch, dim, length), (2, batch, states, length)
    shapes = {"u": streams, "delta": streams, "A": (2, dim, states), "B": weights, "C": weights, "D": (2, dim)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return made | {"delta": made["delta"].exp(), "A": -made["A"].exp()}


METHOD = Method(
    id=344,
    name="CSFMamba",
    kind="operator",
    summary="Two streams are scanned with their own weights, and each reads the hidden states of the other.",
    paper=Paper(
        "CSFMamba: Cross State Fusion Mamba Operator for Multimodal Remote Sensing Image Classification",
        "Q. Wang et al.",
        2025,
        "arXiv:2509.00677",
    ),
    cases={
        "seven steps": Operator(cross_state_scan, cross_state_scan_reference, lambda seed: _draw(seed, 2, 3, 4, 7)),
        "one step": Operator(cross_state_scan, cross_state_scan_reference, lambda seed: _draw(seed, 1, 2, 1, 1)),
    },
)
