"""Token merging: in every block of a vision transformer, the most similar pairs of tokens become one token each.

*Source*: D. Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv:2210.09461): bipartite soft matching
(section 3), proportional attention (equation 1).

    m = Σ_heads K                                           similarity of tokens: cosine of m, (B, N, D)
    A, B = every other token                                tokens of the prefix are in neither
    r tokens of A with the most similar partner in B merge with it
    x_j = Σ s_i x_i / Σ s_i,  s_j = Σ s_i                   s: number of patches that a token stands for, (B, N)
    attention = softmax(Q Kᵀ / √D + log s) V

Shapes: B batch, N tokens, M tokens after merging, C channels, D channels of a head.

*Differs from the paper*: the number of tokens after each block is rounded to a multiple of 16, because matrix products
of other sizes are 2 to 5% slower per token on a CPU; `multiple=1` is the paper's schedule. Weighted means are computed
as x_j + Σ s_i (x_i − x_j) / s_j, which touches r rows instead of N. Networks that do not read a class token get every
merged token back at all its places after the last block, so that means and maps weigh it by its size.
*Provenance*: written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from foveal.shrink.tokens.blocks import Fewer, Reduction, Seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Merge", "match", "merged"]


def match(
    keys: Tensor, r: int, *, protect: int = 0, worth: Tensor | None = None, redundancy: float = 1.0
) -> tuple[Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
    """Bipartite soft matching: which tokens merge.

    Args:
        keys: what similarity is the cosine of, (B, N, D).
        r: number of tokens to merge away, in 0…(N − protect) // 2.
        protect: number of tokens at the start that never merge, such as a class token.
        worth: what makes a token stay though it has a similar partner, (B, N); None takes similarity alone.
        redundancy: weight of the similarity beside `worth`.

    Returns:
        merge: function from tokens (B, N, C) and sizes (B, N), None if all are 1, to merged tokens (B, N − r, C) and
            their sizes. They stand in the order of the protected ones, A's, B's.
        unmerge: function from merged tokens, (B, N − r, C), to (B, N, C): each at all its places.

    Raises:
        ValueError: more tokens than there are pairs.
    """
    (batch, length), own = keys.shape[:2], protect
    first, second = own + own % 2, own + 1 - own % 2  # first tokens of A and of B
    ours, theirs = (length - first + 1) // 2, (length - second + 1) // 2
    if not 0 <= r <= min(ours, theirs):
        raise ValueError(
            f"r must be in 0…{min(ours, theirs)} for {length} tokens of which {own} are protected, got {r}; "
            "a layer can merge at most half"
        )
    if r == 0:
        return lambda x, sizes=None: (x, x.new_ones(x.shape[:2]) if sizes is None else sizes), lambda x: x
    keys = keys.detach()
    unit = keys / torch.linalg.vector_norm(keys, dim=2, keepdim=True)
    nearest, partner = (unit[:, first::2] @ unit[:, second::2].transpose(1, 2)).max(2)
    if worth is not None:
        nearest = redundancy * nearest - worth.detach()[:, first::2]
    order = nearest.argsort(1, descending=True)
    partner = partner.gather(1, order[:, :r])
    order = order * 2 + first
    places, source, target = torch.arange(length, device=keys.device), order[:, :r], partner * 2 + second
    kept, into = order[:, r:].sort(1).values, partner + (own + ours - r)
    if batch > 1:  # as rows of all pictures one after the other: copying rows is faster than gathering elements
        number = torch.arange(batch, device=keys.device)[:, None]
        above = number * length
        places, source, target, kept = places + above, source + above, target + above, kept + above
        into = into + number * (length - r)
    else:
        places = places[None]
    stay = torch.cat((places[:, :own], kept, places[:, second::2]), 1)
    rows, into, whole = torch.cat((stay.view(-1), source.reshape(-1), target.view(-1))), into.view(-1), stay.numel()

    def merge(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        taken = x.new_ones(rows.shape[0]) if sizes is None else sizes.reshape(-1).index_select(0, rows)
        total, given = taken[:whole], taken[whole : whole + into.shape[0]]
        total = total.index_add(0, into, given)
        share = (given / total.index_select(0, into))[:, None]
        taken = x.flatten(0, 1).index_select(0, rows)
        moved = (taken[whole : whole + into.shape[0]] - taken[whole + into.shape[0] :]).mul_(share)
        merged = taken[:whole].index_add_(0, into, moved)
        return merged.view(batch, length - r, -1), total.view(batch, length - r)

    def unmerge(x: Tensor) -> Tensor:
        where = torch.arange(whole, device=x.device)
        found = where.new_zeros(batch * length)
        found = found.index_copy(0, rows[:whole], where).index_copy(0, rows[whole : whole + into.shape[0]], into)
        return x.flatten(0, 1).index_select(0, found).view(batch, length, -1)

    return merge, unmerge


def merged(
    x: Tensor,
    sizes: Tensor | None,
    keys: Tensor,
    gone: int,
    *,
    protect: int = 0,
    worth: Tensor | None = None,
    redundancy: float = 1.0,
) -> Fewer:
    """Merge the pairs that `match` finds.

    Args:
        x: tokens, (B, N, C).
        sizes: number of patches that each stands for, (B, N); None if all are 1.
        keys: what similarity is the cosine of, (B, N, D).
        gone: number of tokens to merge away.
        protect: number of tokens at the start that never merge.
        worth: what makes a token stay though it has a similar partner, (B, N); None takes similarity alone.
        redundancy: weight of the similarity beside `worth`.

    Returns:
        Merged tokens.
    """
    merge, unmerge = match(keys, gone, protect=protect, worth=worth, redundancy=redundancy)
    fewer, total = merge(x, sizes)

    def into() -> Tensor:
        numbers = torch.arange(fewer.shape[1], device=x.device).expand(fewer.shape[0], -1)
        return unmerge(numbers[..., None]).squeeze(2)

    return Fewer(fewer, total, into)


@dataclass(frozen=True)
class Merge(Reduction):
    """Token merging of a vision transformer; see `counts` for the number of tokens after each block.

    Args:
        r: number of tokens that merge in a block, on average; 0 changes nothing.
        keep: share of all tokens that is left after the last block, in (0, 1], instead of `r`.
        multiple: number whose multiples the token counts are rounded to.
        proportional: whether attention weighs tokens by their sizes.

    Raises:
        ValueError: both or neither of `r` and `keep`, or a number outside its range.
    """

    loses: ClassVar[bool] = False

    proportional: bool = True

    @property
    def weighs(self) -> bool:  # type: ignore[override]
        """Whether attention weighs tokens by their sizes."""
        return self.proportional

    def reduce(self, x: Tensor, sizes: Tensor | None, seen: Seen, gone: int, *, protect: int) -> Fewer:
        """Merge the most similar pairs.

        Args:
            x: tokens after a block's attention, (B, N, C).
            sizes: number of patches that each stands for, (B, N); None if all are 1.
            seen: queries and keys of the attention.
            gone: number of tokens to merge away.
            protect: number of tokens at the start that never merge.

        Returns:
            Merged tokens.
        """
        return merged(x, sizes, seen.keys(), gone, protect=protect)
