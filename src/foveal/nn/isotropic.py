"""A backbone of one width and one resolution behind timm's interface: patches, positions, blocks, norm, head.

A family's file makes the embedding and the blocks; everything that timm's tools ask of a backbone (features,
intermediate maps, a head that can be replaced) is here once, as in `foveal.nn.pyramid` for backbones that shrink.

    tokens = embed(picture) + P             (B, C, H', W') to (B, N, C), N = H'·W'; P is resized from its own grid
    tokens = block(tokens, (H', W'))        for each block
    out = head(mean of norm(tokens)), or head(class token) where there is one
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from foveal.nn.backbone import Backbone

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Isotropic", "PatchEmbed"]


class PatchEmbed(nn.Module):
    """Cuts a picture into patches and projects each, (B, in_channels, H, W) to (B, dim, H / p, W / p), rounded up.

    Args:
        dim: C.
        patch_size: p; the picture is filled up with zeros at right and bottom to a multiple of it.
        in_channels: of the picture.
    """

    def __init__(self, dim: int, patch_size: int, *, in_channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size)))


class Isotropic(Backbone):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), of any H and W.

    Args:
        embed: picture to a map of patches, (B, dim, H', W').
        blocks: each called with tokens, (B, N, dim), and the map's (H', W'), and giving tokens.
        dim: C.
        reduction: picture pixels a side that one patch stands for.
        grid: (H', W') that the position embedding is made for; other sizes get it resized, bicubic.
        num_classes: of the head; 0 gives pooled features.
        in_channels: of the picture.
        norm: applied to the last tokens; None for none.
        class_token: whether one learned token stands in the middle of the patches and is what the head reads.
        drop_rate: dropout before the classifier, while training.
    """

    parts = "blocks"
    stem_parts = ("patch_embed", "pos_embed", "cls_token")

    def __init__(
        self,
        embed: nn.Module,
        blocks: Sequence[nn.Module],
        dim: int,
        reduction: int,
        *,
        grid: tuple[int, int] = (14, 14),
        num_classes: int = 1000,
        in_channels: int = 3,
        norm: nn.Module | None = None,
        class_token: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.grid = grid
        self.num_prefix_tokens = int(class_token)
        if class_token:
            self.global_pool, self.pools = "token", ("token", "avg", "")
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"blocks.{i}"} for i in range(len(blocks))
        ]
        self.patch_embed = embed
        # with a class token the middle row is its own
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + class_token, dim))
        trunc_normal_(self.pos_embed, std=0.02)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm if norm is not None else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)

    def make_classifier(self, num_classes: int) -> nn.Linear:
        """One classifier, begun near zero.

        Args:
            num_classes: at least 1.

        Returns:
            A linear layer.
        """
        head = super().make_classifier(num_classes)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens of a picture, each with its position added.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            Tokens, (B, N, C), the class token in the middle if there is one; the map's (H', W').
        """
        patches = self.patch_embed(x)
        size = patches.shape[2], patches.shape[3]
        tokens = patches.flatten(2).transpose(1, 2)
        middle = self.grid[0] * self.grid[1] // 2
        before, own, after = self.pos_embed.tensor_split((middle, middle + self.num_prefix_tokens), dim=1)
        positions = torch.cat((before, after), 1)
        # (1, N₀, C) to (1, C, H', W') to (1, N, C)
        plane = positions.transpose(1, 2).unflatten(2, self.grid)
        plane = F.interpolate(plane, size, mode="bicubic", align_corners=False)
        tokens = tokens + plane.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            half = tokens.shape[1] // 2
            alone = (self.cls_token + own).expand(tokens.shape[0], -1, -1)
            tokens = torch.cat((tokens[:, :half], alone, tokens[:, half:]), 1)
        return tokens, size

    def _map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Patches alone, (B, C, H', W')."""
        if self.cls_token is not None:
            half = size[0] * size[1] // 2
            tokens = torch.cat((tokens[:, :half], tokens[:, half + 1 :]), 1)
        return tokens.transpose(1, 2).unflatten(2, size)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps after chosen blocks, without the class token.

        Args:
            x: pictures, (B, in_channels, H, W).
            indices: blocks, negative from the end; an int takes the last so many; None takes all.
            norm: whether each map is normalised.
            stop_early: whether to stop at the last chosen block.
            output_fmt: "NCHW".
            intermediates_only: whether to leave out the last tokens.

        Returns:
            The list of maps, (B, C, H', W'), or (last tokens normalised, list of maps).

        Raises:
            ValueError: an index or format that there is not.
        """
        taken = self.chosen(indices, output_fmt)
        maps = {}
        tokens, size = self.embed(x)
        for i, block in enumerate(self.blocks):
            if stop_early and i > max(taken):
                break
            tokens = self.through(block, tokens, size)
            if i in taken:
                maps[i] = self._map(self.norm(tokens) if norm else tokens, size)
        kept = [maps[i] for i in taken]
        return kept if intermediates_only else (self.norm(tokens), kept)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last tokens, normalised.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            (B, N, C), the class token in the middle if there is one.
        """
        tokens, size = self.embed(x)
        for block in self.blocks:
            tokens = self.through(block, tokens, size)
        return self.norm(tokens)

    def pool(self, x: Tensor) -> Tensor:
        """The class token, or the mean of the patches.

        Args:
            x: last tokens, (B, N, C).

        Returns:
            (B, C).
        """
        middle = (x.shape[1] - 1) // 2
        if self.global_pool == "token":
            return x[:, middle]
        if self.cls_token is not None:
            x = torch.cat((x[:, :middle], x[:, middle + 1 :]), 1)
        return x.mean(1)

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))
