"""AWSRN: residual units and reconstruction branches whose weights are learnt scalars.

*Source*: C. Wang et al., "Lightweight Image Super-Resolution with Adaptive Weighted Learning Network", 2019
(arXiv:1904.02358), section 3. A 3×3 convolution to C features, local fusion blocks, the reconstruction module, and a
3×3 convolution of the picture with pixel shuffle added. x: (B, C, H, W), lower-case Greek letters are scalars:

    unit (AWRU):           α conv(relu(conv(x))) + β x                        C to a wider layer and back
    block (LFB):           γ conv[x₁ … xₙ] + δ x,   xᵢ = unit(xᵢ₋₁), x₀ = x    concatenated outputs, fused
    reconstruction (AWMS): Σₖ λₖ shuffle(convₖ(x)),   k = 3, 5, 7, 9

Convolutions are weight-normalised. The branch of AWMS whose scalar is smallest can be removed (`without_branch`). AWMS
is linear, so `fold` makes its branches one k×k convolution, k the largest, and multiplies the normalisation out; with
`absorb` another branch takes over what it can of the one removed.

*Differs from the paper*: folding and absorbing are foveal's own; the mean of the colours is 0.5 unless there
are three channels.

*Provenance*: written from the paper; layer sizes, weight normalisation and initial scalars were looked up in the
authors' code.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

from foveal.record import Method, Paper

__all__ = ["AWSRN", "awsrn_m", "awsrn_s", "awsrn_sd", "branch_weights", "without_branch"]

MEAN = (0.4488, 0.4371, 0.4040)  # of the colours in DIV2K
KERNELS = (3, 5, 7, 9)


def _conv(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Conv2d:
    return weight_norm(nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2))


@torch.no_grad()
def _plain(conv: Any) -> nn.Conv2d:
    """The same convolution without weight normalisation; removing it from a copy would break the original."""
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size[0], padding=conv.kernel_size[0] // 2)
    plain = plain.to(conv.weight)
    plain.weight.copy_(conv.weight)
    assert plain.bias is not None
    plain.bias.copy_(conv.bias)
    return plain


class _Unit(nn.Module):
    """AWRU, (B, C, H, W) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(dim, hidden), nn.ReLU(), _conv(hidden, dim))
        self.res_scale, self.x_scale = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.res_scale * self.body(x) + self.x_scale * x


class _Block(nn.Module):
    """LFB, (B, C, H, W) to the same."""

    def __init__(self, dim: int, hidden: int, units: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(_Unit(dim, hidden) for _ in range(units))
        self.reduction = _conv(units * dim, dim)
        self.res_scale, self.x_scale = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for unit in self.units:
            seen.append(unit(seen[-1]))
        # (B, n·C, H, W) to (B, C, H, W)
        return self.res_scale * self.reduction(torch.cat(seen[1:], 1)) + self.x_scale * x


class _Reconstruction(nn.Module):
    """AWMS without its pixel shuffle, (B, C, H, W) to (B, C', H, W)."""

    def __init__(self, dim: int, out_channels: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({str(k): _conv(dim, out_channels, k) for k in kernels})
        self.scales = nn.ParameterDict({str(k): nn.Parameter(torch.full((1,), 1 / len(kernels))) for k in kernels})

    def forward(self, x: Tensor) -> Tensor:
        out = [scale * self.branches[k](x) for k, scale in self.scales.items()]
        return torch.stack(out).sum(0) if len(out) > 1 else out[0]

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """The sum of the branches as one convolution with the largest kernel."""
        convs: list[tuple[Tensor, Any]] = [(scale, self.branches[k]) for k, scale in self.scales.items()]
        largest = max(conv.kernel_size[0] for _, conv in convs)
        first = convs[0][1]
        whole = nn.Conv2d(first.in_channels, first.out_channels, largest, padding=largest // 2).to(first.weight)
        border = [(largest - conv.kernel_size[0]) // 2 for _, conv in convs]
        kernels = [scale * F.pad(conv.weight, (b,) * 4) for b, (scale, conv) in zip(border, convs, strict=True)]
        whole.weight.copy_(torch.stack(kernels).sum(0))
        assert whole.bias is not None
        whole.bias.copy_(torch.stack([scale * conv.bias for scale, conv in convs]).sum(0))
        return whole


class AWSRN(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s, at least 1.
        dim: width between units.
        hidden: width inside a unit.
        depth: number of blocks.
        units: number of units of a block.
        kernels: kernel sizes of the reconstruction's branches, odd and different.
        in_channels: C.

    Raises:
        ValueError: if the scale is below 1, or the kernels are none, even or repeated.
    """

    def __init__(
        self,
        scale: int = 4,
        *,
        dim: int = 32,
        hidden: int = 128,
        depth: int = 4,
        units: int = 4,
        kernels: tuple[int, ...] = KERNELS,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        if not kernels or any(k % 2 == 0 for k in kernels) or len(set(kernels)) < len(kernels):
            raise ValueError(
                f"kernels must be odd and different, at least one, got {kernels}; the paper's are {KERNELS}"
            )
        self.scale = scale
        mean = MEAN if in_channels == len(MEAN) else (0.5,) * in_channels
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.head = _conv(in_channels, dim)
        self.body = nn.Sequential(*(_Block(dim, hidden, units) for _ in range(depth)))
        self.tail: nn.Module = _Reconstruction(dim, in_channels * scale**2, kernels)
        self.skip = _conv(in_channels, in_channels * scale**2)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * (x - self.mean)
        out = self.skip(x) + self.tail(self.body(self.head(x)))
        return F.pixel_shuffle(out, self.scale) / 2 + self.mean

    def fold(self) -> AWSRN:
        """The same network with one convolution for its reconstruction and without weight normalisation.

        Returns:
            A copy for use, not for training.
        """
        network = copy.deepcopy(self)
        if isinstance(network.tail, _Reconstruction):
            network.tail = network.tail.fold()
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Conv2d) and is_parametrized(child):
                    setattr(module, name, _plain(child))
        return network


def _branches(network: AWSRN) -> _Reconstruction:
    if not isinstance(network.tail, _Reconstruction):
        raise ValueError("the branches of a folded network are one convolution; take the network before `fold`")
    return network.tail


def branch_weights(network: AWSRN) -> dict[int, float]:
    """Learnt scalar of each branch of the reconstruction.

    Args:
        network: network that is not folded.

    Returns:
        Scalar by kernel size.
    """
    return {int(k): float(scale.detach()) for k, scale in _branches(network).scales.items()}


@torch.no_grad()
def without_branch(network: AWSRN, kernel_size: int | None = None, *, absorb: bool = False) -> AWSRN:
    """Remove a branch of the reconstruction.

    Args:
        network: network that is not folded.
        kernel_size: kernel size of the branch; None takes the one whose scalar is smallest in absolute value.
        absorb: whether the largest other branch takes over what fits into its kernel, and the bias; nothing is lost if
            it is larger than the one removed.

    Returns:
        A copy without it.

    Raises:
        ValueError: no such branch, or it is the last one.
    """
    weights = branch_weights(network)
    if kernel_size is None:
        kernel_size = min(weights, key=lambda k: abs(weights[k]))
    if kernel_size not in weights or len(weights) == 1:
        raise ValueError(f"kernel_size must be one of several branches, got {kernel_size} of {sorted(weights)}")
    network = copy.deepcopy(network)
    tail = _branches(network)
    gone, factor = _plain(tail.branches[str(kernel_size)]), tail.scales[str(kernel_size)]
    del tail.branches[str(kernel_size)], tail.scales[str(kernel_size)]
    if absorb:
        heir = str(max(k for k in weights if k != kernel_size))
        conv: Any = tail.branches[heir]
        border = (int(heir) - kernel_size) // 2  # a negative padding crops
        share = factor / tail.scales[heir]
        conv.weight = conv.weight + share * F.pad(gone.weight, (border,) * 4)
        conv.bias += share * gone.bias
    return network


# The paper's largest is `AWSRN` itself.
awsrn_s = partial(AWSRN, depth=1)  # AWSRN-S
awsrn_sd = partial(AWSRN, dim=16, depth=1, units=8)  # AWSRN-SD
awsrn_m = partial(AWSRN, depth=3)  # AWSRN-M


METHOD = Method(
    id=251,
    name="AWSRN",
    kind="model",
    summary="Residual units and reconstruction branches weighed by learnt scalars; the weakest branch can be removed.",
    paper=Paper(
        "Lightweight Image Super-Resolution with Adaptive Weighted Learning Network",
        "C. Wang et al.",
        2019,
        "arXiv:1904.02358",
    ),
    models={"awsrn": AWSRN, "awsrn_s": awsrn_s, "awsrn_sd": awsrn_sd, "awsrn_m": awsrn_m},
    cases={
        "awsrn": {"scale": 2, "dim": 4, "hidden": 6, "depth": 1, "units": 2},
        "awsrn_s": {"scale": 3, "dim": 4, "hidden": 6},
        "awsrn_sd": {"scale": 2, "dim": 4, "hidden": 6},
        "awsrn_m": {"scale": 2, "dim": 4, "hidden": 6},
    },
)
