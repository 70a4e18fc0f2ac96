"""Vision transformers whose blocks make tokens fewer, and the settings that every way of it shares.

    y, seen = attention(norm(x)),  x = x + y
    x = fewer tokens of x                      by what was seen in the attention
    x = x + mlp(norm(x))

Shapes: B batch, N tokens, M tokens after a reduction, C channels, D channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.gather import take
from foveal.runtime.route import Route, recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foveal.shrink.step import Inputs

__all__ = ["Fewer", "ReducedBlocks", "Reduction", "Seen", "attend", "token_counts"]


class Seen(NamedTuple):
    """Queries and keys of a block's attention.

    Args:
        q: queries, (B, heads, N, D).
        k: keys, (B, heads, N, D).
        scale: factor of their products.
    """

    q: Tensor
    k: Tensor
    scale: float

    def keys(self) -> Tensor:
        """What tokens are compared by: the sum of the heads' keys.

        Returns:
            Keys, (B, N, D).
        """
        return self.k.sum(1)

    def received(self, protect: int) -> Tensor:
        """Attention that each token receives from the first token, the class token, averaged over the heads.

        Args:
            protect: number of tokens at the start that are no patches; without any the mean query asks.

        Returns:
            Shares, (B, N); they sum to 1.
        """
        asks = self.q[:, :, :1] if protect else self.q.mean(2, keepdim=True)
        return ((asks * self.scale) @ self.k.transpose(2, 3)).softmax(3).mean(1)[:, 0]


class Fewer(NamedTuple):
    """Tokens after a reduction.

    Args:
        x: tokens, (B, M, C).
        sizes: number of patches that each stands for, (B, M); None if all are 1.
        into: function that tells the new number of each old token, (B, N) int64, −1 for a token that is gone.
    """

    x: Tensor
    sizes: Tensor | None
    into: Callable[[], Tensor]


def attend(attention: Any, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Seen]:
    """Attention in which a token counts as often as its size says, with the fused kernel.

    Args:
        attention: attention of a timm block.
        x: normalised tokens, (B, N, C).
        sizes: number of patches that each token stands for, (B, N); None if all are 1.

    Returns:
        Output, (B, N, C), and its queries and keys.
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
    return attention.proj_drop(attention.proj(y)), Seen(q, k, attention.scale)


def token_counts(wanted: Sequence[int], tokens: int, *, protect: int = 1, multiple: int = 1) -> list[int]:
    """Number of tokens after each block, rounded, and no fewer than matching allows.

    Args:
        wanted: numbers of tokens asked for, one for each block.
        tokens: number of tokens before the first block, N.
        protect: number of tokens that never merge.
        multiple: number whose multiples the counts are rounded to.

    Returns:
        Counts, never rising; at most half of the tokens go in a block.
    """
    found: list[int] = []
    for count in wanted:
        rounded = max(multiple, (count + multiple // 2) // multiple * multiple)
        tokens = min(tokens, max(rounded, tokens - (tokens - protect) // 2))
        found.append(tokens)
    return found


@dataclass(frozen=True)
class Reduction:
    """What every reduction of tokens shares: how many are left after each block. Give `r` or `keep`.

    Args:
        r: number of tokens that go in a block, on average; 0 changes nothing.
        keep: share of all tokens that is left after the last block, in (0, 1], instead of `r`; 1 changes nothing.
        multiple: number whose multiples the token counts are rounded to.

    Raises:
        ValueError: both or neither of `r` and `keep`, or a number outside its range.
    """

    weighs: ClassVar[bool] = False  # whether attention counts a token as often as its size says
    loses: ClassVar[bool] = True  # whether tokens go for good, so that `into` has -1

    r: int | None = None
    keep: float | None = None
    multiple: int = 16

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
            protect: number of tokens that always stay.

        Returns:
            Counts.

        Raises:
            ValueError: an `r` of more than half of the tokens.
        """
        most = (tokens - protect) // 2
        if self.r is not None and self.r > most:
            raise ValueError(
                f"r must be in 0…{most} for {tokens} tokens of which {protect} are protected, got {self.r}; "
                "at most half can go in a block"
            )
        if self.r == 0 or self.keep == 1:
            return [tokens] * depth
        if self.r is not None:
            wanted = [tokens - self.r * block for block in range(1, depth + 1)]
        else:
            lost = round(1000 * (1 - (self.keep or 0)))
            wanted = [tokens - tokens * lost * block // (1000 * depth) for block in range(1, depth + 1)]
        return token_counts(wanted, tokens, protect=protect, multiple=self.multiple)

    def reduce(self, x: Tensor, sizes: Tensor | None, seen: Seen, gone: int, *, protect: int) -> Fewer:
        """Make tokens fewer.

        Args:
            x: tokens after a block's attention, (B, N, C).
            sizes: number of patches that each stands for, (B, N); None if all are 1.
            seen: queries and keys of the attention.
            gone: number of tokens to lose, at least 1.
            protect: number of tokens at the start that stay.

        Returns:
            The rest.

        Raises:
            NotImplementedError: always; each way of reduction has its own.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how tokens become fewer; define reduce")

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:  # noqa: ARG002 - nothing is calibrated
        """Let a network make tokens fewer in its blocks, in place. It can be trained further and exported.

        Args:
            model: vision transformer of timm, such as a ViT or DeiT, with or without class and distillation tokens.
            data: not used.

        Returns:
            The same network.

        Raises:
            TypeError: a network whose blocks are not those of timm's ViT.
            ValueError: a network that reduces tokens already.
        """
        from timm.models.vision_transformer import Attention, Block

        blocks: Any = getattr(model, "blocks", None)
        if isinstance(blocks, ReducedBlocks):
            raise ValueError(
                f"model reduces tokens already, by {blocks.config}; apply {type(self).__name__} to a fresh network"
            )
        if not isinstance(blocks, nn.Sequential) or not len(blocks):
            raise TypeError(
                f"model must be a vision transformer of timm, got {type(model).__name__} without its blocks"
            )
        if wrong := next((b for b in blocks if type(b) is not Block or not isinstance(b.attn, Attention)), None):
            raise TypeError(
                f"blocks must be timm's Block with its Attention, got {type(wrong).__name__}; "
                "attention that needs places, such as windows, cannot run on fewer tokens"
            )
        own = int(getattr(model, "num_prefix_tokens", 0))
        reads_token = getattr(model, "global_pool", "") == "token" and getattr(model, "attn_pool", None) is None
        model.blocks = ReducedBlocks(blocks, self, protect=own, restore=not reads_token)
        return model


class ReducedBlocks(nn.Module):
    """The blocks of a vision transformer as one module that makes tokens fewer, (B, N, C) to (B, M, C).

    Names of parameters are those of the blocks, so state dicts fit. Not iterable: one by one, blocks lose no tokens.

    Args:
        blocks: blocks of timm's vision transformer; they are shared, not copied.
        config: how tokens become fewer.
        protect: number of tokens at the start that always stay.
        restore: whether the output has N tokens again: a merged one at all its places, one that went as it was when it
            went.
    """

    def __init__(self, blocks: nn.Module, config: Reduction, *, protect: int, restore: bool) -> None:
        super().__init__()
        self.depth, self.config, self.protect, self.restore = 0, config, protect, restore
        for name, block in blocks.named_children():
            self.add_module(name, block)
            self.depth += 1

    def forward(self, x: Tensor) -> Tensor:
        sizes: Tensor | None = None
        before: list[tuple[Tensor, Callable[[], Tensor]]] = []
        after: list[int] = []
        for number, block in enumerate(self._modules.values()):
            b: Any = block
            y, seen = attend(b.attn, b.norm1(x), sizes if self.config.weighs else None)
            x = x + b.drop_path1(b.ls1(y))
            if not number:
                counts = self.config.counts(x.shape[1], self.depth, protect=self.protect)
            if counts[number] < x.shape[1]:
                whole = x
                x, sizes, into = self.config.reduce(x, sizes, seen, x.shape[1] - counts[number], protect=self.protect)
                before.append((whole, into))
                after.append(number)
            x = x + b.drop_path2(b.ls2(b.mlp(b.norm2(x))))
        if (routes := recorded()) is not None:
            routes.append(self._route(counts, before, after))
        for whole, into in reversed(before) if self.restore else ():
            places = into()
            found = take(x, places.clamp(min=0) if self.config.loses else places)
            x = torch.where((places < 0)[..., None], whole, found) if self.config.loses else found
        return x

    def _route(self, counts: list[int], before: list[tuple[Tensor, Callable[[], Tensor]]], after: list[int]) -> Route:
        """Share of the MLPs' work that each patch got: a merged token's is divided among its patches."""
        first = before[0][0] if before else None
        batch, length = (1, counts[0]) if first is None else (first.shape[0], first.shape[1])
        places = torch.arange(length).expand(batch, -1)
        work, maps = torch.zeros(batch, length), dict(zip(after, before, strict=True))
        for number in range(self.depth):
            if number in maps:
                into = maps[number][1]().cpu()
                places = torch.where(places < 0, -1, into.gather(1, places.clamp(min=0)))
            sizes = torch.zeros(batch, counts[number]).scatter_add_(1, places.clamp(min=0), (places >= 0).float())
            work += torch.where(places < 0, 0.0, 1 / sizes.gather(1, places.clamp(min=0))) / self.depth
        patches = work[:, self.protect :].numpy()
        side = round(patches.shape[1] ** 0.5)
        shape = (side, side) if side * side == patches.shape[1] else (1, patches.shape[1])
        return Route(
            patches.reshape(batch, *shape).astype(np.float32), tuple(map(float, counts)), (float(length),) * self.depth
        )
