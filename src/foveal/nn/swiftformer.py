"""SwiftFormer's additive attention: all queries are pooled into one, which multiplies every key; linear in the tokens.

*Source*: A. Shaker et al., "SwiftFormer: Efficient Additive Attention for Transformer-based Real-time Mobile Vision
Applications", ICCV 2023 (arXiv:2303.15446), section 3.2. For tokens x: (B, N, C)

    Q = unit(x W_q),  K = unit(x W_k)            (B, N, C), each token divided by its length
    α = unit(Q w_a / √C)                         (B, N), divided by the length over all tokens
    q = Σ_n α_n Q_n                              (B, C), the global query
    y = T(q ∘ K) + Q                             (B, N, C), T linear

and a linear layer at the end. There is no map of N×N scores and no value: T takes the place of their product.

*Differs from the paper*: nothing in what is computed. As in the authors' code, α is divided by its length over the
tokens, so that its weights may be negative and the factor 1/√C cancels. Their several heads only widen Q and K and are
never used.

*Provenance*: written from the paper, with timm's parameter names; equals the authors' code to 2e-7. The networks
(SwiftFormer-XS … L3) are timm's; `use_additive_` puts the operator of this file into them, and logits stay the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = ["AdditiveAttention", "additive_attention", "additive_attention_reference", "use_additive_"]


def additive_attention(query: Tensor, key: Tensor, score: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Pool the queries into one and let it multiply every key.

    Args:
        query: Q before it is divided by its length, (B, N, C).
        key: K before it is divided by its length, (B, N, C).
        score: w_a, which scores the queries, (C,).
        weight: of T, (C, C), output channels first.
        bias: of T, (C,); None for none.

    Returns:
        (B, N, C).
    """
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    # (B, N)
    alpha = F.normalize(query @ score * query.shape[-1] ** -0.5, dim=-1)
    # (B, 1, C)
    pooled = alpha.unsqueeze(1) @ query
    return F.linear(pooled * key, weight, bias) + query


def additive_attention_reference(
    query: Tensor, key: Tensor, score: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The same, token by token.

    Args:
        query: (B, N, C).
        key: (B, N, C).
        score: (C,).
        weight: (C, C).
        bias: (C,); None for none.

    Returns:
        (B, N, C).
    """
    pictures = []
    for picture_query, picture_key in zip(query, key, strict=True):
        queries = [token / token.norm() for token in picture_query]
        scores = torch.stack([token.dot(score) / len(token) ** 0.5 for token in queries])
        alpha = scores / scores.norm()
        pooled = torch.stack([a * token for a, token in zip(alpha, queries, strict=True)]).sum(0)
        tokens = []
        for own, other in zip(queries, picture_key, strict=True):
            mixed = weight @ (pooled * other / other.norm())
            tokens.append((mixed if bias is None else mixed + bias) + own)
        pictures.append(torch.stack(tokens))
    return torch.stack(pictures)


class AdditiveAttention(nn.Module):
    """(B, C, H, W) to the same shape; each pixel is a token.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_query, self.to_key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.w_g = nn.Parameter(torch.randn(dim, 1))  # w_a; a column, as in the published weights
        self.proj, self.final = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # (B, N, C)
        tokens = x.flatten(2).mT
        mixed = additive_attention(
            self.to_query(tokens), self.to_key(tokens), self.w_g[:, 0], self.proj.weight, self.proj.bias
        )
        out: Tensor = self.final(mixed).mT.reshape(x.shape)
        return out


def use_additive_(model: nn.Module) -> nn.Module:
    """Put the operator of this file in the place of timm's, with the same weights.

    Args:
        model: SwiftFormer of timm, changed in place.

    Returns:
        The model.

    Raises:
        ValueError: no additive attention in the model.
    """
    blocks: list[Any] = [module for module in model.modules() if hasattr(getattr(module, "attn", None), "w_g")]
    if not blocks:
        raise ValueError(f"expected a SwiftFormer of timm, got {type(model).__name__} without additive attention")
    for block in blocks:
        theirs = block.attn
        ours = AdditiveAttention(theirs.to_query.in_features).to(theirs.w_g)
        ours.load_state_dict(theirs.state_dict())
        block.attn = ours.train(theirs.training)
    return model


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": (2, 7, 5), "key": (2, 7, 5), "score": (5,), "weight": (5, 5), "bias": (5,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


METHOD = Method(
    id=129,
    name="SwiftFormer",
    kind="operator",
    summary="Queries are pooled into one, which multiplies every key; no map of attention.",
    paper=Paper(
        "SwiftFormer: Efficient Additive Attention for Transformer-based Real-time Mobile Vision Applications",
        "A. Shaker et al.",
        2023,
        "arXiv:2303.15446",
    ),
    cases={"seven_tokens": Operator(additive_attention, additive_attention_reference, _inputs)},
)
