"""SMPConv: a depthwise convolution whose kernel is drawn from points that move while it learns.

*Source*: S. Kim and E. Park, "SMPConv: Self-moving Point Representations for Continuous Convolution", CVPR 2023
(arXiv:2304.02330), section 3. M points with places p_i in [-1, 1]^d and radii r_i, shared by all channels, and a weight
per point and channel, w_i: (C,), give the kernel at a relative position x

    K(x) = 1 / |N(x)| Σ_i relu(1 - ‖x - p_i‖₁ / r_i) w_i         N(x) = {i : ‖x - p_i‖₁ < r_i}

which is 0 where no point is near. It is read at the places of a grid and used in an ordinary convolution, beside a
small kernel of plain weights. Nothing is evaluated but M hats for each tap, so it is cheaper to draw than by a network
of coordinates; a kernel of K taps has C·M + M·(d + 1) parameters in the place of C·K.

*Differs from the paper*: the small kernel is added to the middle of the large one, which makes one convolution of both;
in the paper each has a batch norm of its own. As none follows here, kernels start with unit energy. Points start as in
the authors' code for pictures or, if causal, for sequences (near the present); the paper prints no numbers. In their
sequence models each output channel has points of its own and kernels are dense; here, as in their ImageNet models,
points are shared and kernels depthwise. Division by |N(x)| is left out in their ImageNet code and can be here
(`average`). Where a point comes into reach of x, |N(x)| jumps, and so does K(x); no gradient passes through the count.

*Provenance*: written from the paper. The kernels equal those of both of the authors' modules, dense for sequences and
depthwise for ImageNet, to 1e-6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.global_conv import global_conv
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SMPConv", "draw_kernel", "draw_kernel_reference", "to_conv"]

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def draw_kernel(
    places: Tensor, radii: Tensor, weights: Tensor, sizes: Sequence[int], *, average: bool = True
) -> Tensor:
    """Kernels of all channels on a grid over [-1, 1]^d.

    Distances are sums over axes, so only d·M·k differences are taken and then added for each tap.

    Args:
        places: p, (M, d).
        radii: r, (M,), positive.
        weights: w, (C, M).
        sizes: taps of each of the d axes, at least 2.
        average: whether to divide by the number of points in reach.

    Returns:
        (C, *sizes).
    """
    count, axes = places.shape
    near = places.new_ones(count, *[1] * axes)
    for axis, size in enumerate(sizes):
        line = torch.linspace(-1, 1, size, dtype=places.dtype, device=places.device)
        # (M, 1, …, k, …, 1)
        apart = (line - places[:, axis, None]).abs() / radii[:, None]
        near = near - apart.view(count, *[size if i == axis else 1 for i in range(axes)])
    hats = near.relu().flatten(1)
    if average:
        hats = hats / (hats > 0).sum(0).clamp_min(1)
    return (weights @ hats).unflatten(1, tuple(sizes))


def draw_kernel_reference(
    places: Tensor, radii: Tensor, weights: Tensor, sizes: Sequence[int], *, average: bool = True
) -> Tensor:
    """The same by the formula, one tap at a time.

    Args:
        places: p, (M, d).
        radii: r, (M,).
        weights: w, (C, M).
        sizes: taps of each axis.
        average: whether to divide by the number of points in reach.

    Returns:
        (C, *sizes).
    """
    lines = [torch.linspace(-1, 1, size, dtype=places.dtype) for size in sizes]
    taps = []
    for x in torch.cartesian_prod(*lines).view(-1, len(sizes)):
        distances = (x - places).abs().sum(1)
        reached = distances < radii
        inside = weights[:, reached] @ (1 - distances[reached] / radii[reached])
        taps.append(inside / max(int(reached.sum()), 1) if average else inside)
    return torch.stack(taps, 1).unflatten(1, tuple(sizes))


class SMPConv(nn.Module):
    """(B, C, *sizes) to the same, in one to three dimensions.

    Args:
        dim: C.
        kernel_size: taps of each axis, odd and at least 3; any length if `causal`.
        num_points: M.
        radius: of all points at the start, in units in which the kernel reaches from -1 to 1; None takes two taps.
        spread: standard deviation of the points' places at the start.
        small_kernel_size: taps per axis of the kernel of plain weights that is added in the middle; 0 for none.
        causal: whether the last tap meets the present; one axis only.
        average: whether to divide by the number of points in reach.
        bias: whether a number is added to each channel.

    Raises:
        ValueError: a size that does not fit.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: Sequence[int],
        *,
        num_points: int = 36,
        radius: float | None = None,
        spread: float = 0.2,
        small_kernel_size: int = 0,
        causal: bool = False,
        average: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        sizes = tuple(kernel_size)
        if len(sizes) not in _CONV or (causal and len(sizes) > 1):
            raise ValueError(f"kernel_size must name 1, 2 or 3 axes, and 1 if causal, got {sizes}")
        if min(sizes) < 2 or (not causal and any(size % 2 == 0 for size in sizes)):
            raise ValueError(f"kernel_size must be odd and at least 3 on each axis, or causal, got {sizes}")
        if small_kernel_size > min(sizes) or (small_kernel_size and not causal and small_kernel_size % 2 == 0):
            raise ValueError(
                f"small_kernel_size must be odd, or causal, and at most {min(sizes)}, got {small_kernel_size}"
            )
        self.kernel_size, self.causal, self.average = sizes, causal, average
        places = torch.empty(num_points, len(sizes))
        if causal:  # near the present, which is at 1
            nn.init.trunc_normal_(places, std=spread, a=-1, b=0).mul_(2).add_(1)
        else:
            nn.init.trunc_normal_(places, std=spread, a=-1, b=1)
        self.places = nn.Parameter(places)
        start = 4 / (max(sizes) - 1) if radius is None else radius
        self.radii = nn.Parameter(torch.full((num_points,), start))
        self.weights = nn.Parameter(torch.empty(dim, num_points))
        nn.init.trunc_normal_(self.weights, std=0.02)
        self.small = None
        if small_kernel_size:
            self.small = nn.Parameter(torch.empty(dim, *[small_kernel_size] * len(sizes)))
            nn.init.normal_(self.small, std=self.small[0].numel() ** -0.5)
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        with torch.no_grad():  # outputs of the inputs' variance, on the mean over channels
            drawn = draw_kernel(self.places, self.radii, self.weights, sizes, average=average)
            energy = drawn.square().sum() / dim
            self.weights.div_(torch.where(energy > 0, energy, 1).sqrt())

    def kernel(self) -> Tensor:
        """The kernel of each channel, both branches together.

        Returns:
            (C, *kernel_size).
        """
        # radii that training takes through 0 would turn hats over
        radii = self.radii.clamp(1e-3, 1)
        kernel = draw_kernel(self.places, radii, self.weights, self.kernel_size, average=self.average)
        if self.small is None:
            return kernel
        rims: list[int] = []
        for size, inner in zip(reversed(self.kernel_size), reversed(self.small.shape[1:]), strict=True):
            rims += [size - inner, 0] if self.causal else [(size - inner) // 2] * 2
        return kernel + F.pad(self.small, rims)

    def forward(self, x: Tensor) -> Tensor:
        out = global_conv(x, self.kernel(), causal=self.causal)
        return out if self.bias is None else out + self.bias.view(-1, *[1] * len(self.kernel_size))


@torch.no_grad()
def to_conv(layer: SMPConv) -> nn.Module:
    """A plain depthwise convolution with the kernel that a trained layer has drawn.

    Args:
        layer: trained, not causal.

    Returns:
        `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`.

    Raises:
        ValueError: a causal layer.
    """
    if layer.causal:
        raise ValueError("to_conv needs a kernel with a middle, got a causal layer; torch's convolutions have no past")
    kernel = layer.kernel()
    dim, *sizes = kernel.shape
    padding = tuple(size // 2 for size in sizes)
    made = _CONV[len(sizes)](dim, dim, tuple(sizes), padding=padding, groups=dim, bias=layer.bias is not None)
    made.to(kernel).weight.copy_(kernel[:, None])
    if layer.bias is not None:
        made.bias.copy_(layer.bias)
    made.train(layer.training)
    built: nn.Module = made
    return built


def _inputs(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "places": 2 * torch.rand(7, 2, generator=draw) - 1,
        "radii": 0.3 + torch.rand(7, generator=draw),
        "weights": torch.randn(3, 7, generator=draw),
        "sizes": (5, 8),
    }


METHOD = Method(
    id=204,
    name="SMPConv",
    kind="operator",
    summary="A large depthwise kernel is drawn from a few points that move while it learns.",
    paper=Paper(
        "SMPConv: Self-moving Point Representations for Continuous Convolution",
        "S. Kim and E. Park",
        2023,
        "arXiv:2304.02330",
    ),
    cases={"odd_by_even": Operator(draw_kernel, draw_kernel_reference, _inputs)},
)
