"""FInC Flow: a k×k convolution of a flow whose determinant is 1 and whose inverse is swept over anti-diagonals.

*Source*: A. Kallappa, S. Nagar, G. Varma, "FInC Flow: Fast and Invertible k×k Convolutions for Normalizing Flows",
VISAPP 2023 (arXiv:2301.09266), sections 3 and 4. A convolution padded above and on the left only, whose last tap is
unit lower triangular in the channels, is a unit lower triangular matrix of the pixels,

    y_ij = Σ_ab W_ab x_(i-a)(j-b),      log|det ∂y/∂x| = 0

and its inverse takes 2n - 1 sweeps over the anti-diagonals of n×n pixels (`foveal.ops.inverse_conv`). So that all
neighbours are seen, the four quarters of the channels are padded at four corners of the picture. A step of the flow is
such a unit, ActNorm, a 1×1 convolution and a coupling; x: (B, C, H, W), C a multiple of 4, W: (C, C/4, k, k).

*Differs from the paper*: the four quarters are inverted in the same sweeps, as four groups; the masked taps are never
read, where the authors' code sets their gradients to 0.

*Provenance*: written from the abstract and the authors' code, https://github.com/aditya-v-kallappa/FInCFlow, of which
nothing is copied. `inverse_conv` equals its `solve` to 1e-6 in single precision.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.generate.glow import Flow, glow_step
from foveal.ops.inverse_conv import inverse_conv, masked_conv
from foveal.record import Method, Paper

__all__ = ["FInCUnit", "finc_flow", "finc_inverse", "finc_step", "turned"]

QUARTERS = (
    (),
    (3,),
    (2,),
    (2, 3),
)  # axes that are turned round: padding top left, top right, bottom left, bottom right


def turned(x: Tensor) -> Tensor:
    """Each quarter of the channels turned so that the corner where it is padded is the top left one.

    Args:
        x: (B, C, H, W), C a multiple of 4.

    Returns:
        The same shape; turned twice it is x.
    """
    return torch.cat([quarter.flip(axes) for quarter, axes in zip(x.chunk(4, 1), QUARTERS, strict=True)], 1)


def finc_inverse(y: Tensor, weight: Tensor, *, backend: str = "auto") -> Tensor:
    """Input of a unit from its output.

    Args:
        y: (B, C, H, W), C a multiple of 4.
        weight: kernels of the quarters, (C, C/4, k, k), as if all were padded at the top left.
        backend: of `inverse_conv`.

    Returns:
        x, (B, C, H, W).
    """
    return turned(inverse_conv(turned(y), weight, groups=4, backend=backend))


class FInCUnit(nn.Module):
    """Four masked convolutions of the quarters of the channels, padded at four corners.

    Args:
        dim: C, a multiple of 4.
        kernel_size: k.

    Raises:
        ValueError: channels that cannot be quartered.
    """

    def __init__(self, dim: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4, got {dim}; squeeze the picture first")
        self.weight = nn.Parameter(0.05 * torch.randn(dim, dim // 4, kernel_size, kernel_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return turned(masked_conv(turned(x), self.weight, groups=4)), x.new_zeros(())

    def inverse(self, y: Tensor) -> Tensor:
        """The way back.

        Args:
            y: (B, C, H, W).

        Returns:
            x, (B, C, H, W).
        """
        return finc_inverse(y, self.weight)


def finc_step(dim: int, *, width: int, kernel_size: int = 3) -> list[nn.Module]:
    """Layers of one step.

    Args:
        dim: C, a multiple of 4.
        width: channels inside the coupling.
        kernel_size: k.

    Returns:
        The unit, then the layers of a step of Glow.
    """
    return [FInCUnit(dim, kernel_size=kernel_size), *glow_step(dim, width=width)]


finc_flow = partial(Flow, step=finc_step, levels=2, depth=16, width=512)  # the authors' sizes for MNIST


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "y": torch.randn(2, 8, 4, 5, generator=generator),
        "weight": 0.3 * torch.randn(8, 2, 3, 3, generator=generator),
    }


METHOD = Method(
    id=106,
    name="FInC Flow",
    kind="operator",
    summary="A flow's convolution padded at a corner has determinant 1 and is inverted diagonal by diagonal.",
    paper=Paper(
        "FInC Flow: Fast and Invertible k×k Convolutions for Normalizing Flows",
        "A. Kallappa et al.",
        2023,
        "arXiv:2301.09266",
    ),
    cases={"quarters": Operator(finc_inverse, partial(finc_inverse, backend="reference"), _inputs)},
)
