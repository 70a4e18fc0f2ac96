"""Token dropping: in every block of a vision transformer, the tokens that the class token attends to least go.

*Source*: Y. Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token
Reorganizations" (EViT), ICLR 2022 (arXiv:2202.07800), section 3.

    a = mean over heads of softmax(q_class Kᵀ / √D)         attention that a token receives, (B, N)
    the tokens with the largest a stay, in their order
    with `fuse` the others become one token: Σ a_i x_i / Σ a_i

By "random" the tokens that stay are drawn: the floor that every way of choosing has to beat.

Shapes: B batch, N tokens, C channels, D channels of a head.

*Differs from the paper*: tokens go in every block, a few each, not in three of them; `r` or `keep` say how many. A
network without a class token asks with its mean query. The fused token is one of those that are left.
*Provenance*: written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.nn.gather import take, top
from foveal.shrink.tokens.blocks import Fewer, Reduction, Seen

__all__ = ["Drop", "drop"]

CHOICES = ("attention", "random")


def drop(x: Tensor, sizes: Tensor | None, score: Tensor, gone: int, *, protect: int, fuse: bool = False) -> Fewer:
    """Let the tokens with the lowest scores go.

    Args:
        x: tokens, (B, N, C).
        sizes: number of patches that each stands for, (B, N); None if all are 1.
        score: score of each token, at least 0, (B, N); those of protected tokens do not matter.
        gone: number of tokens to lose, in 1…N − protect − 1.
        protect: number of tokens at the start that stay.
        fuse: whether those that go become one token, the last, which counts as one that is left.

    Returns:
        The rest, in their order.
    """
    batch, length = score.shape
    order = score.clone()
    order[:, :protect] = torch.inf
    chosen = top(order, length - gone - fuse)
    there = torch.full((batch, length), -1, device=x.device)
    there = there.scatter(1, chosen, torch.arange(chosen.shape[1], device=x.device).expand(batch, -1))
    y = take(x, chosen)
    left = None if sizes is None else sizes.gather(1, chosen)
    if fuse:
        weight = score * (there < 0)
        if sizes is not None and left is not None:
            left = torch.cat((left, (sizes * (there < 0)).sum(1, keepdim=True)), 1)
        fused = (weight / weight.sum(1, keepdim=True).clamp(min=1e-12))[:, None] @ x
        y = torch.cat((y, fused), 1)
        there = torch.where(there < 0, chosen.shape[1], there)
    return Fewer(y, left, lambda: there)


@dataclass(frozen=True)
class Drop(Reduction):
    """Token dropping of a vision transformer; see `counts` for the number of tokens after each block.

    Args:
        r: number of tokens that go in a block, on average; 0 changes nothing.
        keep: share of all tokens that is left after the last block, in (0, 1], instead of `r`.
        multiple: number whose multiples the token counts are rounded to.
        by: "attention", or "random" as a floor.
        fuse: whether the tokens that go become one.
        seed: of the random choice, the same for every call.

    Raises:
        ValueError: both or neither of `r` and `keep`, a number outside its range, or an unknown `by`.
    """

    by: str = "attention"
    fuse: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in CHOICES:
            raise ValueError(f"by must be one of {', '.join(CHOICES)}, got {self.by!r}")

    def reduce(self, x: Tensor, sizes: Tensor | None, seen: Seen, gone: int, *, protect: int) -> Fewer:
        """Let the least attended tokens go.

        Args:
            x: tokens after a block's attention, (B, N, C).
            sizes: number of patches that each stands for, (B, N); None if all are 1.
            seen: queries and keys of the attention.
            gone: number of tokens to lose.
            protect: number of tokens at the start that stay.

        Returns:
            The rest.
        """
        if self.by == "attention":
            score = seen.received(protect)
        else:
            draw = torch.Generator().manual_seed(self.seed + x.shape[1])
            score = torch.rand(x.shape[:2], generator=draw).to(x)
        return drop(x, sizes, score, gone, protect=protect, fuse=self.fuse)
