"""SliME: a global view through two gated adapters, and local patches as few tokens that the question chooses among.

*Source*: Y.-F. Zhang et al., "Beyond LLaVA-HD: Diving into High-Resolution Large Multimodal Models",
arXiv:2406.08487 (2024), section 2. With features x of the overview, N of them, and of P local patches,

    g      = softmax(x·Wg + ε ⊙ (softplus(x·Wn) + 0.01)),  ε ~ N(0, 1) in training, 0 otherwise      (N, 2)
    global = g₁ ⊙ f(x) + g₂ ⊙ f(A(x))            f: two linear layers; A: N learnt queries attend to x
    local  = f(Q(patch))                         Q: K = k² learnt queries attend to a patch, (P·K, C) in all
    s_n    = Σ_l cos(local_n, word_l)            over the words of the question, L of them
    p      = softmax((s + 0.1·ε) / τ)            ε in training only

The language model reads the global tokens, a separator and the fewest local tokens whose p sum to more than top_p, in
reading order over the whole picture:

    tokens = N + 1 + kept,  kept ≤ P·K;   multiply-adds of a prefill of n tokens: `prefill`.

Trained in turn, never jointly: f on the global view; A; Q on local patches alone; then everything (`stage_`).

*Differs from the paper*: `most` caps the tokens that are kept; the paper has top_p alone, and because p is nearly even
where few words are asked, 0.95 keeps about 95 %. Queries start at sine positions and are learnt from there; the
authors' have positions added each time. The resampler is LLaVA-UHD's, which adds the query to what it attends to and
ends in a linear layer. Noise of the gates has a matrix of its own, as in the paper's reference for it; the authors'
code takes Wg again. Padding words are left out of s, and the kept tokens say where they stood (`places`).
*Provenance*: written from the paper and from the behaviour of the authors' code (yfzhang114/SliME); which modules each
stage trains is that of its scripts. On 300 random cases `select` keeps the same tokens as that code's sampler, and
`gates` equals its to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.llava_uhd import Resampler, sines
from foveal.vlm.method import VlmError, top

__all__ = ["STAGES", "Slime", "Tokens", "gates", "prefill", "select", "similarity", "stage_"]

STAGES = ("projector", "attention", "local", "all")


def gates(x: Tensor, weight: Tensor, spread: Tensor, *, noise: Tensor | None = None) -> Tensor:
    """Shares of the adapters.

    Args:
        x: features, (B, N, C).
        weight: Wg, (C, adapters).
        spread: Wn, (C, adapters).
        noise: ε, (B, N, adapters); None for none.

    Returns:
        g, (B, N, adapters), 1 in all for each feature.
    """
    scores = x @ weight
    if noise is not None:
        scores = scores + noise * (F.softplus(x @ spread) + 0.01)
    return scores.softmax(-1)


def similarity(tokens: Tensor, words: Tensor, real: Tensor | None = None) -> Tensor:
    """How close each token is to the question.

    Args:
        tokens: local tokens, (B, N, C).
        words: embedded words of the question, (B, L, C).
        real: whether a word is no padding, (B, L); None if all are real.

    Returns:
        s, (B, N).
    """
    each = F.normalize(tokens, dim=-1) @ F.normalize(words, dim=-1).transpose(1, 2)  # (B, N, L)
    return (each if real is None else each * real[:, None]).sum(-1)


def select(scores: Tensor, *, top_p: float = 0.95, temperature: float = 1.0, most: int | None = None) -> Tensor:
    """The fewest tokens whose probabilities sum to more than a threshold.

    Args:
        scores: s, (B, N).
        top_p: threshold, in (0, 1]; 1 keeps all.
        temperature: τ.
        most: the most tokens of a row; None for no cap.

    Returns:
        Mask of the kept tokens, (B, N); at least one of each row. Of equal scores the earlier token is kept.

    Raises:
        VlmError: a threshold, temperature or cap outside its range.
    """
    if not 0 < top_p <= 1 or temperature <= 0 or (most is not None and most < 1):
        raise VlmError(
            f"top_p must be in (0, 1], temperature above 0 and most at least 1, got {top_p}, {temperature} and {most}; "
            f"0.95, 1 and None are the paper's"
        )
    given = (scores / temperature).softmax(-1)
    below = (given.sort(-1, descending=True).values.cumsum(-1) <= top_p).sum(-1)
    number = torch.full_like(below, scores.shape[1]) if top_p == 1 else (below + 1).clamp(max=scores.shape[1])
    return top(given, torch.ones_like(scores, dtype=torch.bool), number if most is None else number.clamp(max=most))


def prefill(tokens: int, *, depth: int = 32, dim: int = 4096, hidden: int = 11008, matrices: int = 3) -> int:
    """Multiply-adds of a decoder's layers that read a prompt.

    Args:
        tokens: n.
        depth: layers.
        dim: channels; queries, keys and values are as wide.
        hidden: channels within the feed-forward network.
        matrices: its matrices, 3 where it is gated.

    Returns:
        Multiply-adds; the sizes given by default are Vicuna-7B's.
    """
    return depth * (4 * tokens * dim**2 + 2 * tokens**2 * dim + matrices * tokens * dim * hidden)


@dataclass(frozen=True)
class Tokens:
    """What the language model reads of a picture.

    Args:
        embedded: tokens, (B, M, C); rows with fewer than M are padded behind.
        real: whether a token is no padding, (B, M).
        places: where each stood among all tokens of the picture, (B, M); 0 for padding.
    """

    embedded: Tensor
    real: Tensor
    places: Tensor


class Slime(nn.Module):
    """Features of an overview and of its local patches to tokens.

    Args:
        dim: channels of the features.
        out_channels: C, channels of the language model.
        overview: N, features of the overview; a square.
        queries: K, tokens of a local patch; a square.
        num_heads: attention heads of A and Q.
        top_p: share of the probability that kept tokens carry; read in the stage "all" only.
        temperature: τ.
        most: the most local tokens that are kept; None for no cap.

    Raises:
        VlmError: `overview` or `queries` that is no square.
    """

    stage: str

    def __init__(
        self, dim: int, out_channels: int, *, overview: int = 576, queries: int = 144, num_heads: int = 8,
        top_p: float = 0.95, temperature: float = 1.0, most: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if any(n < 1 or isqrt(n) ** 2 != n for n in (overview, queries)):
            raise VlmError(f"overview and queries must be squares, got {overview} and {queries}; 576 and 144 are")
        self.project = nn.Sequential(nn.Linear(dim, out_channels), nn.GELU(), nn.Linear(out_channels, out_channels))
        self.attend, self.compress = (Resampler(dim, dim, queries=n, num_heads=num_heads) for n in (overview, queries))
        for net in (self.attend, self.compress):
            side = isqrt(len(net.query))
            net.query.data.mul_(0.1).add_(sines(side, side, dim))
        self.gate, self.spread = (nn.Parameter(torch.zeros(dim, 2)) for _ in range(2))
        self.separator = nn.Parameter(torch.randn(out_channels) * 0.02)
        self.top_p, self.temperature, self.most, self.stage = top_p, temperature, most, "all"

    def overview(self, x: Tensor) -> Tensor:
        """Features of the overview, (B, N, dim), to global tokens, (B, N, C)."""
        if self.stage == "projector":
            return self.project(x)  # type: ignore[no-any-return]
        side = isqrt(x.shape[1])
        attended: Tensor = self.project(self.attend(x, (side, side)))
        if self.stage == "attention":
            return attended
        noise = torch.randn(*x.shape[:2], 2, device=x.device, dtype=x.dtype) if self.training else None
        share = gates(x, self.gate, self.spread, noise=noise)
        mixed: Tensor = share[..., :1] * self.project(x) + share[..., 1:] * attended
        return mixed

    def local(self, parts: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compress local patches.

        Args:
            parts: features, (B, rows · columns, h·w, dim), h = w.
            grid: rows and columns of local patches.

        Returns:
            Tokens in reading order over the whole picture, (B, rows · columns · K, C).

        Raises:
            VlmError: another number of patches than the grid's.
        """
        if parts.shape[1] != grid[0] * grid[1]:
            raise VlmError(f"a grid of {grid} has {grid[0] * grid[1]} local patches, got {parts.shape[1]}; cut anew")
        side, k = isqrt(parts.shape[2]), isqrt(len(self.compress.query))
        found = self.project(self.compress(parts.flatten(0, 1), (side, side)))
        # (B, rows, columns, k, k, C) to rows, k, columns, k
        found = found.unflatten(1, (k, k)).unflatten(0, (len(parts), *grid)).transpose(2, 3)
        return found.flatten(1, 4)  # type: ignore[no-any-return]

    def read(self, overview: Tensor, local: Tensor, words: Tensor, real: Tensor | None = None) -> Tokens:
        """Choose for a question.

        Args:
            overview: global tokens, (B, N, C).
            local: local tokens, (B, P·K, C).
            words: embedded words of the question, (B, L, C).
            real: whether a word is no padding, (B, L); None if all are real.

        Returns:
            The tokens to read.
        """
        scores = similarity(local, words, real)
        if self.training:
            scores = scores + 0.1 * torch.randn_like(scores)
        return self.gather(overview, local, scores)

    def gather(self, overview: Tensor, local: Tensor, scores: Tensor) -> Tokens:
        """Put together what the language model reads, by given scores of the local tokens, (B, P·K)."""
        if self.stage in ("projector", "attention"):
            local, scores = local[:, :0], scores[:, :0]
        if self.stage == "all":
            chosen = select(scores, top_p=self.top_p, temperature=self.temperature, most=self.most)
        else:
            chosen = torch.ones_like(scores, dtype=torch.bool)
        head = overview[:, : 0 if self.stage == "local" else None]
        head = torch.cat((head, self.separator.expand(len(head), 1, -1)), 1)
        width = int(chosen.sum(1).max()) if chosen.shape[1] else 0
        order = chosen.int().argsort(dim=1, descending=True, stable=True)[
            :, :width
        ]  # kept ones first, in reading order
        kept = chosen.gather(1, order)
        first = overview.shape[1] + 1
        before = torch.arange(first - head.shape[1], first, device=local.device).expand(len(head), -1)
        return Tokens(
            torch.cat((head, local.gather(1, order[..., None].expand(-1, -1, local.shape[2])) * kept[..., None]), 1),
            torch.cat((torch.ones_like(before, dtype=torch.bool), kept), 1),
            torch.cat((before, (order + first) * kept), 1),
        )


def stage_(model: Slime, language: nn.Module, name: str) -> None:
    """Set what is read and what is trained.

    Args:
        model: SliME.
        language: language model; trained in the last stage only.
        name: one of `STAGES`.

    Raises:
        VlmError: another name.
    """
    if name not in STAGES:
        raise VlmError(f"stage must be one of {', '.join(STAGES)}, got {name!r}; they follow in this order")
    model.stage = name
    trained: dict[str, nn.Module] = {"projector": model.project, "attention": model.attend, "local": model.compress}
    for network in (model, language):
        network.requires_grad_(name == "all")
    if name in trained:
        trained[name].requires_grad_(True)


def _case(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "tokens": torch.randn(2, 7, 6, generator=generator),
        "words": torch.randn(2, 3, 6, generator=generator),
    }


def _chosen(tokens: Tensor, words: Tensor) -> Tensor:
    return tokens * select(similarity(tokens, words), top_p=0.6)[..., None]


def _plainly(tokens: Tensor, words: Tensor) -> Tensor:
    """`_chosen`, token after token."""
    found = torch.zeros_like(tokens)
    for row, (given, asked) in enumerate(zip(tokens.detach(), words.detach(), strict=True)):
        scores = [sum(float(t @ w / (t.norm() * w.norm())) for w in asked.unbind()) for t in given.unbind()]
        likely = torch.tensor(scores, dtype=torch.float64).exp()
        likely, total = likely / likely.sum(), 0.0
        for place in sorted(range(len(given)), key=lambda n: -scores[n]):
            found[row, place] = tokens[row, place]
            total += float(likely[place])
            if total > 0.6:
                break
    return found


METHOD = Method(
    id=179,
    name="SliME",
    kind="operator",
    summary="A global view through two gated adapters, and local patches as few tokens that the question chooses.",
    paper=Paper(
        "Beyond LLaVA-HD: Diving into High-Resolution Large Multimodal Models",
        "Y.-F. Zhang et al.",
        2024,
        "arXiv:2406.08487",
    ),
    cases={"selected": Operator(_chosen, _plainly, _case)},
)
