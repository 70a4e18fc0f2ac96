"""BERT4Rec: the next item of a sequence is what a bidirectional transformer writes over a mask at its end.

*Source*: F. Sun, J. Liu et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
Transformer", 2019 (arXiv:1904.06690), section 3. For a sequence of N items v_1 … v_N out of V:

    h⁰_t = E[v_t] + P[t]                                                     (N, D)
    hˡ   = LN(a + FFN(a)),  a = LN(hˡ⁻¹ + MultiHead(hˡ⁻¹)),  FFN(a) = W₂ GELU(W₁ a)
    p_t  = softmax(E GELU(W hᴸ_t + b) + c)                                   (V,)

Training (the Cloze task) replaces a share ρ of the items by the token [mask] and asks for them: the mean of
-log p_t[v_t] over the masked places t. The last item alone is masked in a part of the sequences, as that is what is
asked later: the sequence moves one place to the left and [mask] comes last. NDCG@k of one wanted item at rank r is
1 / log₂(r + 1) if r ≤ k, else 0; the hit rate HR@k is 1 if r ≤ k.

*Differs from the paper*: ranks are among all items, not among a hundred drawn by popularity. Post-norm layers are
PyTorch's.
*Provenance*: written from the paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Procedure
from foveal.record import Method, Paper

__all__ = ["BERT4Rec", "cloze_loss", "hit_rate", "masked", "ndcg", "ranks"]


class BERT4Rec(nn.Module):
    """Scores of all items at every place of a sequence.

    Args:
        items: number of items, V; their indices are 0 to V - 1, and V stands for the mask.
        length: largest number of places, N.
        dim: D.
        depth: number of layers, L.
        num_heads: attention heads.
        drop: dropout.
        causal: whether a place sees only itself and the places before it, as in unidirectional models.

    Raises:
        ValueError: fewer than two items.
    """

    def __init__(
        self,
        items: int,
        length: int,
        *,
        dim: int = 64,
        depth: int = 2,
        num_heads: int = 2,
        drop: float = 0.1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if items < 2:
            raise ValueError(f"at least two items are wanted, got {items}")
        self.items, self.length, self.causal = items, length, causal
        self.embed = nn.Embedding(items + 1, dim)
        self.position = nn.Parameter(torch.empty(length, dim))
        layer = nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, drop, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.project, self.bias = nn.Linear(dim, dim), nn.Parameter(torch.zeros(items))
        self.drop = nn.Dropout(drop)
        for weight in (self.embed.weight, self.position):
            nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)

    def forward(self, sequence: Tensor) -> Tensor:
        """Scores.

        Args:
            sequence: items, (B, n) int64 with n up to N; `items` is the mask. Short sequences take the last positions.

        Returns:
            (B, n, V).

        Raises:
            ValueError: the sequence is longer than N.
        """
        n = sequence.shape[1]
        if n > self.length:
            raise ValueError(f"at most {self.length} places are wanted, got {n}; keep the last ones")
        h = self.drop(self.embed(sequence) + self.position[self.length - n :])
        unseen = nn.Transformer.generate_square_subsequent_mask(n, sequence.device) if self.causal else None
        h = self.layers(h, mask=unseen, is_causal=self.causal)
        return F.gelu(self.project(h)) @ self.embed.weight[: self.items].mT + self.bias

    def next_scores(self, sequence: Tensor) -> Tensor:
        """Scores of what comes after a sequence.

        Args:
            sequence: items, (B, n) int64; the first are left out if it is too long.

        Returns:
            (B, V).
        """
        if self.causal:
            return self(sequence[:, -self.length :])[:, -1]
        end = torch.full_like(sequence[:, :1], self.items)
        return self(torch.cat([sequence, end], 1)[:, -self.length :])[:, -1]


def masked(
    sequence: Tensor, mask: int, *, share: float = 0.2, last: float = 0.1, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The Cloze task: some items replaced by the mask, at least one in each sequence.

    Args:
        sequence: items, (B, N) int64.
        mask: index of the mask.
        share: ρ, in (0, 1).
        last: share of the sequences in which the last item alone is replaced.
        generator: of the random numbers.

    Returns:
        The sequence with masks, and which places are masked, (B, N) bool.

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    drawn = torch.rand(sequence.shape, generator=generator).to(sequence.device)
    hidden = (drawn < share) | (drawn == drawn.amin(1, keepdim=True))
    end = torch.zeros_like(hidden)
    end[:, -1] = True
    only_last = torch.rand(len(sequence), 1, generator=generator).to(sequence.device) < last
    hidden = torch.where(only_last, end, hidden)
    return sequence.masked_fill(hidden, mask), hidden


def cloze_loss(
    model: BERT4Rec,
    sequence: Tensor,
    *,
    share: float = 0.2,
    last: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cross-entropy of masked items; for a causal model, of each item from those before it.

    Args:
        model: model.
        sequence: items, (B, N) int64.
        share: ρ.
        last: share of the sequences in which the last item alone is masked.
        generator: of the random numbers.

    Returns:
        Loss, ().
    """
    if model.causal:
        return F.cross_entropy(model(sequence[:, :-1]).flatten(0, 1), sequence[:, 1:].flatten())
    shown, hidden = masked(sequence, model.items, share=share, last=last, generator=generator)
    return F.cross_entropy(model(shown)[hidden], sequence[hidden])


def ranks(scores: Tensor, wanted: Tensor) -> Tensor:
    """Rank of the wanted item among all; of equal scores it comes last.

    Args:
        scores: (B, V).
        wanted: (B,) int64.

    Returns:
        Ranks from 1, (B,) int64.
    """
    return (scores >= scores.gather(1, wanted[:, None])).sum(1)


def ndcg(places: Tensor, k: int = 10) -> float:
    """Mean discounted gain of one wanted item a sequence.

    Args:
        places: ranks from 1, (B,).
        k: number of items that are shown.

    Returns:
        In [0, 1].
    """
    return float(torch.where(places <= k, 1 / torch.log2(places + 1.0), 0.0).mean())


def hit_rate(places: Tensor, k: int = 10) -> float:
    """Share of wanted items that are shown.

    Args:
        places: ranks from 1, (B,).
        k: number of items that are shown.

    Returns:
        In [0, 1].
    """
    return float((places <= k).float().mean())


def _one_loss(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BERT4Rec(5, 6, dim=8, num_heads=2).eval()
    return cloze_loss(model, torch.randint(5, (3, 6), generator=generator), generator=generator).detach()


METHOD = Method(
    id=340,
    name="BERT4Rec",
    kind="procedure",
    summary="A bidirectional transformer fills in masked items, and predicts the next one over a mask at the end.",
    paper=Paper(
        "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer",
        "F. Sun et al.",
        2019,
        "arXiv:1904.06690",
    ),
    cases={"cloze": Procedure(_one_loss, empty=lambda: BERT4Rec(0, 4), refuses="at least two items are wanted, got 0")},
)
