"""SHViT's single-head attention: pixels attend in about a fifth of the channels, the rest passes.

*Source*: S. Yun and Y. Ro, "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", CVPR 2024
(arXiv:2401.16456), the part "Single-Head Self-Attention" of the method. For x: (B, C, H, W) and N = H·W pixels

    x₁, x₂ = split(x; p, C - p)                       p = C / 4.67
    Q, K, V = BN(W · GN(x₁))                          (B, d, N), (B, d, N) and (B, p, N), d = 16
    y₁ = softmax(Qᵀ K / √d) applied to V              (B, p, N)
    y = BN(W_o · relu(concat(y₁, x₂)))                (B, C, H, W)

GN is a group norm of one group. One head cannot repeat what another found, and the projection carries what the
attended channels hold to all.

*Differs from the paper*: nothing; the ReLU before the projection is the authors' code's.

*Provenance*: written from the paper, with timm's parameter names and its convolution with a batch norm, which
`timm.utils.model.reparameterize_model` folds; equals the authors' code exactly. The networks (SHViT-S1 … S4) are
timm's; `use_single_head_` puts the operator of this file into them, and logits stay the same.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.shvit import Conv2dNorm
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = ["SHSA", "partial_attention", "partial_attention_reference", "use_single_head_"]


def partial_attention(qkv: Tensor, passed: Tensor, *, qk_dim: int) -> Tensor:
    """Attend with one head in the first channels and pass on the others.

    Args:
        qkv: queries, keys and values of the first p channels, (B, 2·d + p, H, W).
        passed: the other channels, (B, C - p, H, W).
        qk_dim: d.

    Returns:
        (B, C, H, W).
    """
    query, key, value = qkv.flatten(2).split([qk_dim, qk_dim, qkv.shape[1] - 2 * qk_dim], 1)
    # (B, N, N): from every pixel to all
    weights = ((query * qk_dim**-0.5).mT @ key).softmax(-1)
    attended = (value @ weights.mT).unflatten(2, qkv.shape[2:])
    return torch.cat([attended, passed], 1)


def partial_attention_reference(qkv: Tensor, passed: Tensor, *, qk_dim: int) -> Tensor:
    """The same, pixel by pixel.

    Args:
        qkv: (B, 2·d + p, H, W).
        passed: (B, C - p, H, W).
        qk_dim: d.

    Returns:
        (B, C, H, W).
    """
    pictures = []
    for picture, rest in zip(qkv, passed, strict=True):
        query, key, value = picture[:qk_dim], picture[qk_dim : 2 * qk_dim], picture[2 * qk_dim :]
        pixels = [(i, j) for i in range(picture.shape[1]) for j in range(picture.shape[2])]
        columns = []
        for i, j in pixels:
            scores = torch.stack([query[:, i, j].dot(key[:, m, n]) / qk_dim**0.5 for m, n in pixels])
            likely = (scores - scores.max()).exp()
            likely = likely / likely.sum()
            columns.append(sum(weight * value[:, m, n] for weight, (m, n) in zip(likely, pixels, strict=True)))
        attended = torch.stack([torch.as_tensor(column) for column in columns], 1).reshape(value.shape)
        pictures.append(torch.cat([attended, rest]))
    return torch.stack(pictures)


class SHSA(nn.Module):
    """(B, C, H, W) to the same shape.

    Args:
        dim: C.
        partial_dim: p, channels that attend; the paper's networks take C / 4.67.
        qk_dim: d, channels of queries and keys.

    Raises:
        ValueError: no channel attends, or more than there are; or queries without channels.
    """

    def __init__(self, dim: int, partial_dim: int, *, qk_dim: int = 16) -> None:
        super().__init__()
        if not 1 <= partial_dim <= dim:
            raise ValueError(
                f"partial_dim must be in 1…{dim} for {dim} channels, got {partial_dim}; the paper takes "
                f"{max(1, round(dim / 4.67))}"
            )
        if qk_dim < 1:
            raise ValueError(f"qk_dim must be at least 1, got {qk_dim}; the paper takes 16")
        self.partial_dim, self.qk_dim = partial_dim, qk_dim
        self.pre_norm = nn.GroupNorm(1, partial_dim)
        self.qkv: nn.Module = Conv2dNorm(partial_dim, 2 * qk_dim + partial_dim)
        # starts at 0, so that a block starts as the identity
        self.proj = nn.Sequential(nn.ReLU(), Conv2dNorm(dim, dim, bn_weight_init=0))

    def forward(self, x: Tensor) -> Tensor:
        first, passed = x[:, : self.partial_dim], x[:, self.partial_dim :]
        out: Tensor = self.proj(partial_attention(self.qkv(self.pre_norm(first)), passed, qk_dim=self.qk_dim))
        return out


def use_single_head_(model: nn.Module) -> nn.Module:
    """Put the operator of this file in the place of timm's, with its layers and weights.

    Args:
        model: SHViT of timm, its norms folded or not; changed in place.

    Returns:
        The model.

    Raises:
        ValueError: no single-head attention in the model.
    """
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if all(hasattr(child, part) for part in ("pdim", "pre_norm", "qkv", "proj"))
    ]
    if not places:
        raise ValueError(f"expected a SHViT of timm, got {type(model).__name__} without single-head attention")
    for parent, name in places:
        theirs: Any = getattr(parent, name)
        ours = SHSA(theirs.dim, theirs.pdim, qk_dim=theirs.qk_dim).train(theirs.training)
        ours.pre_norm, ours.qkv, ours.proj = theirs.pre_norm, theirs.qkv, theirs.proj
        setattr(parent, name, ours)
    return model


def _inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    qkv, passed = (torch.randn(2, channels, 3, 4, generator=generator) for channels in (7, 4))
    return {"qkv": qkv, "passed": passed, "qk_dim": 2}


METHOD = Method(
    id=164,
    name="SHViT",
    kind="operator",
    summary="One head attends in about a fifth of the channels, the rest passes untouched.",
    paper=Paper(
        "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design",
        "S. Yun and Y. Ro",
        2024,
        "arXiv:2401.16456",
    ),
    cases={"three_of_seven": Operator(partial_attention, partial_attention_reference, _inputs)},
)
