"""Inverse-Flow: the inverse of a convolution on the way from picture to latents, so that sampling is a convolution.

*Source*: S. Nagar, G. Varma, "Parallel Backpropagation for Inverse of a Convolution with Application to Normalizing
Flows", AISTATS 2025 (arXiv:2410.14634). With M for a convolution padded at a corner whose last tap is unit lower
triangular in the channels (see `foveal.ops.inverse_conv`), a layer of the flow is

    z = M⁻¹ x,      log|det ∂z/∂x| = 0,      x = M z when sampling

and training needs the gradients of the inverse. For g = ∂L/∂z on m×m pixels

    ∂L/∂x = M⁻ᵀ g,      ∂L/∂W_ab = -Σ_ij (∂L/∂x)_ij z_(i-a)(j-b)ᵀ

take 2m - 1 sweeps over anti-diagonals, where elimination takes the cube of the number of pixels. Shapes: x and z
(B, C, H, W), W (C, C, k, k).

*Differs from the paper*: the gradient of the kernel is an ordinary correlation of z with ∂L/∂x, which is ready by then,
where the paper sweeps once more for each tap. All steps of `inverse_flow` are padded at one corner, as in the authors'
model for MNIST; the splines between its layers are not here.

*Provenance*: written from the abstract and the authors' code, https://github.com/girish-lab/Inverse-Flow, whose kernels
need CUDA and were read only.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.generate.glow import ActNorm, Coupling, Flow
from foveal.ops.inverse_conv import inverse_conv, masked_conv
from foveal.record import Method, Paper

__all__ = ["CORNERS", "InverseConv", "inverse_flow", "inverse_step"]

CORNERS = {"top left": (), "top right": (3,), "bottom left": (2,), "bottom right": (2, 3)}  # → axes turned round


class InverseConv(nn.Module):
    """Layer of a flow that inverts a masked convolution forward and convolves backward.

    Args:
        dim: C.
        kernel_size: k.
        corner: corner where the convolution is padded, one of `CORNERS`.

    Raises:
        ValueError: an unknown corner.
    """

    def __init__(self, dim: int, *, kernel_size: int = 3, corner: str = "top left") -> None:
        super().__init__()
        if corner not in CORNERS:
            raise ValueError(f"corner must be one of {', '.join(CORNERS)}, got {corner!r}")
        self.axes = CORNERS[corner]
        self.weight = nn.Parameter(0.01 * torch.randn(dim, dim, kernel_size, kernel_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return inverse_conv(x.flip(self.axes), self.weight).flip(self.axes), x.new_zeros(())

    def inverse(self, y: Tensor) -> Tensor:
        """Sampling: a convolution.

        Args:
            y: latents z, (B, C, H, W).

        Returns:
            x, (B, C, H, W).
        """
        return masked_conv(y.flip(self.axes), self.weight).flip(self.axes)


def inverse_step(dim: int, *, width: int, kernel_size: int = 3, corner: str = "top left") -> list[nn.Module]:
    """Layers of one step.

    Args:
        dim: C, even.
        width: channels inside the coupling.
        kernel_size: k.
        corner: corner where the convolution is padded.

    Returns:
        ActNorm, inverse convolution, coupling.
    """
    return [ActNorm(dim), InverseConv(dim, kernel_size=kernel_size, corner=corner), Coupling(dim, width=width)]


inverse_flow = partial(Flow, step=inverse_step, levels=2, depth=16, width=512)  # the authors' sizes for MNIST


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "y": torch.randn(2, 3, 4, 5, generator=generator),
        "weight": 0.3 * torch.randn(3, 3, 3, 3, generator=generator),
    }


METHOD = Method(
    id=171,
    name="Inverse-Flow",
    kind="operator",
    summary="A flow inverts a convolution in training, with gradients by diagonal sweeps, and samples by convolving.",
    paper=Paper(
        "Parallel Backpropagation for Inverse of a Convolution with Application to Normalizing Flows",
        "S. Nagar, G. Varma",
        2025,
        "arXiv:2410.14634",
    ),
    cases={"inverse": Operator(inverse_conv, partial(inverse_conv, backend="reference"), _inputs)},
)
