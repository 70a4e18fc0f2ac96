"""LookupViT: few compressed tokens do the work of a vision transformer and look up details in all patches.

*Source*: R. Koner et al., "LookupViT: Compressing visual information to a limited number of tokens", ECCV 2024
(arXiv:2407.12753): the block with its cross-attention in both directions, and several numbers of compressed tokens in
one network.

    p = patches resized to k × k, bilinear                  compressed tokens, (B, M, C), M = k²
    S = Q(p) K(l)ᵀ / √D                                     one similarity for both directions, (B, heads, M, N)
    p = p + softmax_N(S) V(l)                               gather
    p = p + attention(p),  p = p + MLP(p)                   a whole block of a vision transformer, on M tokens
    l = l + softmax_M(Sᵀ) V′(p)                             read back
    l = l + MLP(l), from C to C / q and back                a narrow one, on N tokens
    logits = W (mean of l + mean of p)

k can be changed at any time; while training, each batch draws one of `sides`, so one network serves several budgets.

Shapes: B batch, N patches, M compressed tokens, C channels, D channels of a head, H′ W′ patches along height and width.

*Differs from the paper*: the head reads the sum of both means, the paper leaves the weighing open; q = 2, and the
second direction normalises the transposed similarity over the compressed tokens. Position embeddings are learned and
resized to any picture.
*Provenance*: written from the paper; there is no code of the authors.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from foveal.nn.isotropic import Isotropic, PatchEmbed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LookupBlock", "LookupViT", "lookup_vit", "lookup_vit_base", "lookup_vit_small"]


class LookupBlock(nn.Module):
    """A block on two sets of tokens, one behind the other, (B, N + M, dim) to the same.

    Args:
        dim: C, a multiple of `num_heads`.
        num_heads: number of heads of all attention.
        narrow: q, how many times narrower the MLP of the patches is than the patches.
        drop_path: drop-path rate of each branch.
    """

    def __init__(self, dim: int, *, num_heads: int, narrow: int = 2, drop_path: float = 0.0) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.norm_few, self.norm_all = norm(dim), norm(dim)
        self.q, self.kv, self.gathered = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.block = Block(dim, num_heads, qkv_bias=True, drop_path=drop_path, norm_layer=norm)  # type: ignore[arg-type]
        self.norm_back, self.v = norm(dim), nn.Linear(dim, dim)
        self.read = nn.Linear(dim, dim)
        self.norm_mlp, self.mlp = norm(dim), Mlp(dim, dim // narrow)
        self.drop_path = DropPath(drop_path)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, C) to (B, heads, L, D)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        count = size[0] * size[1]
        patches, few = tokens[:, :count], tokens[:, count:]
        keys, values = self.kv(self.norm_all(patches)).chunk(2, 2)
        # (B, heads, M, N)
        alike = (self._heads(self.q(self.norm_few(few))) * self.scale) @ self._heads(keys).transpose(2, 3)
        gathered = (alike.softmax(3) @ self._heads(values)).transpose(1, 2).flatten(2)
        few = self.block(few + self.drop_path(self.gathered(gathered)))
        back = alike.transpose(2, 3).softmax(3) @ self._heads(self.v(self.norm_back(few)))
        patches = patches + self.drop_path(self.read(back.transpose(1, 2).flatten(2)))
        patches = patches + self.drop_path(self.mlp(self.norm_mlp(patches)))
        return torch.cat((patches, few), 1)


class LookupViT(Isotropic):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), of any H and W.

    Args:
        dim: C, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: number of heads.
        sides: sides k of the grid of compressed tokens that training draws from; the last one is used at first.
        narrow: q, how many times narrower the MLP of the patches is than the patches.
        patch_size: side of a patch in pixels.
        grid: (H′, W′) that the position embedding is made for.
        num_classes: number of classes; 0 returns features.
        in_channels: channels of the picture.
        drop_path: drop-path rate of the last block; the rates rise from 0.

    Raises:
        ValueError: channels that the heads do not divide, or no side, or one below 1.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        sides: Sequence[int] = (5,),
        narrow: int = 2,
        patch_size: int = 16,
        grid: tuple[int, int] = (14, 14),
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}; change one of them")
        if not sides or min(sides) < 1:
            raise ValueError(f"sides must be one or more numbers from 1 on, got {tuple(sides)}; 5 suits 14×14 patches")
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        super().__init__(
            PatchEmbed(dim, patch_size, in_channels=in_channels),
            [LookupBlock(dim, num_heads=num_heads, narrow=narrow, drop_path=rate) for rate in rates],
            dim,
            patch_size,
            grid=grid,
            num_classes=num_classes,
            in_channels=in_channels,
            norm=nn.LayerNorm(dim, eps=1e-6),
        )
        self.sides, self.side, self.patch_size = tuple(sides), sides[-1], patch_size

    def set_side(self, side: int) -> None:
        """Choose the number of compressed tokens, M = side², for all further pictures outside of training.

        Args:
            side: k, at least 1.

        Raises:
            ValueError: a side below 1.
        """
        if side < 1:
            raise ValueError(f"side must be at least 1, got {side}; M is its square")
        self.side = side

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens of a picture with their positions, and the compressed ones behind them.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            Tokens, (B, N + M, C); the map's (H′, W′).
        """
        patches, size = super().embed(x)
        side = self.side
        if self.training and len(self.sides) > 1:
            side = self.sides[int(torch.randint(len(self.sides), ()))]
        few = F.interpolate(super()._map(patches, size), (side, side), mode="bilinear", align_corners=False)
        return torch.cat((patches, few.flatten(2).transpose(1, 2)), 1), size

    def _map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return super()._map(tokens[:, : size[0] * size[1]], size)

    def _joined(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Patches, each with the mean of the compressed tokens added, so that their mean is that of both sets."""
        count = -(-x.shape[2] // self.patch_size) * -(-x.shape[3] // self.patch_size)
        return tokens[:, :count] + tokens[:, count:].mean(1, keepdim=True)

    def forward_intermediates(self, x: Tensor, *args: Any, **words: Any) -> Any:
        """The maps of the patches after chosen blocks.

        Args:
            x: pictures, (B, in_channels, H, W).
            *args: as for `Isotropic.forward_intermediates`.
            **words: likewise.

        Returns:
            The list of maps, (B, C, H′, W′), or (what `forward_features` gives, list of maps).
        """
        found = super().forward_intermediates(x, *args, **words)
        return (self._joined(found[0], x), found[1]) if isinstance(found, tuple) else found

    def forward_features(self, x: Tensor) -> Tensor:
        """The last patches, normalised, each with the mean of the compressed tokens added.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            (B, N, C).
        """
        return self._joined(super().forward_features(x), x)


def lookup_vit(
    dim: int = 384,
    depth: int = 12,
    num_heads: int = 6,
    patch_size: int = 16,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    *,
    sides: Sequence[int] = (5,),
    narrow: int = 2,
    grid: tuple[int, int] = (14, 14),
) -> LookupViT:
    """LookupViT of any size.

    Args:
        dim: C.
        depth: number of blocks.
        num_heads: number of heads.
        patch_size: side of a patch in pixels.
        in_channels: number of channels of the picture.
        num_classes: number of classes; 0 returns features.
        drop_path: drop-path rate of the last block; the rates rise from 0.
        sides: sides of the grid of compressed tokens that training draws from.
        narrow: q, how many times narrower the MLP of the patches is than the patches.
        grid: size of the position embedding in patches, (H′, W′).

    Returns:
        The network, (B, in_channels, H, W) to (B, num_classes).
    """
    return LookupViT(
        dim,
        depth,
        num_heads,
        sides=sides,
        narrow=narrow,
        patch_size=patch_size,
        grid=grid,
        num_classes=num_classes,
        in_channels=in_channels,
        drop_path=drop_path,
    )


lookup_vit_small = partial(lookup_vit, dim=384, num_heads=6)
lookup_vit_base = partial(lookup_vit, dim=768, num_heads=12)

_TINY = {"dim": 8, "depth": 2, "num_heads": 2, "patch_size": 4, "grid": (4, 4), "num_classes": 5}

METHOD = Method(
    id=348,
    name="LookupViT",
    kind="model",
    summary="Few compressed tokens do the work of a vision transformer and look up details in all patches.",
    paper=Paper(
        "LookupViT: Compressing visual information to a limited number of tokens",
        "R. Koner et al.",
        2024,
        "arXiv:2407.12753",
    ),
    models={"lookup_vit_base": lookup_vit_base, "lookup_vit_small": lookup_vit_small},
    cases={
        "lookup_vit_base": {**_TINY, "sides": (2,), "in_channels": 1},
        "lookup_vit_small": {**_TINY, "sides": (2, 3)},
    },
)
