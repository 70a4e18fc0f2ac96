"""FastV: from layer K on, a decoder does without the visual tokens that the last token hardly attends to.

*Source*: L. Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
Vision-Language Models", ECCV 2024 (arXiv:2403.06764), section 4.

    φ_j = mean over heads of softmax(q_last · k_j / √D)     attention that token j receives in layer K
    the R% of the visual tokens with the lowest φ end after layer K; the others keep their positions

    FLOPs of a layer with n tokens, width d, MLP width m: 4 n d² + 2 n² d + 2 n d m

Shapes: B batch, N tokens, H heads of queries, G heads of keys, D channels of a head.

*Differs from the paper*: scores come from a product of one query with all keys, so that the layer's own attention stays
fused. The cache of later layers is shorter, where the authors' first code masks.
*Provenance*: written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.vlm.method import Cut, Seen, VlmError, count, share, top
from foveal.vlm.tiny import applied, question, reader

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FastV", "flops", "last_attention"]


def last_attention(queries: Tensor, keys: Tensor, *, last: Tensor, real: Tensor, scaling: float) -> Tensor:
    """Attention that the last token pays to each token, averaged over heads.

    Args:
        queries: queries, (B, H, N, D).
        keys: keys, (B, G, N, D); each serves H / G queries.
        last: index of the last token, (B,).
        real: tokens that are no padding, (B, N).
        scaling: factor on the products.

    Returns:
        Attention, (B, N), of sum 1 over the tokens up to the last one.
    """
    batch, heads, length, _ = queries.shape
    query = queries[torch.arange(batch, device=queries.device), :, last]
    # (B, G, H / G, D) and (B, G, N, D) to (B, H, N)
    grouped = query.unflatten(1, (keys.shape[1], heads // keys.shape[1]))
    scores = (grouped.float() @ keys.float().transpose(2, 3) * scaling).flatten(1, 2)
    sees = real & (torch.arange(length, device=last.device) <= last[:, None])
    return scores.masked_fill(~sees[:, None], -torch.inf).softmax(2).mean(1)


def flops(tokens: int, *, dim: int, hidden: int, matrices: int = 2) -> int:
    """The paper's count for one layer, which is one of multiply-adds.

    Args:
        tokens: number of tokens, n.
        dim: width, d.
        hidden: width of the MLP, m.
        matrices: matrices of the MLP; the paper counts 2, a LLaMA has 3.

    Returns:
        Multiply-adds.
    """
    return 4 * tokens * dim**2 + 2 * tokens**2 * dim + matrices * tokens * dim * hidden


@dataclass(frozen=True)
class FastV:
    """FastV.

    Args:
        keep: share of the visual tokens that stays, in (0, 1]; 1 − R.
        layer: number of layers that read all tokens, K, at least 1.
        rotary: whether scores are those of the model, with rotary positions.

    Raises:
        VlmError: a number outside its range.
    """

    keep: float = 0.5
    layer: int = 2
    rotary: bool = True

    def __post_init__(self) -> None:
        share(self.keep)
        if self.layer < 1:
            raise VlmError(f"layer must be at least 1, got {self.layer}; FastV reads the attention of the layer before")

    def cuts(self, depth: int) -> tuple[Cut, ...]:  # noqa: ARG002 - the same for every depth
        """Where tokens go.

        Args:
            depth: number of layers of the decoder.

        Returns:
            One cut, after K layers.
        """
        return (Cut(self.layer, scored=self.layer - 1, rotated=self.rotary),)

    def choose(self, seen: Seen, cut: int) -> Tensor:  # noqa: ARG002 - there is one
        """Which visual tokens stay.

        Args:
            seen: what there is to read.
            cut: number of the cut.

        Returns:
            Mask, (B, N).
        """
        assert seen.queries is not None
        assert seen.keys is not None
        score = last_attention(seen.queries, seen.keys, last=seen.last, real=seen.real, scaling=seen.scaling)
        return top(score, seen.visual, count(seen.total, self.keep))


METHOD = Method(
    id=77,
    name="FastV",
    kind="transform",
    summary="Behind its first layers a vision-language model drops the visual tokens that the last token ignores.",
    cases={
        "llava": Transform(
            applied(FastV(keep=0.5, layer=1)),
            reader,
            question,
            applied(FastV(keep=1.0, layer=1)),
            tolerance=0.0,
            twice="is accelerated already",
        )
    },
    paper=Paper(
        "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language "
        "Models",
        "L. Chen et al.",
        2024,
        "arXiv:2403.06764",
    ),
)
