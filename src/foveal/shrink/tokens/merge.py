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
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foveal.shrink.step import Inputs

__all__ = ["Merge", "MergedBlocks", "attend", "match", "token_counts"]


def match(
    keys: Tensor, r: int, *, protect: int = 0
) -> tuple[Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
    """Bipartite soft matching: which tokens merge.

    Args:
        keys: what similarity is the cosine of, (B, N, D).
        r: number of tokens to merge away, in 0…(N − protect) // 2.
        protect: number of tokens at the start that never merge, such as a class token.

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


def attend(attention: Any, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention in which a token counts as often as its size says, with the fused kernel.

    Args:
        attention: attention of a timm block.
        x: normalised tokens, (B, N, C).
        sizes: number of patches that each token stands for, (B, N); None if all are 1.

    Returns:
        Output, (B, N, C), and what tokens are matched by: the sum of the heads' keys, (B, N, D).
    """
    batch, length, _ = x.shape
    q, k, v = attention.qkv(x).view(batch, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    mask = None if sizes is None else sizes.log()[:, None, None]
    dropout = attention.attn_drop.p if attention.training else 0.0
    # (B, heads, N, D) to (B, N, C)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2).flatten(2)
    y = attention.norm(y)
    if getattr(attention, "gate", None) is not None:
        y = y * attention.gate(x).sigmoid()
    return attention.proj_drop(attention.proj(y)), k.sum(1)


def token_counts(wanted: Sequence[int], tokens: int, *, protect: int = 1, multiple: int = 1) -> list[int]:
    """Number of tokens after each block, rounded, and no fewer than matching allows.

    Args:
        wanted: numbers of tokens asked for, one for each block.
        tokens: number of tokens before the first block, N.
        protect: number of tokens that never merge.
        multiple: number whose multiples the counts are rounded to.

    Returns:
        Counts, never rising; at most half of the tokens merge in a block.
    """
    found: list[int] = []
    for count in wanted:
        rounded = max(multiple, (count + multiple // 2) // multiple * multiple)
        tokens = min(tokens, max(rounded, tokens - (tokens - protect) // 2))
        found.append(tokens)
    return found


class MergedBlocks(nn.Module):
    """The blocks of a vision transformer as one module that merges tokens, (B, N, C) to (B, M, C).

    Names of parameters are those of the blocks, so state dicts fit. Not iterable: run one by one, blocks cannot merge.

    Args:
        blocks: blocks of timm's vision transformer; they are shared, not copied.
        config: how many tokens merge.
        protect: number of tokens at the start that never merge.
        restore: whether the output has N tokens again, each merged one at all its places.
    """

    def __init__(self, blocks: nn.Module, config: Merge, *, protect: int, restore: bool) -> None:
        super().__init__()
        self.depth, self.config, self.protect, self.restore = 0, config, protect, restore
        for name, block in blocks.named_children():
            self.add_module(name, block)
            self.depth += 1

    def forward(self, x: Tensor) -> Tensor:
        sizes, undo = None, []
        counts = self.config.counts(x.shape[1], self.depth, protect=self.protect)
        for block, count in zip(self._modules.values(), counts, strict=True):
            b: Any = block
            y, keys = attend(b.attn, b.norm1(x), sizes if self.config.proportional else None)
            x = x + b.drop_path1(b.ls1(y))
            if count < x.shape[1]:
                merge, unmerge = match(keys, x.shape[1] - count, protect=self.protect)
                x, sizes = merge(x, sizes)
                undo.append(unmerge)
            x = x + b.drop_path2(b.ls2(b.mlp(b.norm2(x))))
        for unmerge in reversed(undo) if self.restore else ():
            x = unmerge(x)
        return x


@dataclass(frozen=True)
class Merge:
    """Token merging of a vision transformer; see `counts` for the number of tokens after each block.

    Args:
        r: number of tokens that merge in a block, on average; 0 changes nothing.
        keep: share of all tokens that is left after the last block, in (0, 1], instead of `r`.
        multiple: number whose multiples the token counts are rounded to.
        proportional: whether attention weighs tokens by their sizes.

    Raises:
        ValueError: both or neither of `r` and `keep`, or a number outside its range.
    """

    r: int | None = None
    keep: float | None = None
    multiple: int = 16
    proportional: bool = True

    def __post_init__(self) -> None:
        if (self.r is None) == (self.keep is None):
            raise ValueError(f"give exactly one of r and keep, got r={self.r} and keep={self.keep}; r=8 suits a ViT-S")
        if self.r is not None and self.r < 0:
            raise ValueError(f"r must be at least 0, got {self.r}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {self.keep}; 0.5 leaves half of all tokens at the end")
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, got {self.multiple}; 1 rounds nothing")

    def counts(self, tokens: int, depth: int, *, protect: int = 1) -> list[int]:
        """Number of tokens after each block.

        Args:
            tokens: number of tokens before the first block.
            depth: number of blocks.
            protect: number of tokens that never merge.

        Returns:
            Counts.

        Raises:
            ValueError: an `r` of more than half of the tokens.
        """
        most = (tokens - protect) // 2
        if self.r is not None and self.r > most:
            raise ValueError(
                f"r must be in 0…{most} for {tokens} tokens of which {protect} are protected, got {self.r}; "
                "a layer can merge at most half"
            )
        if self.r == 0 or self.keep == 1:
            return [tokens] * depth
        if self.r is not None:
            wanted = [tokens - self.r * block for block in range(1, depth + 1)]
        else:
            lost = round(1000 * (1 - (self.keep or 0)))
            wanted = [tokens - tokens * lost * block // (1000 * depth) for block in range(1, depth + 1)]
        return token_counts(wanted, tokens, protect=protect, multiple=self.multiple)

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:  # noqa: ARG002 - nothing is calibrated
        """Let a network merge tokens in its blocks, in place. It can be trained further and exported.

        Args:
            model: vision transformer of timm, such as a ViT or DeiT, with or without class and distillation tokens.
            data: not used.

        Returns:
            The same network.

        Raises:
            TypeError: a network whose blocks are not those of timm's ViT.
            ValueError: a network that merges tokens already.
        """
        from timm.models.vision_transformer import Attention, Block

        blocks: Any = getattr(model, "blocks", None)
        if isinstance(blocks, MergedBlocks):
            raise ValueError("model merges tokens already; apply Merge to a fresh network, with a larger r")
        if not isinstance(blocks, nn.Sequential) or not len(blocks):
            raise TypeError(
                f"model must be a vision transformer of timm, got {type(model).__name__} without its blocks"
            )
        if wrong := next((b for b in blocks if type(b) is not Block or not isinstance(b.attn, Attention)), None):
            raise TypeError(
                f"blocks must be timm's Block with its Attention, got {type(wrong).__name__}; "
                "attention that needs places, such as windows, cannot run on merged tokens"
            )
        own = int(getattr(model, "num_prefix_tokens", 0))
        reads_token = getattr(model, "global_pool", "") == "token" and getattr(model, "attn_pool", None) is None
        model.blocks = MergedBlocks(blocks, self, protect=own, restore=not reads_token)
        return model
