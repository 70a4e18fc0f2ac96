"""PanGu-π: a transformer block with several activations side by side and a second, bent shortcut around attention.

*Source*: Y. Wang, H. Chen, Y. Tang, T. Guo et al., "PanGu-π: Enhancing Language Model Architectures via Nonlinearity
Compensation", 2023 (arXiv:2312.17276), equations 4, 7 and 9 and section 4.1 (bottleneck of the shortcut). The paper
fights the collapse of features: with depth, tokens become alike, the more so the less a block bends them.

    σ_s(x) = Σ_i gelu(a_i ∘ x + b_i)                       series activation, n terms, x (…, H); a, b (n, H)
    T_j(z) = W_j' gelu(W_j z)                              augmented shortcut, C to C / r to C channels
    z ← z + MSA(norm(z)) + Σ_j T_j(norm(z))                z (B, N, C)
    z ← z + W_2 σ_s(W_1 norm(z))                           C to H to C channels

One term with a = 1 and b = 0 is plain GELU, and no shortcut T leaves an ordinary block.

*Differs from the paper*: a vision transformer's block, with LayerNorm and GELU in place of LLaMA's RMSNorm and SwiGLU.
Equation 9 gives every term a first matrix of its own; the terms here share W_1, with a scale and a shift for each
channel, which is what the paper's time for n terms (2.6 % more for a second one) leaves room for. T has no biases, like
LLaMA's layers: a bias is the same for all tokens. The paper leaves open where T reads; here it reads what attention
reads, as in the authors' earlier "Augmented Shortcuts for Vision Transformers" (arXiv:2106.15941). Initial values are
not given; the first term begins as plain GELU and the others begin small, or all terms would stay the same one.
*Provenance*: written from the paper; the authors published no code of this architecture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

__all__ = ["AugmentedShortcut", "PanGuPiBlock", "SeriesActivation", "series_activation", "series_activation_reference"]


def series_activation(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Sum of scaled and shifted GELUs, equation 7.

    Args:
        x: features, (…, H).
        scale: a, (n, H).
        shift: b, (n, H).

    Returns:
        Features, (…, H).

    Raises:
        ValueError: scales and shifts of another shape.
    """
    if scale.ndim != 2 or scale.shape != shift.shape or scale.shape[1] != x.shape[-1]:
        raise ValueError(
            f"scale and shift must be (terms, {x.shape[-1]}) for these features, "
            f"got {tuple(scale.shape)} and {tuple(shift.shape)}"
        )
    first, *others = (F.gelu(torch.addcmul(b, x, a)) for a, b in zip(scale, shift, strict=True))
    return sum(others, first)


def series_activation_reference(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Equation 7 with GELU as u Φ(u), Φ the standard normal distribution function.

    Args:
        x: features, (…, H).
        scale: a, (n, H).
        shift: b, (n, H).

    Returns:
        Features, (…, H).
    """
    u = x[..., None, :] * scale + shift
    return (u * 0.5 * (1 + torch.erf(u / 2**0.5))).sum(-2)


class SeriesActivation(nn.Module):
    """Series activation of H channels, (…, H) to the same; it begins as GELU.

    Args:
        dim: H.
        terms: n, at least 1; the paper takes 2.

    Raises:
        ValueError: no term.
    """

    def __init__(self, dim: int, *, terms: int = 2) -> None:
        super().__init__()
        if terms < 1:
            raise ValueError(f"terms must be at least 1, got {terms}; 1 is plain GELU with a scale and a shift")
        self.scale, self.shift = nn.Parameter(torch.ones(terms, dim)), nn.Parameter(torch.zeros(terms, dim))
        nn.init.normal_(self.scale[1:].data, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return series_activation(x, self.scale, self.shift)


class AugmentedShortcut(nn.Module):
    """Bottleneck that bends each token by itself, (…, C) to the same.

    Args:
        dim: C.
        reduction: r, at most C; the paper takes 32 for 4,096 channels.

    Raises:
        ValueError: a reduction to no channel at all.
    """

    def __init__(self, dim: int, *, reduction: int = 32) -> None:
        super().__init__()
        if not 1 <= reduction <= dim:
            raise ValueError(f"reduction must be in 1…{dim} for {dim} channels, got {reduction}")
        self.down = nn.Linear(dim, dim // reduction, bias=False)
        self.up = nn.Linear(dim // reduction, dim, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(z)))


class PanGuPiBlock(nn.Module):
    """Block of attention and MLP with both compensations, (B, N, C) to the same.

    Args:
        dim: C.
        num_heads: attention heads.
        mlp_ratio: H / C.
        terms: n of the series activation; 0 takes plain GELU.
        shortcuts: number of augmented shortcuts.
        reduction: r of a shortcut.
        causal: whether a token sees only those before it and itself.
        drop_path: probability of dropping attention or MLP while training; the shortcuts stay.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        terms: int = 2,
        shortcuts: int = 1,
        reduction: int = 32,
        causal: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.num_heads, self.causal = num_heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.shortcuts = nn.ModuleList(AugmentedShortcut(dim, reduction=reduction) for _ in range(shortcuts))
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act = SeriesActivation(hidden, terms=terms) if terms else nn.GELU()
        self.drop_path = DropPath(drop_path)

    def forward(self, z: Tensor) -> Tensor:
        y = self.norm1(z)
        # (B, N, 3·C) to three of (B, heads, N, C / heads)
        q, k, v = self.qkv(y).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2)
        z = z + self.drop_path(self.proj(mixed))
        for shortcut in self.shortcuts:
            z = z + shortcut(y)
        return z + self.drop_path(self.fc2(self.act(self.fc1(self.norm2(z)))))


def _inputs(seed: int, *, terms: int = 2, shape: tuple[int, ...] = (3, 5, 7)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"x": shape, "scale": (terms, shape[-1]), "shift": (terms, shape[-1])}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


METHOD = Method(
    id=19,
    name="PanGu-pi",
    kind="operator",
    summary="Activations side by side and a second shortcut around attention keep tokens from becoming alike.",
    paper=Paper(
        "PanGu-π: Enhancing Language Model Architectures via Nonlinearity Compensation",
        "Y. Wang et al.",
        2023,
        "arXiv:2312.17276",
    ),
    cases={
        "two_terms": Operator(series_activation, series_activation_reference, _inputs),
        "five_terms": Operator(
            series_activation, series_activation_reference, lambda seed: _inputs(seed, terms=5, shape=(1, 3))
        ),
    },
)
