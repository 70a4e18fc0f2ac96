"""SGConv: a global kernel made of a few short ones, each stretched to twice the length of the one before and weaker.

*Source*: Y. Li et al., "What Makes Convolutional Models Great on Long Sequence Modeling?", ICLR 2023
(arXiv:2210.09298), section 3.2. With d weights w_i for each of S = log₂(L/d) + 1 scales and decay α = ½:

    k_i = αⁱ · Upsample(w_i, to d·2^max(i-1, 0) places),   k = [k_0, k_1, …, k_{S-1}] / Z,   y = k ∗ u + D ∘ u

so that the kernel has d·log₂(2L/d) parameters a channel. Upsampling is linear; Z is the norm of each channel's kernel
at the start, kept. Two-sided where asked for, with a second kernel for what comes after; `heads` kernels for each
channel.

*Differs from the paper*: Z is computed when the layer is built rather than in its first forward pass; the layer ends in
a gate, as the S4 layer that it replaces.

*Provenance*: written from the paper; the order of the operations and the norm looked up in the authors' code.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.models.sequence._layers import SequenceClassifier, gated_output
from foveal.models.sequence._rivals import training_step
from foveal.ops.long_conv import long_conv
from foveal.record import Method, Paper, equal, faster, kept, smaller

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SGConv", "multi_scale_kernel", "scales", "sgconv_classifier"]


def scales(length: int, size: int) -> int:
    """How many short kernels reach over a sequence.

    Args:
        length: L.
        size: d.

    Returns:
        The smallest S with d·2^(S-1) at least L, at least 1.
    """
    return 1 + max(0, math.ceil(math.log2(length / size)))


def multi_scale_kernel(weights: Sequence[Tensor], decay: float = 0.5) -> Tensor:
    """The short kernels one after the other, stretched and weakened, not yet normalised.

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
        max_length: places that the kernel reaches over; what lies further away has no weight.
        kernel_size: d.
        decay: α.
        heads: kernels for each channel.
        bidirectional: whether what comes after a place counts too.
        dropout: probability.

    Raises:
        ValueError: a kernel below one weight, or a decay outside (0, 1].
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
            (H, C, d·2^(S-1)); two-sided, those of what comes after are the second half of 2·H.
        """
        return multi_scale_kernel(list(self.weights), self.decay) / self.norm

    def forward(self, x: Tensor) -> Tensor:
        kernel, after = self.kernel(), None
        if self.bidirectional:
            kernel, after = kernel.chunk(2)
        # (B, H, C, L) to (B, H·C, L)
        return self.out(long_conv(x, kernel, self.skip, reverse=after).flatten(1, 2))


def sgconv_classifier(
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    dim: int = 128,
    depth: int = 4,
    max_length: int = 1024,
    kernel_size: int = 64,
    decay: float = 0.5,
    heads: int = 1,
    bidirectional: bool = False,
    prenorm: bool = False,
    dropout: float = 0.0,
) -> SequenceClassifier:
    """Residual SGConv layers over a picture read row by row.

    Args:
        in_channels: of the picture.
        num_classes: 0 gives features.
        dim: C.
        depth: layers.
        max_length: places that the kernels reach over.
        kernel_size: d.
        decay: α.
        heads: kernels for each channel.
        bidirectional: whether what comes after a place counts too.
        prenorm: whether the norm stands before a layer.
        dropout: probability.

    Returns:
        The network, (B, in_channels, H, W) to (B, num_classes).
    """
    layers = [
        SGConv(
            dim,
            max_length=max_length,
            kernel_size=kernel_size,
            decay=decay,
            heads=heads,
            bidirectional=bidirectional,
            dropout=dropout,
        )
        for _ in range(depth)
    ]
    return SequenceClassifier(
        layers, dim, in_channels=in_channels, num_classes=num_classes, prenorm=prenorm, dropout=dropout
    )


def _weights(length: int, size: int = 64) -> int:
    """Parameters of one channel's kernel."""
    return sum(w.numel() for w in SGConv(1, max_length=length, kernel_size=size).weights)


def _growth() -> Tensor:
    counts = [_weights(1024 * 2**i) for i in range(7)]
    return torch.tensor(counts[1:]) - torch.tensor(counts[:-1])


def _applied(backend: str) -> Tensor:
    torch.manual_seed(0)
    layer, x = SGConv(4, max_length=1500, heads=2).double(), torch.randn(2, 4, 1500, dtype=torch.float64)
    with torch.inference_mode():
        return long_conv(x, layer.kernel(), layer.skip, backend=backend)


def _norms() -> list[float]:
    """Norm of what each scale adds to the kernel of a new layer, mean over 256 channels, a place."""
    torch.manual_seed(0)
    layer = SGConv(256, max_length=4096)
    parts = layer.kernel().detach()[0].split([64, *(64 * 2 ** max(0, i - 1) for i in range(1, 7))], 1)
    return [float(part.norm(dim=1).mean()) / math.sqrt(part.shape[1]) for part in parts]


def _small() -> nn.Module:
    return sgconv_classifier(in_channels=1, dim=32, depth=2, max_length=256, kernel_size=16, prenorm=True)


@lru_cache(maxsize=4)
def _digits(seed: int) -> float:
    """Accuracy on the digits' test pictures, percent."""
    from foveal.models.sequence._digits import digits
    from foveal.train.classify import accuracy, train_classifier

    model = train_classifier(_small, steps=800, seed=seed, data=digits("train"), flip=False, lr=1e-2, weight_decay=0.01)
    return accuracy(model, digits("test"))


def _against_s4d(seed: int) -> float:
    from foveal.models.sequence import s4d

    return _digits(seed) - s4d._digits("lin", seed)


def _s4d() -> nn.Module:
    from foveal.models.sequence.s4d import s4d_classifier

    return s4d_classifier(in_channels=1, dim=32, depth=2, states=32, prenorm=True)


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
    claims=(
        equal(
            "Each doubling of the length from 1K to 64K adds d = 64 weights a channel.",
            paper="O(log L)",
            ours=_growth,
            theirs=lambda: torch.full((6,), 64),
            tolerance=0,
        ),
        equal(
            "Applied by FFT it equals the direct causal sum.",
            ours=lambda: _applied("eager"),
            theirs=lambda: _applied("reference"),
            tolerance=1e-10,
        ),
        smaller(
            "Each scale's weights are smaller than those of the scale before it, a place: the largest of the ratios.",
            paper="decays by ½",
            ours=lambda: max(b / a for a, b in itertools.pairwise(_norms())),
            theirs=lambda: 1.0,
            at_least=1.1,
        ),
        kept(
            "On sequential digits it is at most a point worse than S4D after as many steps.",
            paper="87.17% against 86.09% of S4 on average over LRA",
            quality=_against_s4d,
            at_least=-1.0,
            unit="points",
            data="1,000 digits drawn in 17 fonts, turned, slanted, scaled and noisy, 16×16, read as 256 places",
            needs=("minutes",),
        ),
        faster(
            "A training step of that network takes less time than S4D's.",
            paper="1.2 to 2.1 times faster than S4",
            ours=lambda: training_step(_small, 32, 1, 16, 16),
            theirs=lambda: training_step(_s4d, 32, 1, 16, 16),
        ),
    ),
)
