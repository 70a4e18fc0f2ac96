"""AVG-LLaVA: visual tokens in grids from fine to coarse, one of which a router chooses by the picture and the question.

*Source*: Z. Lan et al., "AVG-LLaVA: An Efficient Large Multimodal Model with Adaptive Visual Granularity", Findings of
ACL 2025 (arXiv:2410.02745), section 3. Of x (B, V, h·w, C), visual tokens of V views of a picture (one, or an overview
and slices of it), and the instruction's tokens, words (B, L, C):

    x₁ = x,  xₖ₊₁ = average of pairs, along rows and along columns in turn        24×24, 24×12, 12×12, 12×6, 6×6
    w = the 32 words of the largest mean cos(word, token of the first view)
    z = layer([x_K; …; x₁; w])                                                    a layer of a transformer
    logits = norm(mean over views of Σᵢ vᵢ · mlp(zᵢ))                              (B, K); one learnt vote v a token

The language model is first trained on all grids. Then it is frozen and ranks them: with Lₖ its loss on the answer from
grid k, sorted so that L₁ ≤ L₂ ≤ …, and sₖ = log softmax(logits)ₖ, the router minimises (RGLF)

    rank = Σ_d mean_i max(0, s_{i+d} − s_i + margin · d · (L_{i+d} − L_i)),   loss = rank + 0.1 · (−s₁)

*Differs from the paper*: the authors' layer is called with views and tokens swapped, so that tokens attend to the same
place of other views, and to nothing if there is one; here the tokens of a view attend to each other and to the words.
`slack` is not in the paper: of the grids whose loss is within it of the least, the coarsest ranks first; 0 is the
paper's way.
*Provenance*: written from the paper and the authors' configuration (DeepLearnXMU/AVG-LLaVA). Grids and loss equal those
of the authors' code to 1e-6.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Router", "filtered", "rglf", "scaled", "shapes"]


def shapes(shape: tuple[int, int], count: int = 5) -> list[tuple[int, int]]:
    """Rows and columns of the grids.

    Args:
        shape: those of the finest grid.
        count: number of grids, K.

    Returns:
        Shapes, from fine to coarse.

    Raises:
        VlmError: a side that cannot be halved so often.
    """
    down, along = (count - 1) // 2, count // 2
    if count < 1 or shape[0] % 2**down or shape[1] % 2**along:
        raise VlmError(
            f"{count} grids halve rows {down} times and columns {along} times, got {shape[0]}×{shape[1]}; "
            "take fewer grids"
        )
    return [(shape[0] >> k // 2, shape[1] >> (k + 1) // 2) for k in range(count)]


def scaled(x: Tensor, shape: tuple[int, int], count: int = 5) -> list[Tensor]:
    """Visual tokens in all grids.

    Args:
        x: tokens in reading order, (…, h·w, C).
        shape: h and w.
        count: number of grids, K.

    Returns:
        Tokens of each grid, (…, h_k · w_k, C), from fine to coarse.
    """
    made = [x]
    for k, (rows, columns) in enumerate(shapes(shape, count)[1:]):
        pairs = (rows, columns, 2) if k % 2 == 0 else (rows, 2, columns)
        axis = -2 if k % 2 == 0 else -3
        # (…, h·w, C) to (…, h, w/2, 2, C) or (…, h/2, 2, w, C); -1 is C
        made.append(made[-1].unflatten(-2, pairs).mean(axis).flatten(-3, -2))
    return made


def filtered(words: Tensor, visual: Tensor, count: int, real: Tensor | None = None) -> Tensor:
    """The words that are most like the picture.

    Args:
        words: tokens of the instruction, (B, L, C).
        visual: visual tokens, (B, N, C).
        count: how many words.
        real: whether a word is no padding, (B, L).

    Returns:
        Words by descending similarity, zeros where there are fewer, (B, count, C).
    """
    mean = F.normalize(visual, dim=-1).mean(1, keepdim=True)
    similar = (F.normalize(words, dim=-1) * mean).sum(-1)  # the mean of cosines, (B, L)
    if real is not None:
        words, similar = words * real[..., None], similar.masked_fill(~real, -torch.inf)
    best = similar.argsort(dim=1, descending=True, stable=True)[:, :count]
    found = words.gather(1, best[..., None].expand(-1, -1, words.shape[2]))
    return F.pad(found, (0, 0, 0, count - found.shape[1]))


class Router(nn.Module):
    """Votes for one of the grids.

    Args:
        dim: channels of the tokens, C.
        shape: rows and columns of the finest grid.
        count: number of grids, K.
        words: number of words that it reads.
        num_heads: attention heads.
        drop: dropout of the layer.
    """

    def __init__(
        self,
        dim: int,
        shape: tuple[int, int] = (24, 24),
        *,
        count: int = 5,
        words: int = 32,
        num_heads: int = 8,
        drop: float = 0.1,
    ) -> None:
        super().__init__()
        self.shape, self.words = shape, words
        self.tokens = tuple(math.prod(grid) for grid in shapes(shape, count))
        self.layer = nn.TransformerEncoderLayer(dim, num_heads, dim, drop, batch_first=True)
        linears = nn.Linear(dim, dim), nn.Linear(dim, count)
        for linear in linears:
            nn.init.kaiming_normal_(linear.weight)
        self.mlp = nn.Sequential(linears[0], nn.GELU(), linears[1])
        self.votes = nn.Parameter(torch.randn(sum(self.tokens) + words))
        self.norm = nn.LayerNorm(count)

    def forward(self, x: Tensor, words: Tensor, real: Tensor | None = None) -> Tensor:
        """Visual tokens, (B, V, h·w, C), words, (B, L, C), and whether they are no padding, (B, L), to logits, (B, K).

        The first logit is that of the finest grid.
        """
        views = x.shape[1]
        read = filtered(words, x[:, 0], self.words, real).repeat_interleave(views, 0)
        grids = scaled(x.flatten(0, 1), self.shape, len(self.tokens))
        z = self.mlp(self.layer(torch.cat((*grids[::-1], read), 1)))  # (B · V, N, K)
        logits: Tensor = self.norm((self.votes @ z).unflatten(0, (-1, views)).mean(1))
        return logits


def rglf(logits: Tensor, losses: Tensor, *, margin: float = 1.0, first: float = 0.1, slack: float = 0.0) -> Tensor:
    """Loss of a router that ranks grids as the language model does.

    Args:
        logits: of the router, (B, K), from fine to coarse.
        losses: of the frozen language model on its answer from each grid, (B, K).
        margin: by which scores of ranks that follow each other differ, for a difference of losses of 1.
        first: weight of the cross-entropy with the best grid.
        slack: difference of losses in nats that does not count, for which coarser grids rank first.

    Returns:
        Scalar.

    Raises:
        VlmError: losses of other grids than the logits'.
    """
    if logits.shape != losses.shape:
        raise VlmError(
            f"losses must be one a grid, {tuple(logits.shape)}, got {tuple(losses.shape)}; run the model on all"
        )
    if slack:
        least = losses.amin(1, keepdim=True)
        losses = torch.where(losses <= least + slack, least, losses)
    # of equal losses the coarser grid first
    order = losses.flip(1).argsort(dim=1, stable=True)
    ranked, score = losses.flip(1).gather(1, order), logits.flip(1).log_softmax(1).gather(1, order)
    rank = logits.new_zeros(())
    for d in range(1, logits.shape[1]):
        gap = margin * d * (ranked[:, d:] - ranked[:, :-d])
        rank = rank + (score[:, d:] - score[:, :-d] + gap).clamp_min(0).mean()
    return rank - first * score[:, 0].mean()


def _grids(x: Tensor) -> Sequence[Tensor]:
    return tuple(scaled(x, (4, 8), 5))


def _pooled(x: Tensor) -> Sequence[Tensor]:
    picture = x.transpose(1, 2).unflatten(2, (4, 8))
    kernels = ((1, 1), (1, 2), (2, 2), (2, 4), (4, 4))
    return tuple(F.avg_pool2d(picture, kernel).flatten(2).transpose(1, 2) for kernel in kernels)


def _pair_by_pair(logits: Tensor, losses: Tensor) -> Tensor:
    """`rglf` for each pair of ranks."""
    total, (rows, count) = logits.new_zeros(()), logits.shape
    for row in range(rows):
        score, order = logits[row].log_softmax(0), losses[row].argsort().tolist()
        total = total - 0.1 * score[order[0]] / rows
        for i in range(count):
            for j in range(i + 1, count):
                gap = (j - i) * (losses[row, order[j]] - losses[row, order[i]])
                total = total + (score[order[j]] - score[order[i]] + gap).clamp_min(0) / (rows * (count - j + i))
    return total


def _tokens(seed: int) -> dict[str, Any]:
    return {"x": torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(seed))}


def _ranked(seed: int) -> dict[str, Any]:
    logits, losses = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed))
    return {"logits": logits, "losses": losses.exp()}


METHOD = Method(
    id=80,
    name="AVG-LLaVA",
    kind="operator",
    summary="Visual tokens in grids from fine to coarse, one chosen by a router that the model's own answers train.",
    paper=Paper(
        "AVG-LLaVA: An Efficient Large Multimodal Model with Adaptive Visual Granularity",
        "Z. Lan et al.",
        2024,
        "arXiv:2410.02745",
    ),
    cases={"grids": Operator(_grids, _pooled, _tokens), "ranking": Operator(rglf, _pair_by_pair, _ranked)},
)
