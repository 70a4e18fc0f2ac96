"""Joint Adaptive Representations: text and picture are fused in a few tokens that read both anew, again and again.

*Source*: AJ Piergiovanni, A. Angelova, "Joint Adaptive Representations for Image-Language Learning", 2023
(arXiv:2305.19924). For text X_t, (B, L, D), and picture X_v, (B, M, D), the state f is a compact set of
K = K_t + K_v tokens. Each of R iterations weighs all features by what the state knows of both modalities, sums them up,
and lets a transformer work on the compact set alone:

    f⁰ = p + W₀·[mean X_t; mean X_v]                               (B, K, D)    p: learnt
    A_m = softmax_n(LN(X_m)·(LN(f_m)·W_m)ᵀ / √D)                   (B, N_m, K_m), m = t, v
    f_m ← f_m + A_mᵀ·LN(X_m)·U_m                                   (B, K_m, D)
    f ← T(f)                                                       transformer layers on K tokens

Multiply-adds of an iteration: 2·(K_t·L + K_v·M)·D + 2·K·D² to read, and the layers at K tokens; concatenated
self-attention works at L + M tokens instead.

*Differs from the paper*: only abstract and introduction could be read, and there is no code. Decided here: features are
weighed by their product with a projection of the state, a row of weights for each token of the state; the weights of
the first iteration see the means of both modalities; every iteration has weights of its own; W starts as the identity
and W₀ as the sum of the means, so that likeness is what is looked for at first. Adaptive sampling of pretraining data
is not part of it.
*Provenance*: written from the paper's description of the mechanism, not from its formulas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Block", "JointAdaptive", "summaries"]


def summaries(features: Tensor, queries: Tensor, real: Tensor | None = None) -> Tensor:
    """A few tokens, each an average of all features by weights of its own.

    Args:
        features: all features, (B, N, D).
        queries: what each token of the state looks for, (B, K, D).
        real: whether a feature is no padding, (B, N); None for all.

    Returns:
        (B, K, D).
    """
    mask = None if real is None else real[:, None]
    return F.scaled_dot_product_attention(queries, features, features, attn_mask=mask)


class Block(nn.Module):
    """A transformer layer: (B, N, D) to (B, N, D), normalised before attention and before the feed-forward part.

    Args:
        dim: D.
        num_heads: attention heads.
        hidden: width of the feed-forward part.

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got {dim} and {num_heads} heads; change one of them"
            )
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Tokens, (B, N, D); `real`, (B, N), says which are no padding."""
        # (B, N, 3·D) to three of (B, heads, N, D / heads)
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if real is None else real[:, None, None])
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.feed(self.norm2(x))


class _Reading(nn.Module):
    """What one iteration adds to the state from one modality."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.norm_state = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.weigh, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        nn.init.eye_(self.weigh.weight)

    def forward(self, state: Tensor, features: Tensor, real: Tensor | None) -> Tensor:
        out: Tensor = self.out(summaries(self.norm(features), self.weigh(self.norm_state(state)), real))
        return out


class JointAdaptive(nn.Module):
    """Text and picture to their joint compact set.

    Args:
        dim: D, of both modalities.
        num_heads: attention heads of a layer.
        tokens: K_t and K_v, tokens of the state that read the text, and those that read the picture.
        iterations: R.
        depth: transformer layers of an iteration.
        hidden: width of their feed-forward part; None for 4·D.

    Raises:
        VlmError: a modality without a token, or no iteration.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        tokens: tuple[int, int] = (8, 8),
        iterations: int = 4,
        depth: int = 1,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if min(*tokens, iterations, depth) < 1:
            raise VlmError(
                f"tokens, iterations and depth must be at least 1, got {tokens}, {iterations} and {depth}; "
                "a token for each modality is the least"
            )
        self.tokens = tokens
        self.start = nn.Parameter(torch.randn(sum(tokens), dim) * 0.5)
        self.means = nn.Linear(2 * dim, dim)
        with torch.no_grad():
            self.means.weight.copy_(torch.eye(dim).repeat(1, 2))
        self.readings = nn.ModuleList(nn.ModuleList(_Reading(dim) for _ in range(2)) for _ in range(iterations))
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(dim, num_heads, hidden or 4 * dim) for _ in range(depth)) for _ in range(iterations)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, text: Tensor, picture: Tensor, real: Tensor | None = None) -> Tensor:
        """Fuse.

        Args:
            text: features of the text, (B, L, D).
            picture: features of the picture, (B, M, D).
            real: whether a token of the text is no padding, (B, L); None for all. Each row needs one that is real.

        Returns:
            The state, (B, K_t + K_v, D).

        Raises:
            VlmError: modalities of different widths.
        """
        if text.shape[2] != picture.shape[2]:
            raise VlmError(
                f"text and picture must be equally wide, got {text.shape[2]} and {picture.shape[2]} channels; "
                "project one of them first"
            )
        mean = text.mean(1) if real is None else (text * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        state = self.start + self.means(torch.cat((mean, picture.mean(1)), 1))[:, None]
        for readings, blocks in zip(self.readings, self.blocks, strict=True):
            of_text, of_picture = state.split(self.tokens, 1)
            seen = (readings[0](of_text, text, real), readings[1](of_picture, picture, None))  # type: ignore[index]
            state = state + torch.cat(seen, 1)
            for block in blocks:  # type: ignore[attr-defined]
                state = block(state)
        fused: Tensor = self.norm(state)
        return fused


def _model(tokens: tuple[int, int]) -> JointAdaptive:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = JointAdaptive(6, num_heads=2, tokens=tokens, iterations=2, hidden=5)
        return made.double().requires_grad_(False)


def _fused(tokens: tuple[int, int]) -> Callable[..., Tensor]:
    def fused(text: Tensor, picture: Tensor, real: Tensor | None) -> Tensor:
        out: Tensor = _model(tokens)(text, picture, real)
        return out

    return fused


def _norm(x: Tensor, by: nn.LayerNorm) -> Tensor:
    """Layer normalisation from its definition."""
    off = x - x.mean(-1, keepdim=True)
    return off / (off.square().mean(-1, keepdim=True) + by.eps).sqrt() * by.weight + by.bias


def _one_by_one(tokens: tuple[int, int]) -> Callable[..., Tensor]:
    """`JointAdaptive`, a picture and a token of the state at a time, padding cut off."""

    def fused(text: Tensor, picture: Tensor, real: Tensor | None) -> Tensor:
        net: Any = _model(tokens)
        found = []
        for row in range(len(text)):
            words = text[row] if real is None else text[row][real[row]]
            mean = net.means(torch.cat((words.mean(0), picture[row].mean(0))))
            state = [start + mean for start in net.start]
            for readings, blocks in zip(net.readings, net.blocks, strict=True):
                for j, token in enumerate(state):
                    part = readings[0 if j < tokens[0] else 1]
                    features = _norm(words if j < tokens[0] else picture[row], part.norm)
                    query = part.weigh.weight @ _norm(token, part.norm_state)
                    weights = torch.stack([x @ query for x in features]).div(len(query) ** 0.5).softmax(0)
                    total = sum(weight * x for weight, x in zip(weights, features, strict=True))
                    state[j] = token + part.out.weight @ total + part.out.bias
                for block in blocks:
                    state = list(_layer(block, torch.stack(state)))
            found.append(_norm(torch.stack(state), net.norm))
        return torch.stack(found)

    return fused


def _layer(block: Any, x: Tensor) -> Tensor:
    """`Block` of one picture, (N, D), a head at a time."""
    parts = [x_.chunk(block.num_heads, 1) for x_ in block.qkv(_norm(x, block.norm1)).chunk(3, 1)]
    heads = [(q @ k.T / q.shape[1] ** 0.5).softmax(1) @ v for q, k, v in zip(*parts, strict=True)]
    x = x + block.project(torch.cat(heads, 1))
    out: Tensor = x + block.feed(_norm(x, block.norm2))
    return out


def _inputs(seed: int, *, padded: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    text, picture = (torch.randn(2, n, 6, generator=generator) for n in (5, 7))
    real = torch.tensor([[True] * 5, [True, True, False, True, False]]) if padded else None
    return {"text": text, "picture": picture, "real": real}


METHOD = Method(
    id=64,
    name="Joint Adaptive Representations",
    kind="operator",
    summary="Text and picture are fused in a few tokens that weigh all features anew in every iteration.",
    paper=Paper(
        "Joint Adaptive Representations for Image-Language Learning",
        "AJ Piergiovanni, A. Angelova",
        2023,
        "arXiv:2305.19924",
    ),
    cases={
        "three tokens": Operator(_fused((1, 2)), _one_by_one((1, 2)), lambda seed: _inputs(seed, padded=False)),
        "padded": Operator(_fused((2, 1)), _one_by_one((2, 1)), lambda seed: _inputs(seed, padded=True)),
    },
)
