"""Perceptual Group Tokenizer: a backbone that refines patches by grouping them, again and again, and by nothing else.

*Source*: Z. Deng, T. Chen, Y. Li, "Perceptual Group Tokenizer: Building Perception with Iterative Grouping", ICLR 2024
(arXiv:2311.18296): the grouping layer, with several grouping heads and group tokens drawn from a Gaussian that is
learned; the round of binding is that of slot attention (F. Locatello et al., arXiv:2006.15055, algorithm 1). In each
layer and head:

    c = μ + σ ∘ noise                                    group tokens, (M, D), as many as wanted
    rounds times:
        A = softmax_M(norm(c) W_q (norm(h) W_k)ᵀ / √D)   patches choose among groups, (M, N)
        u = (A / Σ_N A) norm(h) W_v                      each group the weighted mean of its patches
        c = GRU(u, c),  c = c + MLP(norm(c))
    h = h + W_o (Aᵀ c of all heads)                      each patch from its groups, with A of the last round
    h = h + MLP(norm(h))

Products between tokens cost rounds · 2 · N · M · C multiply-adds for binding and N · M · C for refining: patches times
groups, not patches squared. M may be changed at any time.

Shapes: B batch, N patches, M groups of a head, C channels, D = C / heads channels of a head.

*Differs from the paper*: gradients pass through all rounds; the Gaussian is the only distribution. Outside of training
the noise is always the same, and that of few groups is the beginning of that of many, so that results repeat.
*Provenance*: the paper was read in abstract and overview and there is no code of the authors; the order of norms and
projections and all sizes are foveal's own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from foveal.nn.isotropic import Isotropic, PatchEmbed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "GroupingBlock",
    "PerceptualGroupTokenizer",
    "bind",
    "perceptual_group_tokenizer_base",
    "perceptual_group_tokenizer_small",
]


def bind(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """One round: patches are shared out among groups, and each group takes the mean of its share.

    Args:
        query: of group tokens, (…, M, D).
        key: of patches, (…, N, D).
        value: of patches, (…, N, D).

    Returns:
        Means, (…, M, D); shares, (…, M, N), which sum to 1 over the groups.
    """
    shares = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-2)
    # A group that nothing chooses must not divide by zero.
    return (shares @ value) / (shares.sum(-1, keepdim=True) + 1e-6), shares


class GroupingBlock(nn.Module):
    """Patches to groups and back, (B, N, dim) to the same.

    Args:
        dim: C, a multiple of `num_heads`.
        num_heads: number of grouping heads.
        groups: M, group tokens of each head.
        rounds: rounds of binding.
        mlp_ratio: hidden channels of the MLPs over their channels.
        drop_path: probability of dropping each branch of the patches while training.
        seed: seed of the noise outside of training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        groups: int,
        rounds: int = 3,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        inner = dim // num_heads
        self.num_heads, self.groups, self.rounds, self.seed = num_heads, groups, rounds, seed
        self.mean = nn.Parameter(torch.randn(num_heads, 1, inner) * inner**-0.5)
        self.log_deviation = nn.Parameter(torch.zeros(num_heads, 1, inner))
        self.norm, self.kv = norm(dim), nn.Linear(dim, 2 * dim, bias=False)
        self.norm_query, self.q = norm(inner), nn.Linear(inner, inner, bias=False)
        self.gru = nn.GRUCell(inner, inner)
        self.norm_group, self.mlp_group = norm(inner), Mlp(inner, int(mlp_ratio * inner))
        self.proj = nn.Linear(dim, dim)
        self.norm_mlp, self.mlp = norm(dim), Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)

    def sample(self, batch: int) -> Tensor:
        """Draw group tokens.

        Args:
            batch: B.

        Returns:
            (B, heads, M, D): fresh ones for each picture in training, else the same for all pictures and calls.
        """
        shape = self.mean.shape[0], self.groups, self.mean.shape[2]
        if self.training:
            noise = torch.randn(batch, *shape, device=self.mean.device, dtype=self.mean.dtype)
        else:
            generator = torch.Generator("cpu").manual_seed(self.seed)
            # group by group, (M, heads, D), so that more groups begin with the same ones; uniform numbers come in the
            # same order whatever their count, normal ones do not
            order = shape[1], shape[0], shape[2]
            level = torch.rand(order, generator=generator, dtype=torch.float64, device="cpu").clamp(1e-9)
            noise = (2**0.5 * torch.erfinv(2 * level - 1)).transpose(0, 1).to(self.mean).expand(batch, -1, -1, -1)
        return self.mean + self.log_deviation.exp() * noise

    def group(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All rounds.

        Args:
            tokens: patches, (B, N, C).

        Returns:
            Group tokens, (B, heads, M, D); shares of the last round, (B, heads, M, N).
        """
        # two of (B, heads, N, D)
        key, value = self.kv(self.norm(tokens)).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        groups = self.sample(tokens.shape[0])
        shares = tokens
        for _ in range(self.rounds):
            means, shares = bind(self.q(self.norm_query(groups)), key, value)
            flat = self.gru(means.flatten(0, 2), groups.flatten(0, 2))
            groups = flat.view(means.shape)
            groups = groups + self.mlp_group(self.norm_group(groups))
        return groups, shares

    def forward(self, tokens: Tensor, _: tuple[int, int]) -> Tensor:
        groups, shares = self.group(tokens)
        # (B, heads, N, D) to (B, N, C)
        seen = (shares.transpose(2, 3) @ groups).transpose(1, 2).flatten(2)
        tokens = tokens + self.drop_path(self.proj(seen))
        return tokens + self.drop_path(self.mlp(self.norm_mlp(tokens)))


class PerceptualGroupTokenizer(Isotropic):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), of any H and W.

    Args:
        dim: C, a multiple of `num_heads`.
        depth: number of grouping layers.
        num_heads: grouping heads of each.
        groups: M, group tokens of each head at first.
        rounds: rounds of binding in each layer.
        patch_size: side of a patch in pixels.
        grid: (H', W') that the position embedding is made for.
        num_classes: of the head; 0 gives pooled features.
        in_channels: of the picture.
        mlp_ratio: hidden channels of the MLPs over their channels.
        drop_path: of the last layer; the rates rise linearly from 0.

    Raises:
        ValueError: channels that the heads do not divide, or no round.
    """

    def __init__(
        self,
        *,
        dim: int = 384,
        depth: int = 10,
        num_heads: int = 6,
        groups: int = 256,
        rounds: int = 3,
        patch_size: int = 4,
        grid: tuple[int, int] = (56, 56),
        num_classes: int = 1000,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}; change one of them")
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}; 3 suits most pictures")
        blocks = [
            GroupingBlock(
                dim,
                num_heads,
                groups=groups,
                rounds=rounds,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path * i / max(depth - 1, 1),
                seed=i,
            )
            for i in range(depth)
        ]
        super().__init__(
            PatchEmbed(dim, patch_size, in_channels=in_channels),
            blocks,
            dim,
            patch_size,
            grid=grid,
            num_classes=num_classes,
            in_channels=in_channels,
            norm=nn.LayerNorm(dim, eps=1e-6),
        )
        self.set_groups(groups)

    def set_groups(self, groups: int) -> None:
        """Choose the number of group tokens for all further pictures, without training again.

        Args:
            groups: M of every head and layer, at least 1.

        Raises:
            ValueError: a number below 1.
        """
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}; the cost grows linearly with it")
        self.groups = groups
        for block in self.blocks:
            block.groups = groups  # type: ignore[assignment]

    def group_maps(self, x: Tensor, *, block: int = -1) -> Tensor:
        """Which patches belong to which groups.

        Args:
            x: pictures, (B, in_channels, H, W).
            block: number of the grouping layer, negative from the end.

        Returns:
            Shares, (B, heads, M, H', W'), which sum to 1 over the groups.
        """
        blocks: Sequence[Any] = list(self.blocks)
        tokens, size = self.embed(x)
        place = range(len(blocks))[block]
        for earlier in blocks[:place]:
            tokens = earlier(tokens, size)
        return blocks[place].group(tokens)[1].unflatten(3, size)


perceptual_group_tokenizer_small = partial(PerceptualGroupTokenizer, depth=5, groups=128)
perceptual_group_tokenizer_base = PerceptualGroupTokenizer  # 3,136 patches of 4×4 and 6 · 256 groups, at 224×224

_TINY = {"dim": 8, "depth": 2, "num_heads": 2, "groups": 3, "rounds": 2, "patch_size": 4, "grid": (4, 4)}

METHOD = Method(
    id=79,
    name="Perceptual Group Tokenizer",
    kind="model",
    summary="Patches are bound to group tokens, as many as wanted at run time, and refined from their groups.",
    paper=Paper(
        "Perceptual Group Tokenizer: Building Perception with Iterative Grouping",
        "Z. Deng, T. Chen, Y. Li",
        2023,
        "arXiv:2311.18296",
    ),
    models={
        "perceptual_group_tokenizer_base": perceptual_group_tokenizer_base,
        "perceptual_group_tokenizer_small": perceptual_group_tokenizer_small,
    },
    cases={
        "perceptual_group_tokenizer_base": {**_TINY, "num_classes": 3},
        "perceptual_group_tokenizer_small": {**_TINY, "num_classes": 3},
    },
)
