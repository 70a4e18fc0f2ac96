"""SGConv: a global kernel built from a few short ones, each stretched to twice the length of the previous and damped.

*Source*: Y. Li et al., "What Makes Convolutional Models Great on Long Sequence Modeling?", ICLR 2023
(arXiv:2210.09298), section 3.2. With d weights w_i for each of S = log₂(L/d) + 1 scales and decay α = ½:

    k_i = αⁱ · Upsample(w_i, to d·2^max(i-1, 0) places),   k = [k_0, k_1, …, k_{S-1}] / Z,   y = k ∗ u + D ∘ u

so that the kernel has d·log₂(2L/d) parameters per channel. Upsampling is linear; Z is the norm of each channel's
initial kernel and stays fixed. Optionally bidirectional, with a second kernel for the following positions; `heads`
kernels per channel.

*Differs from the paper*: Z is computed when the layer is built rather than in its first forward pass; the layer ends in
a gate, like the S4 layer that it replaces.

*Provenance*: written from the paper; the order of operations and the norm were looked up in the authors' code.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.models.sequence._layers import SequenceClassifier, gated_output
from foveal.ops.long_conv import long_conv
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SGConv", "multi_scale_kernel", "scales", "sgconv_classifier"]


def scales(length: int, size: int) -> int:
    """Number of short kernels that cover a sequence.

    Args:
        length: L.
        size: d.

    Returns:
        The smallest S with d·2^(S-1) at least L, at least 1.
    """
    return 1 + max(0, math.ceil(math.log2(length / size)))


def multi_scale_kernel(weights: Sequence[Tensor], decay: float = 0.5) -> Tensor:
    """Concatenate the short kernels, stretched and damped, without normalisation.

    Args:
        weights: w_i, (H, C, d) each.
        decay: α, in (0, 1].

    Returns:
        (H, C, d·2^(S-1)).
    """
    stretched = [
        F.interpolate(w, scale_factor=2 ** max(0, i - 1), mode="linear") * decay**i for i, w in enumerate(weights)
    ]
    return torch.cat(stretched, -1)


class SGConv(nn.Module):
    """Convolution with a multi-scale kernel, GELU, a position-wise map and a gate; (B, C, L) to (B, C, L).

    Args:
        dim: C.
        max_length: number of positions that the kernel covers; those further away have no weight.
        kernel_size: d.
        decay: α.
        heads: number of kernels per channel.
        bidirectional: whether there is also a kernel for the following positions.
        dropout: dropout probability.

    Raises:
        ValueError: if `kernel_size` is below 1 or the decay outside (0, 1].
    """

    norm: Tensor

    def __init__(
        self,
        dim: int,
        *,
        max_length: int = 1024,
        kernel_size: int = 64,
        decay: float = 0.5,
        heads: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {decay}")
        self.decay, self.heads, self.bidirectional = decay, heads, bidirectional
        sides = 2 if bidirectional else 1
        self.weights = nn.ParameterList(
            torch.randn(sides * heads, dim, kernel_size) for _ in range(scales(max_length, kernel_size))
        )
        self.skip = nn.Parameter(torch.randn(heads, dim))
        self.out = gated_output(heads * dim, dim, dropout)
        with torch.no_grad():
            self.register_buffer("norm", multi_scale_kernel(list(self.weights), decay).norm(dim=-1, keepdim=True))

    def kernel(self) -> Tensor:
        """The convolution's weights.

        Returns:
            (H, C, d·2^(S-1)), or with 2·H if bidirectional, the second half for the following positions.
        """
        return multi_scale_kernel(list(self.weights), self.decay) / self.norm

    def forward(self, x: Tensor) -> Tensor:
        kernel, after = self.kernel(), None
        if self.bidirectional:
            kernel, after = kernel.chunk(2)
        # (B, H, C, L) to (B, H·C, L)
        return self.out(long_conv(x, kernel, self.skip, reverse=after).flatten(1, 2))


sgconv_classifier = partial(SequenceClassifier, SGConv)  # also takes SGConv's arguments

METHOD = Method(
    id=312,
    name="SGConv",
    kind="model",
    summary="A convolution kernel as long as the sequence from a few short ones, stretched and decaying.",
    paper=Paper(
        "What Makes Convolutional Models Great on Long Sequence Modeling?", "Y. Li et al.", 2023, "arXiv:2210.09298"
    ),
    models={"sgconv_classifier": sgconv_classifier},
    cases={"sgconv_classifier": {"dim": 6, "depth": 1, "max_length": 64, "kernel_size": 4, "bidirectional": True}},
)
