"""The mixer of Mamba-2 over a sequence of tokens, or over a tree of them that continues a sequence.

*Source*: T. Dao, A. Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State
Space Duality" (Mamba-2), ICML 2024 (arXiv:2405.21060), section 7. With H heads of P channels and S states:

    z, (x, B, C), dt = W_in tokens                     (B, N, C) to channels H·P, (H·P, S, S) and H
    x, B, C = silu(conv1d(x, B, C))                    depthwise, over the last k tokens
    y = ssd(x, softplus(dt + bias), -exp(A_log), B, C, D)
    out = W_out RMSNorm(y ∘ silu(z))

In a tree each token follows its parent instead of the token before it, in convolution and recurrence alike. The state
after any path of a tree that was read is computed again from the inputs of its nodes.

*Differs from the paper*: one group of B and C.
*Provenance*: written from the paper. Parameters are named as in mamba_ssm, so that weights trained there load here;
initial values and the place of the gate, before the norm, were looked up there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.ops.ssd import ssd
from foveal.ops.tree_scan import tree_conv1d, tree_scan

__all__ = ["Mamba2", "Read", "State"]


class State(NamedTuple):
    """What a mixer keeps of the tokens it has read.

    Args:
        before: last inputs of the convolution, (B, k - 1, channels).
        held: state of the recurrence, (B, heads, P, S).
    """

    before: Tensor
    held: Tensor


class Read(NamedTuple):
    """Inputs of a tree's nodes, from which any path can be replayed.

    Args:
        mixed: inputs of the convolution, (B, N, channels).
        bent: its outputs, (B, N, channels).
        dt: step sizes before softplus, (B, N, heads).
    """

    mixed: Tensor
    bent: Tensor
    dt: Tensor


class Mamba2(nn.Module):
    """Mixer of tokens, (B, N, dim) to (B, N, dim), and of trees of them.

    Args:
        dim: C.
        num_heads: heads, a divisor of the inner channels.
        state: S.
        expand: ratio of inner channels to `dim`.
        kernel_size: k, tokens that the convolution covers.
    """

    def __init__(self, dim: int, num_heads: int, *, state: int = 64, expand: int = 2, kernel_size: int = 4) -> None:
        super().__init__()
        inner = expand * dim
        self.num_heads, self.kernel_size, self.parts = num_heads, kernel_size, (inner, state, state)
        self.in_proj = nn.Linear(dim, 2 * inner + 2 * state + num_heads, bias=False)
        self.conv1d = nn.Conv1d(sum(self.parts), sum(self.parts), kernel_size, groups=sum(self.parts))
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(num_heads))
        # step sizes log-uniform in 0.001 to 0.1; the bias is added before softplus
        step = torch.empty(num_heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.norm, self.out_proj = nn.RMSNorm(inner, eps=1e-5), nn.Linear(inner, dim, bias=False)

    def begin(self, batch: int) -> State:
        """State before the first token.

        Args:
            batch: B.

        Returns:
            Zeros.
        """
        zeros, (inner, state, _) = self.D.new_zeros, self.parts
        before = zeros(batch, self.kernel_size - 1, sum(self.parts))
        return State(before, zeros(batch, self.num_heads, inner // self.num_heads, state))

    def _projected(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner = self.parts[0]
        gate, mixed, dt = self.in_proj(tokens).split([inner, sum(self.parts), self.num_heads], -1)
        return gate, mixed, dt

    def _scanned(self, bent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, keys, queries = bent.split(self.parts, -1)
        return values.unflatten(2, (self.num_heads, -1)), keys[:, :, None], queries[:, :, None]

    def _out(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(self.norm(y.flatten(2) * F.silu(gate)))

    def forward(self, tokens: Tensor) -> Tensor:
        gate, mixed, dt = self._projected(tokens)
        padded = F.pad(mixed.transpose(1, 2), (self.kernel_size - 1, 0))
        x, keys, queries = self._scanned(F.silu(self.conv1d(padded)).transpose(1, 2))
        y = ssd(x, dt, -self.A_log.exp(), keys, queries, self.D, dt_bias=self.dt_bias, dt_softplus=True)
        return self._out(y, gate)  # type: ignore[arg-type]

    def tree(self, tokens: Tensor, state: State, parents: Tensor) -> tuple[Tensor, Read]:
        """Mix each token with its ancestors in a tree, and with what was read before.

        Args:
            tokens: the tree's tokens, (B, N, dim).
            state: state before the roots.
            parents: parent of each node, (N,) int64, -1 for a root.

        Returns:
            Tokens, (B, N, dim), and what `replay` needs.
        """
        gate, mixed, dt = self._projected(tokens)
        weight = self.conv1d.weight[:, 0]
        bent = F.silu(tree_conv1d(mixed, weight, self.conv1d.bias, parents=parents, before=state.before))
        x, keys, queries = self._scanned(bent)
        y = tree_scan(
            *(x, dt, -self.A_log.exp(), keys, queries, self.D),
            parents=parents,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            initial_state=state.held,
        )
        return self._out(y, gate), Read(mixed, bent, dt)

    def replay(self, state: State, read: Read, path: Tensor) -> State:
        """State after some path of a tree that was read.

        Args:
            state: state before the roots.
            read: what `tree` returned.
            path: nodes from a root downward, (n,) int64.

        Returns:
            The state.
        """
        x, keys, queries = self._scanned(read.bent[:, path])
        _, held = ssd(
            *(x, read.dt[:, path], -self.A_log.exp(), keys, queries),
            dt_bias=self.dt_bias,
            dt_softplus=True,
            initial_state=state.held,
            return_last_state=True,
        )
        whole = torch.cat((state.before, read.mixed[:, path]), 1)
        return State(whole[:, whole.shape[1] - state.before.shape[1] :], held)
