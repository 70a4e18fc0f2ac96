"""STree: a state-space model checks a whole tree of drafted tokens in one pass, without a state for each branch.

*Source*: Y. Wu, Z. Qin, A. Wong, S. Soatto, "STree: Speculative Tree Decoding for Hybrid State-Space Models", NeurIPS
2025 (arXiv:2505.14969), read in abstract and by the authors' code, github.com/wyc1997/stree. A small model drafts a
tree below the last token, one pass a level; the large one reads the tree in one pass; the longest path is taken whose
every token is what the large model says after the token before:

    y_t = Σ_s L_ts exp(c_t - c_s) (C_t · B_s) dt_s x_s + exp(c_t) S C_t,   c_t = Σ_s L_ts dt_s A,   L_ts: s above t
    token of t is accepted if its parent is and argmax logits(parent) = t's token;  one more token comes free
    S ← state after the accepted path, from its inputs x, B, dt alone             (activation replay)

Nodes N, channels C, heads of P channels, states S. The scan is `foveal.ops.tree_scan`. With one token a level the tree
is a chain: ordinary speculative decoding.

*Differs from the paper*: decoding is greedy, of one sequence, and without attention layers, for which masks of trees
are common; the state is replayed after a check instead of inside the next one, which computes the same. The draft reads
its growing tree by the same scan, where the authors copy its states.
*Provenance*: written from the abstract's formula; static tree, replay and convolution along the path were looked up in
the authors' code. Their scan, run by Triton's interpreter on a tree of nine nodes, gives the same numbers to 1.4e-7 of
the largest, and their plain convolution of a complete tree to 5e-7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.mamba2 import Mamba2
from foveal.ops.tree_scan import tree_scan
from foveal.ops.tree_scan.reference import tree_scan_reference
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.nn.mamba2 import Read, State

__all__ = ["CHAIN", "TREE", "Decoded", "StateSpaceLM", "greedy", "longest_path", "stree"]

Branches = tuple[tuple[int, ...], ...]
# Number of children of each node of the level before; nodes that are left out have none. The authors' static tree.
TREE: Branches = ((5,), (2, 1, 1), (2, 1, 1), (2, 2))
CHAIN: Branches = ((1,),) * 4


class StateSpaceLM(nn.Module):
    """Predicts the next token with Mamba-2 blocks, (B, N) int64 to logits (B, N, vocabulary).

    Args:
        vocabulary: number of tokens there are.
        dim: C.
        depth: number of blocks.
        num_heads: heads of a mixer.
        state: S.
    """

    def __init__(self, vocabulary: int, *, dim: int = 64, depth: int = 2, num_heads: int = 4, state: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.mixers = nn.ModuleList(Mamba2(dim, num_heads, state=state) for _ in range(depth))
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(self.norm(x))

    def begin(self) -> list[State]:
        """States before the first token of one sequence.

        Returns:
            One for each block.
        """
        return [mixer.begin(1) for mixer in self.mixers]  # type: ignore[operator]

    def tree(self, tokens: Tensor, states: Sequence[State], parents: Tensor) -> tuple[Tensor, list[Read]]:
        """Read a tree in one pass.

        Args:
            tokens: tokens of the nodes, (N,) int64.
            states: states before the roots.
            parents: parent of each node, (N,) int64, -1 for a root.

        Returns:
            Logits after each node, (N, vocabulary), and what `replay` needs.
        """
        x, reads = self.embed(tokens)[None], []
        for norm, mixer, state in zip(self.norms, self.mixers, states, strict=True):
            y, read = mixer.tree(norm(x), state, parents)  # type: ignore[operator]
            x = x + y
            reads.append(read)
        return self.head(self.norm(x))[0], reads

    def replay(self, states: Sequence[State], reads: Sequence[Read], path: Tensor) -> list[State]:
        """States after a path of a tree that was read.

        Args:
            states: states before the roots.
            reads: what `tree` returned.
            path: nodes from a root downward, (n,) int64.

        Returns:
            One for each block.
        """
        return [m.replay(*at, path) for m, *at in zip(self.mixers, states, reads, strict=True)]  # type: ignore[operator]

    def read(self, tokens: Tensor, states: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Read a sequence, which is a tree without branches.

        Args:
            tokens: (n,) int64.
            states: states before it.

        Returns:
            Logits after each token, (n, vocabulary), and the states after the last.
        """
        nodes = torch.arange(len(tokens), device=tokens.device)
        logits, reads = self.tree(tokens, states, nodes - 1)
        return logits, self.replay(states, reads, nodes)


@dataclass(frozen=True)
class Decoded:
    """What speculative decoding gave.

    Args:
        tokens: generated tokens, (n,) int64.
        checks: passes of the large model after the prompt.
        accepted: drafted tokens that were accepted in each check.
        drafts: passes of the small model after the prompt.
    """

    tokens: Tensor
    checks: int
    accepted: tuple[int, ...]
    drafts: int


def longest_path(tokens: Tensor, parents: Tensor, wanted: Tensor) -> list[int]:
    """Longest path from the first node whose every token is wanted after its parent.

    Args:
        tokens: token of each node, (N,) int64; siblings differ.
        parents: parent of each node, (N,) int64; -1 for the first node alone.
        wanted: token that the large model wants after each node, (N,) int64.

    Returns:
        Nodes, beginning with the first.
    """
    path = [0]
    for node in range(1, len(tokens)):
        # a child stands behind its parent, so that one walk through all nodes meets every level in turn
        if int(parents[node]) == path[-1] and tokens[node] == wanted[path[-1]]:
            path.append(node)
    return path


def _draft(model: StateSpaceLM, states: Sequence[State], root: Tensor, branches: Branches) -> tuple[Tensor, Tensor]:
    """Tokens and parents of a tree below a token; its deepest level is drafted but not read."""
    tokens, parents, level = root, root.new_full((1,), -1), [0]
    for numbers in branches:
        logits, _ = model.tree(tokens, states, parents)
        above, level = level, []
        for node, number in zip(above, numbers, strict=False):
            level += range(len(tokens), len(tokens) + number)
            tokens = torch.cat((tokens, logits[node].topk(number).indices))
            parents = torch.cat((parents, parents.new_full((number,), node)))
    return tokens, parents


@torch.no_grad()
def greedy(model: StateSpaceLM, prompt: Tensor, count: int) -> Tensor:
    """Plain decoding, one pass for each token.

    Args:
        model: language model.
        prompt: (n,) int64, at least one token.
        count: number of tokens to generate.

    Returns:
        (count,) int64.
    """
    tokens: list[Tensor] = []
    logits, states = model.read(prompt, model.begin())
    while len(tokens) < count:
        tokens.append(logits[-1].argmax())
        logits, states = model.read(tokens[-1][None], states)
    return torch.stack(tokens) if tokens else prompt[:0]


@torch.no_grad()
def stree(
    model: StateSpaceLM, draft: StateSpaceLM, prompt: Tensor, count: int, *, branches: Branches = TREE
) -> Decoded:
    """Greedy decoding with a drafted tree a pass; the tokens are those of `greedy`.

    Args:
        model: large language model.
        draft: small one of the same vocabulary.
        prompt: (n,) int64, at least two tokens.
        count: number of tokens to generate.
        branches: shape of the tree: for each level the numbers of children of the nodes above, in their order.

    Returns:
        Tokens and counts.

    Raises:
        ValueError: a prompt of fewer than two tokens, or a tree with a level that is empty or wider than its nodes.
    """
    if len(prompt) < 2:
        raise ValueError(
            f"the prompt must have at least 2 tokens, got {len(prompt)}; begin with a line end or the like"
        )
    width = 1
    for numbers in branches:
        if not 1 <= len(numbers) <= width or min(numbers) < 1:
            raise ValueError(f"a level must name 1 to {width} numbers of children, each at least 1, got {numbers}")
        width = sum(numbers)
    _, states = model.read(prompt[:-1], model.begin())
    _, small = draft.read(prompt[:-1], draft.begin())
    root, found, accepted, drafts = prompt[-1:], [prompt[:0]], [], 0
    while sum(map(len, found)) < count:
        tokens, parents = _draft(draft, small, root, branches)
        logits, reads = model.tree(tokens, states, parents)
        wanted = logits.argmax(1)
        path = torch.tensor(longest_path(tokens, parents, wanted), device=tokens.device)
        states = model.replay(states, reads, path)
        _, small = draft.read(tokens[path], small)
        root = wanted[path[-1:]]
        found += [tokens[path[1:]], root]
        accepted.append(len(path) - 1)
        drafts += len(branches) + 1  # one more pass reads what was accepted
    return Decoded(torch.cat(found)[:count], len(accepted), tuple(accepted), drafts)


def _inputs(seed: int, *, parents: Sequence[int] = (-1, 0, 0, 1, 1, 4, -1)) -> dict[str, Tensor]:
    generator, nodes = torch.Generator().manual_seed(seed), len(parents)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    given = {"x": drawn(2, nodes, 4, 3), "dt": drawn(2, nodes, 4), "A": -drawn(4).exp(), "D": drawn(4)}
    shared = {"B": drawn(2, nodes, 2, 5), "C": drawn(2, nodes, 2, 5), "initial_state": drawn(2, 4, 3, 5)}
    return {**given, **shared, "parents": torch.tensor(parents, dtype=torch.long)}


def _fast(**given: Any) -> Tensor:
    return tree_scan(**given, dt_softplus=True)


def _reference(**given: Any) -> Tensor:
    return tree_scan_reference(**given, dt_bias=None, dt_softplus=True)


METHOD = Method(
    id=298,
    name="STree",
    kind="operator",
    summary="A state-space model checks a tree of drafted tokens in one pass, without a state for each branch.",
    paper=Paper(
        "STree: Speculative Tree Decoding for Hybrid State-Space Models", "Y. Wu et al.", 2025, "arXiv:2505.14969"
    ),
    cases={
        "two_trees": Operator(_fast, _reference, _inputs),
        "chain": Operator(_fast, _reference, lambda seed: _inputs(seed, parents=(-1, 0, 1, 2, 3))),
    },
)
