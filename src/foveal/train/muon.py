"""Muon: gradient steps whose matrix is orthogonalised before it is applied.

*Source*: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the quintic Newton–Schulz
coefficients (3.4445, -4.7750, 2.0315) are the authors'. A kernel (C', C, k, k) is taken as the matrix (C', C·k²).

`torch.optim.Muon` takes two-dimensional parameters only and refuses convolutions, hence this one.
docs/train.md compares it with Adam on a small super-resolution network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Muon", "orthogonalise"]


def orthogonalise(matrix: Tensor, *, steps: int = 5) -> Tensor:
    """Push all singular values of a matrix towards 1, approximately.

    Args:
        matrix: (m, n), or several of one shape, (..., m, n).
        steps: number of Newton–Schulz iterations; five bring the singular values to about 0.7 to 1.2.

    Returns:
        Matrices of the same shape, with the same singular vectors.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, then `orthogonalise`, for parameters of two or more dimensions.

    Args:
        params: matrices and convolution kernels.
        lr: learning rate; about 0.01 where Adam takes 0.002.
        momentum: share of the previous direction that is kept, in [0, 1).

    Raises:
        ValueError: a parameter with fewer than two dimensions.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.01, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2:
                    raise ValueError(f"Muon takes matrices and kernels, got a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update.

        Args:
            closure: None; present for the optimiser interface only.
        """
        del closure
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(p.grad)
                matrix = p.grad.add(state["momentum"], alpha=group["momentum"]).flatten(1)
                alike.setdefault((matrix.shape[0], matrix.shape[1]), []).append((p, matrix))
            # All parameters of one shape at once: small products cost more in calls than in arithmetic.
            for (rows, columns), found in alike.items():
                made = orthogonalise(torch.stack([matrix for _, matrix in found]))
                stretch = max(1.0, rows / columns) ** 0.5
                for (p, _), direction in zip(found, made, strict=True):
                    p.add_(direction.view_as(p), alpha=-group["lr"] * stretch)
