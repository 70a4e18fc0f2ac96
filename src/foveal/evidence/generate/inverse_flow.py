"""Evidence for Inverse-Flow: gradients beside the dense solve, the number of sweeps, and what sampling takes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import flowing
from foveal.generate.glow import ActNorm, Coupling
from foveal.generate.inverse_flow import InverseConv, inverse_step
from foveal.ops.inverse_conv import inverse_conv, masked_conv
from foveal.record import bound, equal, faster, kept

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

SIDE = 64
DIM = 12  # channels of RGB pictures after one squeeze
SIDES = (1, 2, 7, 16)
LOSS = 0.1  # bits per dimension that may be lost to the flow with convolutions forward


class ForwardConv(InverseConv):
    """The same layer the other way round, as flows had it before: a convolution forward and its inverse to sample."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return InverseConv.inverse(self, x), x.new_zeros(())

    def inverse(self, y: Tensor) -> Tensor:
        """Sampling: an inverse.

        Args:
            y: (B, C, H, W).

        Returns:
            x, (B, C, H, W).
        """
        return InverseConv.forward(self, y)[0]


def forward_step(dim: int, *, width: int) -> list[nn.Module]:
    """Layers of a step of the flow with convolutions forward.

    Args:
        dim: C.
        width: channels inside the coupling.

    Returns:
        ActNorm, convolution, coupling.
    """
    return [ActNorm(dim), ForwardConv(dim), Coupling(dim, width=width)]


def dense(y: Tensor, weight: Tensor) -> Tensor:
    """The inverse by one triangular solve with the whole matrix of the convolution.

    Args:
        y: output of the convolution, (B, C, H, W).
        weight: kernel, (C, C, k, k).

    Returns:
        x, (B, C, H, W).
    """
    channels, pixels = y.shape[1], y.shape[2] * y.shape[3]
    basis = torch.eye(channels * pixels, dtype=y.dtype).view(-1, *y.shape[1:])
    columns = masked_conv(basis, weight).reshape(channels, pixels, channels, pixels)
    # by pixel, then channel: the order in which the matrix is triangular
    matrix = columns.permute(3, 2, 1, 0).reshape(channels * pixels, -1)
    right = y.flatten(2).permute(2, 1, 0).flatten(0, 1)
    solved = torch.linalg.solve_triangular(matrix, right, upper=False)
    return solved.unflatten(0, (pixels, channels)).permute(2, 1, 0).reshape(y.shape)


@cached(maxsize=2)
def _results(solve: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
    """x, the gradient of y and that of the kernel, for a picture of 16×16."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64).requires_grad_()
    weight = (0.1 * torch.randn(3, 3, 3, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    x = solve(y, weight)
    outgoing = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return (x.detach(), *torch.autograd.grad(x, (y, weight), outgoing))


def _result(solve: Callable[[Tensor, Tensor], Tensor], at: int) -> Tensor:
    return _results(solve)[at]


class _Products(TorchDispatchMode):
    """Counts the matrix products of the sweeps."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.baddbmm.default
        return func(*args, **(kwargs or {}))


def sweeps(side: int) -> tuple[int, int]:
    """Sweeps that an inverse takes.

    Args:
        side: m.

    Returns:
        Matrix products forward, and backward for both gradients.
    """
    y, weight = torch.ones(1, 2, side, side, requires_grad=True), torch.zeros(2, 2, 3, 3, requires_grad=True)
    with _Products() as forward:
        x = inverse_conv(y, weight)
    with _Products() as backward:
        x.sum().backward()
    return forward.count, backward.count


def _beside_the_bound() -> float:
    return max(abs(count - (2 * side - 1)) for side in SIDES for count in sweeps(side))


def _layer(layer: Callable[..., InverseConv]) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        torch.manual_seed(0)
        made, latents = layer(DIM).eval(), torch.randn(1, DIM, SIDE, SIDE)
        return torch.no_grad()(lambda: made.inverse(latents))

    return prepare


def _sampling(step: Callable[..., Sequence[nn.Module]]) -> Callable[[], Callable[[], Tensor]]:
    def prepare() -> Callable[[], Tensor]:
        flow = flowing.drawn_flow(step, in_channels=3, depth=flowing.DEPTH, width=flowing.WIDTH)
        return lambda: flow.sample(1, side=SIDE)

    return prepare


def lost(seed: int) -> float:
    """Bits per dimension that convolutions forward save over inverses forward.

    Args:
        seed: seed of both flows.

    Returns:
        Theirs minus ours; above 0 where the inverse is better.
    """
    return flowing.bits(forward_step, seed) - flowing.bits(inverse_step, seed)


def _first_and_back() -> Tensor:
    flow = flowing.drawn_flow(inverse_step)
    with torch.no_grad():
        return flow.inverse(flow(_pictures())[0])


def _pictures() -> Tensor:
    return torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)) - 0.5


CLAIMS = (
    *(
        equal(
            f"{words} equals the dense triangular solve's.",
            ours=partial(_result, inverse_conv, at),
            theirs=partial(_result, dense, at),
            tolerance=1e-8,
            clause=1,
        )
        for at, words in enumerate(("The inverse", "Its gradient to the input", "Its gradient to the kernel"))
    ),
    bound(
        "Forward and backward take 2m - 1 sweeps each on m×m pixels, one matrix product a sweep.",
        paper="O(√n) for n pixels",
        value=_beside_the_bound,
        at_most=0.0,
        unit="sweeps more or fewer",
        clause=1,
    ),
    faster(
        f"A layer samples by convolution in a fifth of the time of the inverse, {DIM} channels of {SIDE}×{SIDE}.",
        paper="significantly improved sampling times",
        ours=_layer(InverseConv),
        theirs=_layer(ForwardConv),
        at_least=5.0,
        clause=2,
    ),
    faster(
        f"A whole flow samples RGB pictures of {SIDE}×{SIDE} in half the time of one with convolutions forward.",
        paper="significantly improved sampling times",
        ours=_sampling(inverse_step),
        theirs=_sampling(forward_step),
        at_least=2.0,
        beyond="sampling times of a flow, couplings and all",
    ),
    kept(
        f"It needs at most {LOSS} bits per dimension more than the flow with convolutions forward.",
        paper="similar bits per dimension",
        quality=lost,
        at_least=-LOSS,
        unit="bits per dimension",
        data=flowing.DATA,
        needs=flowing.NEEDS,
        beyond="similar bits per dimension",
    ),
    equal(
        "What the flow says of its determinant is the logarithm of the Jacobian's.",
        ours=partial(flowing.log_dets, inverse_step, dense=False),
        theirs=partial(flowing.log_dets, inverse_step, dense=True),
        tolerance=1e-10,
        beyond="the determinant is exact",
    ),
    equal(
        "From pictures to latents and back in single precision.",
        ours=_first_and_back,
        theirs=_pictures,
        beyond="sampling inverts the training pass",
    ),
)
