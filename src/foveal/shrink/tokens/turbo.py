"""Turbo: the tokens that go are those that resemble another one and that the class token hardly attends to.

*Source*: C. Ju et al., "Turbo: Informativity-Driven Acceleration Plug-In for Vision-Language Large Models", ECCV 2024
(arXiv:2407.11717): information degree from mutual redundancy and semantic value.

    R_i = max_j cos(m_i, m_j)                   mutual redundancy: j in the other of two sets, every other token; (B, N)
    A_i = N · attention of the class token      semantic value, 1 for a token of average interest; (B, N)
    I_i = α A_i − ρ R_i                         information degree; tokens with the least of it go

m is the sum of the heads' keys. "merge": tokens of the first set go, each into the one it resembles most, as in token
merging. "drop": tokens of both sets go for good.

Shapes: B batch, N tokens, C channels, D channels of a head.

*Differs from the paper*: attention is multiplied by N, so that one α suits pictures of every size. The paper's other
form, R / A, and merging in generators, whose tokens are restored by the layer, are left out; networks that do not read
a class token get all tokens back after the last block. The paper sets α for each task; the default, 0.05, is not tuned:
a token of average interest stays before one of none whose cosine is up to 0.05 lower. Without a class token the mean
query asks.
*Provenance*: written from the paper; there is no code of the authors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.tokens.blocks import Fewer, Reduction, Seen
from foveal.shrink.tokens.drop import drop
from foveal.shrink.tokens.merge import merged

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Turbo", "redundancy_of"]

WAYS = ("merge", "drop")


def redundancy_of(keys: Tensor, *, protect: int = 0) -> Tensor:
    """Similarity of each token to its best match in the other set.

    Args:
        keys: what similarity is the cosine of, (B, N, D).
        protect: number of tokens at the start that are in neither set.

    Returns:
        Cosines, (B, N), −1 for protected tokens.
    """
    first, second = protect + protect % 2, protect + 1 - protect % 2
    unit = keys / torch.linalg.vector_norm(keys, dim=2, keepdim=True)
    # (B, |A|, |B|)
    alike = unit[:, first::2] @ unit[:, second::2].transpose(1, 2)
    found = keys.new_full(keys.shape[:2], -1.0)
    found[:, first::2], found[:, second::2] = alike.amax(2), alike.amax(1)
    return found


@dataclass(frozen=True)
class Turbo(Reduction):
    """Reduction of tokens by information degree; see `counts` for the number of tokens after each block.

    Args:
        r: number of tokens that go in a block, on average; 0 changes nothing.
        keep: share of all tokens that is left after the last block, in (0, 1], instead of `r`.
        multiple: number whose multiples the token counts are rounded to.
        semantic: α, weight of the attention received, at least 0; 0 with "merge" is token merging.
        redundancy: ρ, weight of the similarity, at least 0; 0 with "drop" is pruning by attention.
        how: "merge" or "drop".

    Raises:
        ValueError: both or neither of `r` and `keep`, a number outside its range, two weights of 0, or an unknown
            `how`.
    """

    semantic: float = 0.05
    redundancy: float = 1.0
    how: str = "merge"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how not in WAYS:
            raise ValueError(f"how must be one of {', '.join(WAYS)}, got {self.how!r}")
        if min(self.semantic, self.redundancy) < 0 or not max(self.semantic, self.redundancy) > 0:
            raise ValueError(
                "semantic and redundancy must be at least 0 and one of them above, "
                f"got {self.semantic} and {self.redundancy}; 0.05 and 1 suit a ViT"
            )

    @property
    def weighs(self) -> bool:  # type: ignore[override]
        """Whether attention weighs tokens by their sizes: where they merge."""
        return self.how == "merge"

    @property
    def loses(self) -> bool:  # type: ignore[override]
        """Whether tokens go for good."""
        return self.how == "drop"

    def reduce(self, x: Tensor, sizes: Tensor | None, seen: Seen, gone: int, *, protect: int) -> Fewer:
        """Let the tokens with the least information go.

        Args:
            x: tokens after a block's attention, (B, N, C).
            sizes: number of patches that each stands for, (B, N); None if all are 1.
            seen: queries and keys of the attention.
            gone: number of tokens to lose.
            protect: number of tokens at the start that stay.

        Returns:
            The rest.
        """
        worth = self.semantic * x.shape[1] * seen.received(protect)
        if self.how == "drop":
            # 1 − R, so that no score is below 0
            score = worth + self.redundancy * (1 - redundancy_of(seen.keys(), protect=protect))
            return drop(x, sizes, score, gone, protect=protect)
        return merged(x, sizes, seen.keys(), gone, protect=protect, worth=worth, redundancy=self.redundancy)


def _tiny(seed: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(img_size=20, patch_size=4, embed_dim=12, depth=3, num_heads=2, num_classes=3)


def _picture(seed: int) -> Tensor:
    return torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(seed))


METHOD = Method(
    id=334,
    name="Turbo",
    kind="transform",
    summary="Tokens that resemble another one and receive little attention merge or go, without training.",
    paper=Paper(
        "Turbo: Informativity-Driven Acceleration Plug-In for Vision-Language Large Models",
        "C. Ju et al.",
        2024,
        "arXiv:2407.11717",
    ),
    cases={
        how: Transform(
            Turbo(r=5, multiple=1, how=how).apply,
            _tiny,
            _picture,
            Turbo(r=0, how=how).apply,
            twice="model reduces tokens already",
        )
        for how in WAYS
    },
)
