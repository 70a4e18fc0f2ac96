"""Tutel: experts with a capacity, reached by sparse encoding, whose parallelism changes from call to call.

*Source*: C. Hwang et al., "Tutel: Adaptive Mixture-of-Experts at Scale", MLSys 2023 (arXiv:2206.03382), sections 3 and
4; the authors' code is at github.com/microsoft/tutel.

Tokens x, (N, C), choose k of E experts. A choice's place among those of its expert counts all first choices before the
second; what has no place below the capacity is dropped.

    capacity  k · ⌊f · ⌈N / E⌉⌋ for f > 0; for f = 0 as much as the fullest expert of any process needs; for f < 0 that,
              but no more than with -f
    encode    buffer[e, place] = x(t)                  (N, C) to (E, capacity, C), by index
    experts   gelu(buffer W1_eᵀ) W2_e                  for each expert
    decode    y(t) = Σ_j g_j · buffer[e_j, place_j]    (E, capacity, C) to (N, C), by index

where the dense form multiplies with a one-hot tensor, (N, E, capacity).

W processes hold N tokens each and, always, an equal share of the rows of w1 and w2, both (E·H, C), the experts after
each other: a share is some whole experts, or parts of them. A call does one of

    data      gathers the weights of all, and computes its own tokens
    expert    sends each buffer to the process that holds its expert, and back; shares must be whole experts
    sharded   gathers the buffers of all, computes them with its rows, and sums up and shares out

All give the same numbers, and gradients stay where their weights are, so that a switch moves nothing.

*Differs from the paper*: each process sends to all others directly; the hierarchical all-to-all, the pipelining and the
search for the fastest mode are left out. The experts have no bias. A place is found by sorting.
*Provenance*: written from the paper; capacity and the order of places as in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.ops.experts import group_rows, top_experts
from foveal.ops.experts.processes import exchanged, gathered, most, place, summed
from foveal.ops.experts.reference import expert_mlp_reference
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["MODES", "Tutel", "capacity_of", "decode", "encode", "load_balance", "places", "tutel_mlp"]

MODES = ("data", "expert", "sharded")


def places(experts: Tensor, num_experts: int) -> Tensor:
    """Place of each choice among those of its expert; all first choices come before the second.

    Args:
        experts: experts, (N, k).
        num_experts: E.

    Returns:
        Places from 0, (N, k) int64.
    """
    by_choice = experts.t().reshape(-1, 1)
    order, _, sizes, _ = group_rows(by_choice, num_experts)
    counts = torch.tensor(sizes, device=experts.device)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    ranks = torch.arange(len(order), device=experts.device) - starts
    return torch.empty_like(order).index_copy(0, order, ranks).view(experts.shape[1], -1).t()


def capacity_of(rows: int, num_experts: int, top_k: int, factor: float, *, needed: int) -> int:
    """Rows that an expert takes.

    Args:
        rows: N.
        num_experts: E.
        top_k: k.
        factor: f; 0 for as many as needed, below 0 for that but no more than with -f.
        needed: rows of the fullest expert.

    Returns:
        The capacity, at least 1.
    """
    fixed = top_k * int(abs(factor) * -(-rows // num_experts))
    wanted = fixed if factor > 0 else needed if factor == 0 else min(needed, fixed)
    return max(1, wanted)


def encode(x: Tensor, experts: Tensor, at: Tensor, num_experts: int, capacity: int) -> Tensor:
    """Tokens to the buffers of their experts; places at the capacity or beyond are dropped.

    Args:
        x: tokens, (N, C).
        experts: experts, (N, k).
        at: places, (N, k).
        num_experts: E.
        capacity: rows of a buffer.

    Returns:
        Buffers, (E, capacity, C), zero where no token is.
    """
    rows, choices = (at < capacity).nonzero().unbind(1)
    slots = experts[rows, choices] * capacity + at[rows, choices]
    buffer = x.new_zeros(num_experts * capacity, x.shape[1]).index_copy(0, slots, x[rows])
    return buffer.view(num_experts, capacity, -1)


def decode(buffer: Tensor, gates: Tensor, experts: Tensor, at: Tensor) -> Tensor:
    """Rows of the buffers back to their tokens, weighted; what was dropped adds nothing.

    Args:
        buffer: buffers, (E, capacity, C).
        gates: gates, (N, k).
        experts: experts, (N, k).
        at: places, (N, k).

    Returns:
        Tokens, (N, C).
    """
    capacity = buffer.shape[1]
    rows, choices = (at < capacity).nonzero().unbind(1)
    slots = experts[rows, choices] * capacity + at[rows, choices]
    made = buffer.flatten(0, 1)[slots] * gates[rows, choices, None]
    return made.new_zeros(len(gates), buffer.shape[2]).index_add(0, rows, made)


def load_balance(scores: Tensor, experts: Tensor) -> Tensor:
    """E · Σ_e (share of tokens whose first choice is e) · (mean probability of e); 1 if all are equal.

    Args:
        scores: logits of the router, (N, E).
        experts: experts, (N, k), the first choice first.

    Returns:
        Loss, ().
    """
    share = F.one_hot(experts[:, 0], scores.shape[1]).to(scores.dtype).mean(0)
    return scores.shape[1] * (share * scores.softmax(1).mean(0)).sum()


def _computed(buffer: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """The experts on their buffers, (E, capacity, C), with weights (E, H, C)."""
    return F.gelu(buffer @ w1.mT) @ w2


def tutel_mlp(
    x: Tensor, w1: Tensor, w2: Tensor, gates: Tensor, experts: Tensor, *, capacity_factor: float = 1.0
) -> Tensor:
    """The layer in one process, after the router.

    Args:
        x: tokens, (N, C).
        w1: first weights, (E, H, C).
        w2: second weights, transposed, (E, H, C).
        gates: gates, (N, k).
        experts: experts, (N, k) int64.
        capacity_factor: f; 0 drops nothing.

    Returns:
        Tokens, (N, C).
    """
    at = places(experts, len(w1))
    needed = int(at.max()) + 1 if at.numel() else 1
    capacity = capacity_of(len(x), len(w1), experts.shape[1], capacity_factor, needed=needed)
    return decode(_computed(encode(x, experts, at, len(w1), capacity), w1, w2), gates, experts, at)


class Tutel(nn.Module):
    """MLP of experts, (…, C) to the same, and its `load_balance`.

    The router is held by every process whole: its gradient is to be averaged or summed over them, as in data
    parallelism; that of w1 and w2 must not be.

    Args:
        dim: C.
        hidden: channels of an expert's hidden layer, H.
        num_experts: E.
        top_k: experts of a token, k.
        capacity_factor: f, of the tokens of one process.
        group: processes that share the layer; None for one.

    Raises:
        ValueError: rows that the processes cannot share equally.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int,
        num_experts: int = 8,
        top_k: int = 2,
        capacity_factor: float = 1.0,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.hidden, self.num_experts, self.top_k = hidden, num_experts, top_k
        self.capacity_factor, self.group = capacity_factor, group
        self.rank, self.world = place(group)
        if num_experts * hidden % self.world:
            raise ValueError(
                f"num_experts · hidden must be a multiple of the {self.world} processes, got {num_experts} · {hidden}"
            )
        self.router = nn.Linear(dim, num_experts, bias=False)
        share = num_experts * hidden // self.world
        self.w1 = nn.Parameter(torch.empty(share, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.w2 = nn.Parameter(torch.empty(share, dim).uniform_(-(hidden**-0.5), hidden**-0.5))

    def forward(self, x: Tensor, *, mode: str = "data") -> tuple[Tensor, Tensor]:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if mode == "expert" and self.num_experts % self.world:
            raise ValueError(
                f"mode 'expert' needs whole experts, got {self.num_experts} for {self.world} processes; take 'sharded'"
            )
        rows = x.flatten(0, -2)
        scores = self.router(rows)
        gates, experts = top_experts(scores, self.top_k, renormalise=self.top_k > 1)
        at = places(experts, self.num_experts)
        needed = int(at.max()) + 1 if at.numel() else 1
        capacity = capacity_of(len(rows), self.num_experts, self.top_k, self.capacity_factor, needed=needed)
        # Buffers of one length in all processes, whatever their loads and numbers of tokens.
        capacity = most(capacity, self.group, device=x.device)
        buffer = getattr(self, f"_{mode}")(encode(rows, experts, at, self.num_experts, capacity))
        return decode(buffer, gates, experts, at).view_as(x), load_balance(scores, experts)

    def _data(self, buffer: Tensor) -> Tensor:
        w1, w2 = (gathered(w, self.group).unflatten(0, (self.num_experts, -1)) for w in (self.w1, self.w2))
        return _computed(buffer, w1, w2)

    def _expert(self, buffer: Tensor) -> Tensor:
        own = self.num_experts // self.world
        # (W, E/W, capacity, C): the experts of each process; then the buffers from each process
        came = exchanged(buffer.unflatten(0, (self.world, own)), self.group)
        merged = came.transpose(0, 1).flatten(1, 2)
        made = _computed(merged, *(w.unflatten(0, (own, -1)) for w in (self.w1, self.w2)))
        back = made.unflatten(1, (self.world, -1)).transpose(0, 1).contiguous()
        return exchanged(back, self.group).flatten(0, 1)

    def _sharded(self, buffer: Tensor) -> Tensor:
        # (W, E, capacity, C)
        came = gathered(buffer[None], self.group)
        first, share = self.rank * len(self.w1), len(self.w1)
        made = []
        for e in range(self.num_experts):
            # own rows of this expert, none of most
            start, end = (min(max(edge - first, 0), share) for edge in (e * self.hidden, (e + 1) * self.hidden))
            made.append(_computed(came[:, e], self.w1[start:end], self.w2[start:end]))
        return summed(torch.stack(made, 1), self.group)[0]


def _inputs(seed: int, *, top_k: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gates, experts = top_experts(torch.randn(13, 5, generator=generator), top_k)
    weights = {name: torch.randn(5, 7, 6, generator=generator) for name in ("w1", "w2")}
    return {"x": torch.randn(13, 6, generator=generator), **weights, "gates": gates, "experts": experts}


def _reference(capacity: int | None, **given: Tensor) -> Tensor:
    """Token by token, the gate of a choice that finds its expert full set to 0."""
    experts, free = given["experts"], [len(given["x"]) if capacity is None else capacity] * len(given["w1"])
    kept = torch.zeros_like(given["gates"])
    for j in range(experts.shape[1]):
        for t, e in enumerate(experts[:, j].tolist()):
            kept[t, j] = free[e] > 0
            free[e] -= 1
    return expert_mlp_reference(**{**given, "w2": given["w2"].mT, "gates": given["gates"] * kept})


METHOD = Method(
    id=198,
    name="Tutel",
    kind="operator",
    summary="Experts of limited capacity are reached by index, and processes share them in one layout for all modes.",
    paper=Paper("Tutel: Adaptive Mixture-of-Experts at Scale", "C. Hwang et al.", 2023, "arXiv:2206.03382"),
    cases={
        "none_dropped": Operator(
            lambda **given: tutel_mlp(**given, capacity_factor=0.0), lambda **given: _reference(None, **given), _inputs
        ),
        "some_dropped": Operator(
            lambda **given: tutel_mlp(**given, capacity_factor=0.7),
            lambda **given: _reference(4, **given),
            _inputs,
        ),
        "one_choice": Operator(
            lambda **given: tutel_mlp(**given, capacity_factor=1.0),
            lambda **given: _reference(3, **given),
            lambda seed: _inputs(seed, top_k=1),
        ),
    },
)
