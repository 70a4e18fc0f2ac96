"""Inf-CL: the contrastive loss InfoNCE tile by tile, so that no matrix of all similarities is ever held.

*Source*: Z. Cheng, H. Zhang et al., "Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive
Loss", 2024 (arXiv:2410.17243), sections 3.1 and 3.2; the authors' code is at github.com/DAMO-NLP-SG/Inf-CLIP. For N
pairs of features q and k, (N, D), and a scale s, an inverse temperature:

    S = s q kᵀ                                                        (N, N)
    rows     ℓ_i = log Σ_j exp S_ij - S_ii                            each q finds its k
    columns  ℓ'_j = log Σ_i exp S_ij - S_jj                           each k finds its q
    loss     mean ℓ, or (mean ℓ + mean ℓ') / 2 in both directions

Forward goes over tiles of S and adds each to the log-sums of its rows and columns; those are kept, (N,) each. Backward
computes each tile again: P_ij = a_i exp(S_ij - lse_i) + b_j exp(S_ij - lse'_j) and adds s P k to the gradient of q and
s Pᵀ q to that of k, less the positive pairs.

W processes hold n of the N = W n pairs each. The k travel in a ring, the next ones while tiles of these are computed,
and the log-sums of their columns, or their gradients, travel with them and are home after W steps. Each process returns
the mean over its own pairs. Gradients of q and k are those of the sum over all processes, that of s a process's share
of it; so data parallelism, which averages the gradients of weights, gets the loss of all N pairs.

*Differs from the paper*: tiles are matrix products of PyTorch instead of one fused Triton kernel; both directions are
computed from the same tiles instead of by two passes. The gradient of s is not summed over the processes here, as data
parallelism does that.
*Provenance*: written from the paper; the ring was looked up in the authors' code. Over two processes its ring of plain
PyTorch, `cal_ring_loss`, gives the same loss, and gradients that differ by 5e-7 of the largest in float32 (that of s
once summed); its Triton kernels need a GPU and were not run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from foveal.cases import Objective
from foveal.ops.experts.processes import place
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.distributed import ProcessGroup

__all__ = ["InfCL", "full_info_nce", "inf_cl_loss"]


def full_info_nce(q: Tensor, k: Tensor, *, scale: Tensor | float = 1.0, symmetric: bool = True) -> Tensor:
    """The loss from the whole matrix.

    Args:
        q: features, (N, D).
        k: features of the same things, (N, D).
        scale: s.
        symmetric: whether to take both directions, or rows alone.

    Returns:
        Loss, ().
    """
    similarities = (scale * q) @ k.mT
    own = torch.arange(len(q), device=q.device)
    rows = F.cross_entropy(similarities, own)
    return (rows + F.cross_entropy(similarities.mT, own)) / 2 if symmetric else rows


class _Ring:
    """The neighbours of this process: what it sends goes to the next one, what it gets is from the one before."""

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group
        self.rank, self.world = place(group)

    def started(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        """Send tensors on; the result waits for those that come and returns them."""
        if self.world == 1:
            return lambda: list(tensors)
        assert self.group is not None
        to, of = (dist.get_global_rank(self.group, (self.rank + step) % self.world) for step in (1, -1))
        sent, came = [t.contiguous() for t in tensors], [torch.empty_like(t).contiguous() for t in tensors]
        operations = [dist.P2POp(dist.isend, t, to, self.group) for t in sent]
        operations += [dist.P2POp(dist.irecv, t, of, self.group) for t in came]
        waiting = dist.batch_isend_irecv(operations)

        def finished() -> list[Tensor]:
            for request in waiting:
                request.wait()
            sent.clear()
            return came

        return finished

    def blocks(self, k: Tensor) -> Iterator[Tensor]:
        """The k of all processes, own ones first; each is sent on while it is used."""
        for step in range(self.world):
            following = self.started(k) if step < self.world - 1 else None
            yield k
            if following is not None:
                (k,) = following()


def _tiles(q: Tensor, k: Tensor, scale: Tensor, tile: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and tiles of S."""
    for top in range(0, len(q), tile):
        rows = slice(top, top + tile)
        for left in range(0, len(k), tile):
            columns = slice(left, left + tile)
            yield rows, columns, (q[rows] @ k[columns].mT).mul_(scale)


class _InfCL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, scale: Tensor, symmetric: bool, tile: int, group: ProcessGroup | None
    ) -> Tensor:
        ring = _Ring(group)
        row_sums = q.new_full((len(q),), -math.inf)
        column_sums = row_sums.clone()  # of the columns that are here
        for block in ring.blocks(k):
            for rows, columns, similarities in _tiles(q, block, scale, tile):
                row_sums[rows] = torch.logaddexp(row_sums[rows], similarities.logsumexp(1))
                if symmetric:
                    column_sums[columns] = torch.logaddexp(column_sums[columns], similarities.logsumexp(0))
            (column_sums,) = ring.started(column_sums)()
        ctx.save_for_backward(q, k, scale, row_sums, column_sums)
        ctx.ring, ctx.symmetric, ctx.tile = ring, symmetric, tile
        positives = torch.einsum("nd,nd->n", q, k) * scale
        loss = (row_sums - positives).mean()
        return (loss + (column_sums - positives).mean()) / 2 if symmetric else loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, scale, row_sums, column_sums = ctx.saved_tensors
        ring, symmetric = ctx.ring, ctx.symmetric
        share = gradient / len(q) / (2 if symmetric else 1)
        of_q, of_k = torch.zeros_like(q), torch.zeros_like(k)
        column_shares = share.expand(len(k)).contiguous()
        for block in ring.blocks(k):
            for rows, columns, similarities in _tiles(q, block, scale, ctx.tile):
                p = (similarities - row_sums[rows, None]).exp_().mul_(share)
                if symmetric:
                    p.addcmul_(similarities.sub_(column_sums[columns]).exp_(), column_shares[columns])
                of_q[rows].addmm_(p, block[columns])
                of_k[columns].addmm_(p.mT, q[rows])
            of_k, column_sums, column_shares = ring.started(of_k, column_sums, column_shares)()
        positive = -share * (2 if symmetric else 1)
        of_q.addcmul_(k, positive)
        of_k.addcmul_(q, positive)
        of_scale = torch.dot(q.flatten(), of_q.flatten()).view_as(scale) if ctx.needs_input_grad[2] else None
        return of_q.mul_(scale), of_k.mul_(scale), of_scale, None, None, None


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def inf_cl_loss(
    q: Tensor,
    k: Tensor,
    *,
    scale: Tensor | float = 1.0,
    symmetric: bool = True,
    tile: int = 1024,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The loss tile by tile; half types are computed in float32.

    Args:
        q: features of this process, (n, D), normalised or not; n is the same in all processes.
        k: features of the same things, (n, D).
        scale: s, above 0; a tensor of one element may learn.
        symmetric: whether to take both directions, or rows alone.
        tile: rows and columns of a tile.
        group: processes that share the batch; None for one.

    Returns:
        Mean loss of this process's pairs, ().

    Raises:
        ValueError: features that are no pairs, a tile below 1, or a scale of several numbers.
    """
    if q.ndim != 2 or q.shape != k.shape or not len(q):
        raise ValueError(f"q and k must be pairs, (n, D) both with n ≥ 1, got {tuple(q.shape)} and {tuple(k.shape)}")
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}; 1024 fits the caches of most processors")
    if isinstance(scale, Tensor) and scale.numel() != 1:
        raise ValueError(f"scale must be one number, got a tensor of shape {tuple(scale.shape)}")
    with torch.autocast(q.device.type, enabled=False):
        q, k = _precise(q), _precise(k)
        s = torch.as_tensor(scale, dtype=q.dtype, device=q.device)
        loss: Tensor = _InfCL.apply(q, k, s, symmetric, tile, group)  # type: ignore[no-untyped-call]
    return loss


class InfCL(nn.Module):
    """The loss of features that it normalises, at a temperature that learns, as CLIP has it; (n, D) twice to ().

    Args:
        temperature: temperature at the start, 1 / s.
        largest: largest s.
        symmetric: whether to take both directions, or rows alone.
        tile: rows and columns of a tile.
        group: processes that share the batch; None for one.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        largest: float = 100.0,
        symmetric: bool = True,
        tile: int = 1024,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.largest, self.symmetric, self.tile, self.group = largest, symmetric, tile, group

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = (F.normalize(_precise(x), dim=1) for x in (q, k))
        scale = self.log_scale.exp().clamp(max=self.largest)
        return inf_cl_loss(q, k, scale=scale, symmetric=self.symmetric, tile=self.tile, group=self.group)


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(13, 5, generator=generator) for _ in range(2))
    return {"q": q, "k": k, "scale": torch.tensor(0.7)}


METHOD = Method(
    id=226,
    name="Inf-CL",
    kind="objective",
    summary="InfoNCE is computed tile by tile in forward and again in backward, in memory linear in the batch.",
    paper=Paper(
        "Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss",
        "Z. Cheng et al.",
        2024,
        "arXiv:2410.17243",
    ),
    cases={
        "both": Objective(lambda **given: inf_cl_loss(**given, tile=4), _inputs, ("q", "k", "scale")),
        "rows": Objective(lambda **given: inf_cl_loss(**given, symmetric=False, tile=16), _inputs, ("q", "k", "scale")),
    },
)
