"""Parts shared by the sequence layers of this package: HiPPO, step sizes, the output of a layer, the classifier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SequenceClassifier", "as_complex", "as_real", "gated_output", "hippo", "log_steps"]


def log_steps(dim: int, least: float, most: float) -> Tensor:
    """Logarithms of step sizes, spaced evenly between two bounds.

    Args:
        dim: number of step sizes.
        least: smallest step.
        most: largest step.

    Returns:
        (dim,).
    """
    return torch.rand(dim) * (math.log(most) - math.log(least)) + math.log(least)


def as_real(x: Tensor) -> Tensor:
    """Complex numbers as pairs in the default dtype, so that a module's dtype conversions apply to them.

    Args:
        x: complex tensor, (…).

    Returns:
        (…, 2).
    """
    return torch.view_as_real(x).to(torch.get_default_dtype()).contiguous()


def as_complex(x: Tensor) -> Tensor:
    """The complex numbers stored in a parameter.

    Args:
        x: pairs, (…, 2), float32 or wider; narrower ones are widened.

    Returns:
        Complex, (…).
    """
    return torch.view_as_complex(x if x.dtype in {torch.float32, torch.float64} else x.float())


def hippo(states: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """HiPPO-LegS as normal plus low rank, diagonalised: A = V (Λ - P P*) V*, B = V B̃.

    The matrix is A_nk = -√(2n+1)·√(2k+1) for n > k, -(n+1) for n = k, 0 above; A + ppᵀ with p_n = √(n + ½) is -½ plus
    a skew-symmetric matrix, whose eigenvalues are -½ ± iω in conjugate pairs.

    Args:
        states: N, even.

    Returns:
        Λ, P and B̃ of the eigenvalues with ω > 0, largest first, complex128, (N/2,); V, (N, N/2). The other half are
        their conjugates.
    """
    n = torch.arange(states, dtype=torch.float64)
    root, low = torch.sqrt(2 * n + 1), torch.sqrt(n + 0.5)
    matrix = -torch.tril(root[:, None] * root) + torch.diag(n)
    normal = matrix + low[:, None] * low + 0.5 * torch.eye(states, dtype=torch.float64)
    frequency, vectors = torch.linalg.eigh(-1j * normal)
    # Ascending: the second half is positive.
    frequency, vectors = frequency[states // 2 :].flip(0), vectors[:, states // 2 :].flip(1)
    back = vectors.conj().T
    return (-0.5 + 1j * frequency), back @ low.to(back.dtype), back @ root.to(back.dtype), vectors


def gated_output(inputs: int, dim: int, dropout: float = 0.0) -> nn.Sequential:
    """The layers after the convolution: GELU, dropout, a position-wise linear layer to twice the width, and a GLU gate.

    Args:
        inputs: number of channels of the convolution, including heads.
        dim: C.
        dropout: dropout probability.

    Returns:
        A module, (B, inputs, L) to (B, C, L).
    """
    return nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Conv1d(inputs, 2 * dim, 1), nn.GLU(1))


class SequenceClassifier(nn.Module):
    """Classifier of an image read row by row: linear map to C channels, residual layers, mean, linear map to classes.

    Args:
        layer: function that builds one layer, (B, C, L) to (B, C, L), from C and keyword arguments.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 gives features.
        dim: C.
        depth: number of layers.
        prenorm: whether the norm precedes a layer instead of following the residual sum.
        dropout: dropout probability, inside a layer and for its output.
        **of_layer: further arguments of each layer.
    """

    def __init__(
        self,
        layer: Callable[..., nn.Module],
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        dim: int = 128,
        depth: int = 4,
        prenorm: bool = False,
        dropout: float = 0.0,
        **of_layer: Any,
    ) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.prenorm = in_channels, num_classes, prenorm
        self.encoder = nn.Linear(in_channels, dim)
        self.layers = nn.ModuleList(layer(dim, dropout=dropout, **of_layer) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # (B, in_channels, H, W) to (B, L, C); a sequence (B, in_channels, L) is accepted too
        x = self.encoder(x.flatten(2).transpose(1, 2))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            inner = norm(x) if self.prenorm else x
            out = x + self.dropout(layer(inner.transpose(1, 2)).transpose(1, 2))
            x = out if self.prenorm else norm(out)
        return self.head(x.mean(1))
