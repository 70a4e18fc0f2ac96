"""BAT-HMER: handwritten formulas read as layout trees by two decoders, one of which reads from the right and helps.

*Source*: H. Cheng et al., "Bidirectional Trained Tree-Structured Decoder for Handwritten Mathematical Expression
Recognition", arXiv:2401.00435 (2023). A formula is a tree of symbols; an edge says where its child stands, and a row of
symbols is a chain of "right". The mirror-flipped tree turns the chain of every row round and leaves all else:

    a → b → c,  b →ˢᵘᵖ d → e    becomes    c → b → a,  b →ˢᵘᵖ e → d        mirror(mirror(tree)) = tree

A decoder takes the symbols depth first, "right" last. With x the features of the picture, (B, C, H, W), p the symbol
of the parent, ρ the relation to it, h and r states of n channels, α the attention and Σα that of all earlier steps:

    q = GRU([p, ρ], h)     e = wᵀ tanh(K·x + Q·q + conv(Σα))    c = Σ softmax(e)·x     h = GRU(c, q)
    symbol   = W maxout(W₁c + W₂h + W₃p + W₄ρ + W₅m)                                    softmax, (B, symbols)
    q′ = GRU(c, r)         c′ by q′ as above, without Σα                               r = GRU(c′, q′)
    branches = W′ maxout(W₁′c′ + W₂′r + W₃′·symbol + W₄′m′)            sigmoid, (B, relations): which it has

The backward decoder is run on the flipped tree first; m and m′ are what the forward one's q and q′ attend to among the
backward one's h and r, (B, S, n), by e with K·h and Σα over the states (m = m′ = 0 in the backward one). The shared
language model is the same decoder again with c = m = 0, so that it sees symbols and relations alone; both ways count
alike:

    loss = Σ over both ways of  CE(symbol) + BCE(branches) + 0.1·CE(symbol by the language model)

Reading takes at each step the latest symbol of which a branch is open, until there is none.

*Differs from the paper*: pictures of a batch have one size, so features are not masked; there is no step for the end
of a formula; the branch classifies no pixels beside (weight 0.5 in the authors' code). `own` lets decoders train on
what they said themselves; the paper's learn from true parents alone (0), through which the backward states tell the
forward decoder the truth that it is asked for.
*Provenance*: written from the paper's abstract and appendix and from the behaviour of the authors' code (Hanbo-
Cheng/BAT). Both decoders equal that code's to 3e-7 and `foveal.vlm.layout.mirror` on 1,000 formulas. As released,
that code attends evenly to all states of e ≥ 0, which gives e no gradient; here it is the softmax that it keeps as a
comment, and equality is to that. Its forward language model cannot run and its backward one sees c; here both are
blind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.layout import START, Layout, Steps, blank, grow
from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BatHmer", "Said", "TreeDecoder", "attend", "loss"]


def attend(
    query: Tensor, keys: Tensor, values: Tensor, weight: Tensor, past: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Additive attention that knows where it has been.

    Args:
        query: Q·q, (B, A).
        keys: K·x, (B, N, A).
        values: x, (B, N, C).
        weight: w, (A,).
        past: conv(Σα), (B, N, A), or what can be added to keys.
        real: whether a key is no padding, (B, N); one of each row at least.

    Returns:
        Context, (B, C), and attention, (B, N).
    """
    scores = torch.tanh(keys + query[:, None] + past) @ weight
    attention = scores.masked_fill(~real, -torch.inf).softmax(1)
    return (attention[:, None] @ values)[:, 0], attention


class Attention(nn.Module):
    """`attend` with its weights, over places of a picture (`axes` 2), over states (1) or without the past (0)."""

    def __init__(self, dim: int, hidden: int, attention: int, axes: int, reach: int) -> None:
        super().__init__()
        self.key, self.query = nn.Linear(dim, attention), nn.Linear(hidden, attention, bias=False)
        self.weight = nn.Parameter(torch.randn(attention) / attention**0.5)
        convolution: Any = (nn.Conv1d, nn.Conv2d)[axes - 1]
        self.past = convolution(1, attention, reach, padding=reach // 2) if axes else None

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Context, (B, C), and attention in the shape of `seen`, Σα of earlier steps, (B, 1, …)."""
        past = torch.zeros(1, dtype=keys.dtype) if self.past is None else self.past(seen).flatten(2).transpose(1, 2)
        context, attention = attend(self.query(query), keys, values, self.weight, past, real)
        return context, attention.view_as(seen)


@dataclass(frozen=True)
class Said:
    """What a decoder says.

    Args:
        symbols: logits, (B, T, symbols).
        branches: logits, (B, T, relations).
        language: logits of the language model, (B, T, symbols).
        states: h and r, (B, T, n) each.
        steps: the steps that were taken: given ones, or what was read.
    """

    symbols: Tensor
    branches: Tensor
    language: Tensor
    states: tuple[Tensor, Tensor]
    steps: Steps


class TreeDecoder(nn.Module):
    """Features of a picture to a layout tree.

    Args:
        symbols: number of symbols.
        dim: C, channels of the features.
        hidden: n, channels of the states.
        embed: channels of an embedded symbol, and within the classifiers; even.
        relation_embed: channels of an embedded relation.
        attention: A, channels in which queries meet keys.
        reach: side of the kernel over earlier attention to the picture, odd.
        dropout: probability, within the classifiers.
        aided: whether it attends to another decoder's states.

    Raises:
        VlmError: an odd `embed` or an even `reach`.
    """

    def __init__(
        self, symbols: int, dim: int, *, hidden: int = 256, embed: int = 128, relation_embed: int = 64,
        attention: int = 512, reach: int = 11, dropout: float = 0.1, aided: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if embed % 2 or reach % 2 == 0:
            raise VlmError(f"embed must be even and reach odd, got {embed} and {reach}; the paper's are 128 and 11")
        self.symbol, self.relation = nn.Embedding(symbols + 1, embed), nn.Embedding(START + 1, relation_embed)
        self.follow, self.look = nn.GRUCell(embed + relation_embed, hidden), nn.GRUCell(dim, hidden)
        self.follow_branches, self.look_branches = (nn.GRUCell(dim, hidden) for _ in range(2))
        self.over, self.over_branches = (Attention(dim, hidden, attention, axes, reach) for axes in (2, 0))
        self.says, self.has = (
            nn.ModuleList(nn.Linear(n, embed) for n in inputs + (hidden,) * aided)
            for inputs in ((dim, hidden, embed, relation_embed), (dim, embed, hidden))
        )
        self.say, self.have = nn.Linear(embed // 2, symbols), nn.Linear(embed // 2, START)
        self.aids = nn.ModuleList(Attention(hidden, hidden, attention, 1, 3) for _ in range(2 * aided))
        self.dropout = dropout

    def _classify(self, nets: nn.ModuleList, inputs: Sequence[Tensor], last: nn.Linear) -> Tensor:
        widest = torch.stack([net(x) for net, x in zip(nets, inputs, strict=True)]).sum(0).unflatten(1, (-1, 2)).amax(2)
        return last(F.dropout(widest, self.dropout, self.training))  # type: ignore[no-any-return]

    def forward(
        self, features: Tensor, start: Tensor, given: Steps | int, aid: Said | None = None, *, own: float = 0.0
    ) -> Said:
        """Take the steps of given trees, or read.

        Args:
            features: (B, C, H, W).
            start: h and r before the first step, (B, n).
            given: the steps, T of them; or, for reading, the most symbols of a formula: the likeliest symbol and all
                branches of at least ½ at each step, and branches that are open at the end are left out.
            aid: what the other decoder said, if it is `aided`.
            own: share of the symbols that are what it said itself, when it looks back at them, in [0, 1].

        Returns:
            What it says of each step.
        """
        rows, values = torch.arange(len(features)), features.flatten(2).transpose(1, 2)  # (B, H·W, C)
        everywhere, seen = torch.ones(values.shape[:2], dtype=torch.bool), torch.zeros_like(features[:, :1])
        keys, keys_branches = self.over.key(values), self.over_branches.key(values)
        nets: Any = list(self.aids)
        states = () if aid is None else aid.states
        theirs = [(net, net.key(x), x) for net, x in zip(nets, states, strict=True)]
        been = [torch.zeros_like(x[:, None, :, 0]) for x in states]

        def helped(query: Tensor, which: int) -> list[Tensor]:
            """Context among the other decoder's states: m by h (0), or m′ by r (1)."""
            if aid is None:
                return []
            net, known, x = theirs[which]
            found, attention = net(query, known, x, been[which], aid.steps.real)
            been[which] = been[which] + attention
            return [found]

        reading = isinstance(given, int)
        taken = blank(len(features), given) if isinstance(given, int) else given
        symbols, made, open_ = taken.symbols.clone(), [], [list[tuple[int, int]]() for _ in rows]
        h = r = blind = start
        for t in range(symbols.shape[1]):
            told = (
                symbols[rows, taken.parents[:, t].clamp(min=0)] if t else torch.full_like(rows, self.say.out_features)
            )
            parent, relation = self.symbol(told), self.relation(taken.relations[:, t])
            both = torch.cat((parent, relation), 1)
            query = self.follow(both, h)
            context, attention = self.over(query, keys, values, seen, everywhere)
            m = helped(query, 0)
            seen, h = seen + attention, self.look(context, query)
            symbol = self._classify(self.says, (context, h, parent, relation, *m), self.say)
            nothing = torch.zeros_like(context)
            blind = self.look(nothing, self.follow(both, blind))
            lacks = (nothing, blind, parent, relation, *(torch.zeros_like(x) for x in m))
            language = self._classify(self.says, lacks, self.say)
            if reading or own > 0:
                symbols[:, t] = symbol.argmax(1).where(reading | (torch.rand(len(rows)) < own), symbols[:, t])
            query = self.follow_branches(context, r)
            context, _ = self.over_branches(query, keys_branches, values, seen, everywhere)
            r = self.look_branches(context, query)
            inputs = context, self.symbol(symbols[:, t].clone()), r, *helped(query, 1)
            branches = self._classify(self.has, inputs, self.have)
            made.append((symbol, branches, language, h, r))
            if reading:
                taken.branches[:, t] = branches > 0
                _follow(taken, open_, t)
                if t + 1 == symbols.shape[1] or not taken.real[:, t + 1].any():
                    break
        symbol, branches, language, h, r = (torch.stack(x, 1) for x in zip(*made, strict=True))
        if reading:
            fields = symbols, taken.parents, taken.relations, taken.branches, taken.real
            taken = Steps(*(x[:, : len(made)] for x in fields))
        return Said(symbol, branches, language, (h, r), taken)


def _follow(taken: Steps, open_: list[list[tuple[int, int]]], t: int) -> None:
    """Say where the step behind t belongs: to the latest symbol of which a branch is open, and there to the first."""
    for b, row in enumerate(open_):
        row += [(t, kind) for kind in taken.branches[b, t].nonzero()[:, 0].flip(0).tolist()]
        if row and t + 1 < taken.real.shape[1]:
            taken.parents[b, t + 1], taken.relations[b, t + 1] = row.pop()
            taken.real[b, t + 1] = True


class BatHmer(nn.Module):
    """Pictures of formulas to layout trees, by a decoder alone or helped by one that reads from the right.

    Args:
        encoder: pictures to features, (B, C, H, W).
        dim: C.
        ahead: forward decoder, `aided` exactly if there is a backward one.
        back: backward decoder; None for the forward one alone.
        own: see `TreeDecoder.forward`; for both, in training only.

    Raises:
        VlmError: `ahead` that does not fit `back`, or `own` outside [0, 1].
    """

    def __init__(
        self, encoder: nn.Module, dim: int, ahead: TreeDecoder, back: TreeDecoder | None = None, *, own: float = 0.0
    ) -> None:
        super().__init__()
        if bool(ahead.aids) != (back is not None):
            raise VlmError(
                f"ahead must be aided if and only if there is a decoder back, got {bool(ahead.aids)}; set aided"
            )
        if not 0 <= own <= 1:
            raise VlmError(f"own is a share in [0, 1], got {own}; the paper's is 0")
        self.encoder, self.ahead, self.back, self.own = encoder, ahead, back, own
        self.start = nn.Linear(dim, ahead.follow.hidden_size)

    def forward(self, pictures: Tensor, ways: Sequence[Steps]) -> tuple[Said, ...]:
        """Take the steps of given trees.

        Args:
            pictures: what the encoder takes.
            ways: steps of the trees and, if there is a backward decoder, of the flipped trees.

        Returns:
            What is said of each of `ways`.

        Raises:
            VlmError: another number of `ways`.
        """
        if len(ways) != 1 + (self.back is not None):
            raise VlmError(
                f"ways must be {1 + (self.back is not None)}, got {len(ways)}; the second is of flipped trees"
            )
        return self._both(pictures, ways, self.own if self.training else 0.0)

    def _both(self, pictures: Tensor, ways: Sequence[Steps] | Sequence[int], own: float) -> tuple[Said, ...]:
        features = self.encoder(pictures)
        start = self.start(features.mean((2, 3))).tanh()
        back = (self.back(features, start, ways[1], own=own),) if self.back is not None else ()
        return self.ahead(features, start, ways[0], *back, own=own), *back

    @torch.no_grad()
    def read(self, pictures: Tensor, *, longest: int = 200) -> tuple[list[Layout], ...]:
        """Read formulas.

        Args:
            pictures: what the encoder takes.
            longest: the most symbols of a formula.

        Returns:
            Layout trees as the forward decoder says, B of them; then the flipped ones, if there is a backward decoder.
        """
        return tuple(grow(said.steps) for said in self._both(pictures, (longest, longest), 0.0))


def loss(said: Sequence[Said], ways: Sequence[Steps], *, language: float = 0.1) -> Tensor:
    """Loss of one or both ways; each formula counts alike, whatever its length.

    Args:
        said: what decoders say.
        ways: the steps that were asked for.
        language: weight of the shared language model.

    Returns:
        Scalar.
    """
    total = torch.zeros(())
    for each, steps_ in zip(said, ways, strict=True):
        share = steps_.real / steps_.real.sum(1, keepdim=True) / len(steps_.real)
        target = steps_.symbols.flatten()
        for logits, weight in ((each.symbols, 1.0), (each.language, language)):
            total = total + weight * (F.cross_entropy(logits.flatten(0, 1), target, reduction="none") @ share.flatten())
        wrong = F.binary_cross_entropy_with_logits(each.branches, steps_.branches.to(each.branches), reduction="none")
        total = total + (wrong.sum(2) * share).sum()
    return total


def _plainly(query: Tensor, keys: Tensor, values: Tensor, weight: Tensor, past: Tensor, real: Tensor) -> Any:
    """`attend`, key after key."""
    contexts, shares = [], []
    for b in range(len(query)):
        scores = [(weight * torch.tanh(k + query[b] + p)).sum() for k, p in zip(keys[b], past[b], strict=True)]
        powers = [s.exp() * bool(there) for s, there in zip(scores, real[b], strict=True)]
        share = torch.stack([power / sum(powers) for power in powers])
        contexts.append(sum(s * v for s, v in zip(share, values[b], strict=True)))
        shares.append(share)
    return torch.stack(contexts), torch.stack(shares)


def _case(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": (2, 5), "keys": (2, 7, 5), "values": (2, 7, 3), "weight": (5,), "past": (2, 7, 5)}
    drawn: dict[str, Any] = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    real = torch.ones(2, 7, dtype=torch.bool)
    real[1, 4:] = False
    return drawn | {"real": real}


METHOD = Method(
    id=307,
    name="BAT-HMER",
    kind="operator",
    summary="Handwritten formulas read as layout trees, from the left with the help of a decoder from the right.",
    paper=Paper(
        "Bidirectional Trained Tree-Structured Decoder for Handwritten Mathematical Expression Recognition",
        "H. Cheng et al.",
        2023,
        "arXiv:2401.00435",
    ),
    cases={"attended": Operator(attend, _plainly, _case)},
)
