"""Long convolutions with directly learned, squashed kernels; FlashButterfly computes them with butterfly matrices.

*Source*: D. Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", ICML 2023
(arXiv:2302.06646), sections 3.1 to 3.3. The kernel is as long as the sequence; its weights are squashed in each forward
pass, and some are dropped in training:

    k̄ = dropout( sign(k) ∘ max(|k| - λ, 0) ),   y = k̄ ∗ u + D ∘ u

Initial weights are normal, or normal with a decay that differs between channels c of C:

    k_l = 0.02 · normal · exp(-(l/L) · (C/2)^(c/C))

Learned butterflies: the small matrices of both transforms are parameters, initialised as Fourier's; the convolution
costs the same and the network has more parameters. The transforms are those of `foveal.ops.long_conv`.

*Differs from the paper*: the fused GPU kernel is a Triton kernel of order 2 for sequences of up to 2K, without the
three passes for longer ones; on a CPU butterflies are torch matrix products, and the default is torch.fft everywhere.
Learned butterflies use two equal factors instead of factors of 16.

*Provenance*: written from the paper; initial values and the order of operations were looked up in the authors' code.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.models.sequence._layers import SequenceClassifier, gated_output
from foveal.ops.long_conv import long_conv
from foveal.ops.long_conv.butterfly import long_conv_butterfly, sizes
from foveal.record import Method, Paper

__all__ = ["LongConv", "longconv_classifier", "squash", "starting_kernel"]

INITS = ("random", "double_exp")


def squash(kernel: Tensor, threshold: float) -> Tensor:
    """Soft threshold: shrink weights towards 0 by λ; those below λ become 0.

    Args:
        kernel: weights, any shape.
        threshold: λ, at least 0.

    Returns:
        sign(k) ∘ max(|k| - λ, 0).
    """
    return F.softshrink(kernel, threshold)


def starting_kernel(init: str, heads: int, dim: int, length: int) -> Tensor:
    """Initial weights.

    Args:
        init: "random" or "double_exp".
        heads: H.
        dim: C.
        length: L.

    Returns:
        (H, C, L).

    Raises:
        ValueError: if the initialisation is unknown.
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    if init == "random":
        return 0.002 * torch.randn(heads, dim, length)
    rate = max(1, dim // 2) ** (torch.arange(dim) / dim)
    return 0.02 * torch.randn(heads, dim, length) * torch.exp(-rate[:, None] * torch.arange(length) / length)


class LongConv(nn.Module):
    """Convolution with a squashed kernel, GELU, a position-wise map and a gate; (B, C, L) to (B, C, L).

    Args:
        dim: C.
        max_length: length of the kernel; positions further away have no weight.
        heads: number of kernels per channel.
        threshold: λ of the squash.
        kernel_dropout: probability of dropping a kernel weight in training.
        init: "random" or "double_exp".
        bidirectional: whether there is also a kernel for the following positions.
        learned: whether the butterfly matrices are learned; sequences must then have length `max_length`.
        dropout: dropout probability.
        backend: backend of `foveal.ops.long_conv`.

    Raises:
        ValueError: if the initialisation is unknown, the threshold is below 0, or both `learned` and `bidirectional`
            are set.
    """

    def __init__(
        self,
        dim: int,
        *,
        max_length: int = 1024,
        heads: int = 1,
        threshold: float = 0.003,
        kernel_dropout: float = 0.2,
        init: str = "double_exp",
        bidirectional: bool = False,
        learned: bool = False,
        dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if threshold < 0:
            raise ValueError(f"threshold must be at least 0, got {threshold}")
        self.threshold, self.bidirectional, self.backend = threshold, bidirectional, backend
        self.weights = nn.Parameter(starting_kernel(init, heads * (2 if bidirectional else 1), dim, max_length))
        self.kernel_dropout = nn.Dropout(kernel_dropout)
        self.skip = nn.Parameter(torch.randn(heads, dim))
        self.out = gated_output(heads * dim, dim, dropout)
        self.matrices = nn.ParameterDict()
        if learned and bidirectional:
            raise ValueError("learned butterflies are causal; set only one of learned and bidirectional")
        for n in set(sizes(2 * max_length - 1, 2)) if learned else ():
            angle = -2 * torch.pi / n * (torch.arange(n)[:, None] * torch.arange(n) % n)
            self.matrices[str(n)] = nn.Parameter(torch.stack([angle.cos(), angle.sin()]))

    def kernel(self) -> Tensor:
        """The convolution's weights.

        Returns:
            (H, C, L), or (2·H, C, L) if bidirectional, the second half for the following positions.
        """
        return self.kernel_dropout(squash(self.weights, self.threshold))

    def _matrix(self, n: int) -> tuple[Tensor, Tensor]:
        cos, sin = self.matrices[str(n)]
        return cos, sin

    def forward(self, x: Tensor) -> Tensor:
        kernel, after = self.kernel(), None
        if self.bidirectional:
            kernel, after = kernel.chunk(2)
        if self.matrices:
            if x.shape[2] != kernel.shape[2]:
                raise ValueError(
                    f"learned butterflies take sequences of {kernel.shape[2]}, got {x.shape[2]}; "
                    f"build the layer with max_length={x.shape[2]}"
                )
            y = long_conv_butterfly(x, kernel, self.skip, None, order=2, matrix=self._matrix)
        else:
            y = long_conv(x, kernel, self.skip, reverse=after, backend=self.backend)
        # (B, H, C, L) to (B, H·C, L)
        return self.out(y.flatten(1, 2))


longconv_classifier = partial(SequenceClassifier, LongConv)  # also takes LongConv's arguments

METHOD = Method(
    id=273,
    name="FlashButterfly",
    kind="model",
    summary="Convolution kernels as long as the sequence, learned directly and squashed, by butterfly matrices.",
    paper=Paper(
        "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", "D. Fu et al.", 2023, "arXiv:2302.06646"
    ),
    models={"longconv_classifier": longconv_classifier},
    cases={"longconv_classifier": {"dim": 6, "depth": 1, "max_length": 192, "heads": 2, "learned": True}},
)
