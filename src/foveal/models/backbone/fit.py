"""FIT: attention within groups of patches, and among a few latent tokens of all groups, in turn.

*Source*: T. Chen, L. Li, "FIT: Far-reaching Interleaved Transformers", 2023 (arXiv:2305.12689), section 2. The map is
divided into T groups of n patches; each group has m latent tokens, learned and different for each place. A stage:

    x_t = local layers(x_t)                        in each group, (n, C)
    z_t = z_t + attention(z_t, x_t)                read, in each group, (m, C)
    z = global layers(z)                           over the latents of all groups, (T m, C)
    x_t = x_t + attention(x_t, z_t)                write, in each group; not in the last stage
    out = head(mean of norm(z)), or of norm(x) where the last stage has no global layers

Attention costs L n for local layers, L m for reading and writing and (L m / n)² for global ones, L = T n: with m fixed
and n = L^(1/3) each grows at most as L^(4/3).

Shapes: B batch, L patches, T groups of n patches and m latents, C channels, H' W' map of patches.

*Differs from the paper*: patches and latents have one width, and the sizes are foveal's own. The encoder alone; the
diffusion decoder and the autoregressive decoder of the paper are not here. What the head reads is not said there.
*Provenance*: written from the paper; that reading and writing normalise both sides and have no MLP, and that latents
are their positions, was looked up in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from foveal.nn.isotropic import Isotropic, PatchEmbed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FIT", "CrossAttention", "FITStage", "fit_small", "join", "split"]


def split(x: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Divide a map of tokens into square groups.

    Args:
        x: tokens, row by row, (B, H'·W', C).
        size: (H', W'), multiples of `side`.
        side: side of a group.

    Returns:
        Groups, row by row, (B, T, side², C).
    """
    rows, columns = size[0] // side, size[1] // side
    cut = x.view(x.shape[0], rows, side, columns, side, x.shape[2]).transpose(2, 3)
    return cut.reshape(x.shape[0], rows * columns, side**2, x.shape[2])


def join(x: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Put groups together again: the inverse of `split`.

    Args:
        x: groups, (B, T, side², C).
        size: (H', W').
        side: side of a group.

    Returns:
        Tokens, row by row, (B, H'·W', C).
    """
    rows, columns = size[0] // side, size[1] // side
    whole = x.view(x.shape[0], rows, columns, side, side, x.shape[3]).transpose(2, 3)
    return whole.reshape(x.shape[0], size[0] * size[1], x.shape[3])


class CrossAttention(nn.Module):
    """Tokens that look at others, with a shortcut, (B, M, C) and (B, N, C) to (B, M, C).

    Args:
        dim: C.
        num_heads: attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.norm_context = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        # (B, N, C) to (B, heads, N, C / heads)
        q = self.q(self.norm(x)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm_context(context)).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FITStage(nn.Module):
    """Local layers, reading, global layers, writing, (B, T·(n + m), C) to the same: n patches, m latents of each group.

    Args:
        dim: C.
        num_heads: attention heads.
        layers: numbers of local and of global layers; without global ones there is no reading either.
        group: n.
        latents: m.
        write: whether patches look at the latents at the end.
        mlp_ratio: hidden channels of the MLPs over C.
        drop_path: probability of dropping each layer's branches while training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        layers: tuple[int, int],
        *,
        group: int,
        latents: int,
        write: bool,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.group, self.latents = group, latents
        words: Any = {"qkv_bias": True, "mlp_ratio": mlp_ratio, "drop_path": drop_path}
        self.local_layers, self.global_layers = (
            nn.Sequential(*(Block(dim, num_heads, **words) for _ in range(count))) for count in layers
        )
        self.read = CrossAttention(dim, num_heads) if layers[1] else None
        self.write = CrossAttention(dim, num_heads) if layers[1] and write else None

    def forward(self, tokens: Tensor, _: tuple[int, int]) -> Tensor:
        batch, every, dim = tokens.shape
        length = self.group + self.latents
        count = every // length
        x, z = tokens.view(batch * count, length, dim).split((self.group, self.latents), 1)
        x = self.local_layers(x)
        if self.read is not None:
            z = self.read(z, x)
            # (B·T, m, C) to (B, T·m, C): latents of all groups of a picture
            z = self.global_layers(z.reshape(batch, count * self.latents, dim)).view(z.shape)
        if self.write is not None:
            x = self.write(x, z)
        return torch.cat((x, z), 1).view(tokens.shape)


class FIT(Isotropic):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), of any H and W.

    Args:
        dim: C.
        layers: numbers of local and of global layers of each stage; only the last may have no global ones.
        num_heads: attention heads.
        patch_size: side of a patch; the picture is filled up with zeros at right and bottom to whole groups.
        group_size: side of a group in patches, n = group_size².
        latents: m, latent tokens of each group.
        grid: (H', W') that positions are learned for, rounded up to whole groups; other sizes get them resized.
        num_classes: of the head; 0 gives pooled features.
        in_channels: of the picture.
        mlp_ratio: hidden channels of the MLPs over C.
        drop_path: of the last stage; the rates rise linearly from 0.
        drop_rate: dropout before the classifier, while training.

    Raises:
        ValueError: no stage, or an earlier one than the last without global layers.
    """

    stem_parts = (*Isotropic.stem_parts, "latent_embed")  # type: ignore[assignment]

    def __init__(
        self,
        *,
        dim: int = 384,
        layers: Sequence[tuple[int, int]] = ((2, 4), (2, 4)),
        num_heads: int = 6,
        patch_size: int = 16,
        group_size: int = 7,
        latents: int = 16,
        grid: tuple[int, int] = (14, 14),
        num_classes: int = 1000,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        if not layers or not all(count for _, count in layers[:-1]):
            raise ValueError(f"each stage but the last must have global layers, got {tuple(layers)}")
        rows, columns = (-(-side // group_size) for side in grid)
        rates = torch.linspace(0, drop_path, len(layers), device="cpu").tolist()
        stages = [
            FITStage(
                dim,
                num_heads,
                counts,
                group=group_size**2,
                latents=latents,
                write=number < len(layers) - 1,
                mlp_ratio=mlp_ratio,
                drop_path=rate,
            )
            for number, (counts, rate) in enumerate(zip(layers, rates, strict=True))
        ]
        super().__init__(
            PatchEmbed(dim, patch_size, in_channels=in_channels),
            stages,
            dim,
            patch_size,
            grid=(rows * group_size, columns * group_size),
            num_classes=num_classes,
            in_channels=in_channels,
            norm=nn.LayerNorm(dim, eps=1e-6),
            drop_rate=drop_rate,
        )
        self.group_size, self.latents, self.groups = group_size, latents, (rows, columns)
        self.latent_embed = nn.Parameter(torch.zeros(1, rows * columns, latents, dim))
        trunc_normal_(self.latent_embed, std=0.02)
        self.blocks.apply(_init_weights)

    def no_weight_decay(self) -> set[str]:
        """Parameters that training leaves out of weight decay.

        Returns:
            Their names.
        """
        return super().no_weight_decay() | {"latent_embed"}

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patches and latents of a picture, group by group.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            Tokens, n patches and then m latents of each group, (B, T·(n + m), C); the map's (H', W').
        """
        whole = self.group_size * int(self.feature_info[0]["reduction"])
        x = F.pad(x, (0, -x.shape[3] % whole, 0, -x.shape[2] % whole))
        tokens, size = super().embed(x)
        groups = split(tokens, size, self.group_size)
        here = size[0] // self.group_size, size[1] // self.group_size
        latents = self.latent_embed
        if here != self.groups:
            # (1, T₀, m, C) to (1, m·C, rows, columns) to (1, T, m, C)
            plane = latents.flatten(2).transpose(1, 2).unflatten(2, self.groups)
            plane = F.interpolate(plane, here, mode="bicubic", align_corners=False)
            latents = plane.flatten(2).transpose(1, 2).unflatten(2, latents.shape[2:])
        every = torch.cat((groups, latents.expand(groups.shape[0], -1, -1, -1)), 2)
        return every.flatten(1, 2), size

    def _groups(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patches, (B, T, n, C), and latents, (B, T, m, C)."""
        count = self.group_size**2
        every = tokens.unflatten(1, (-1, count + self.latents))
        return every[:, :, :count], every[:, :, count:]

    def _map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Patches alone, (B, C, H', W')."""
        return join(self._groups(tokens)[0], size, self.group_size).transpose(1, 2).unflatten(2, size)

    def pool(self, x: Tensor) -> Tensor:
        """The mean of the latents, or of the patches where the last stage has no global layers.

        Args:
            x: last tokens, (B, T·(n + m), C).

        Returns:
            (B, C).
        """
        patches, latents = self._groups(x)
        last: Any = self.blocks[-1]
        return (patches if last.read is None else latents).mean((1, 2))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


fit_small = FIT  # four groups of 49 patches with 16 latents each, at 224×224

METHOD = Method(
    id=49,
    name="FIT",
    kind="model",
    summary="Attention within groups of patches and attention among a few latents of all groups take turns.",
    paper=Paper("FIT: Far-reaching Interleaved Transformers", "T. Chen, L. Li", 2023, "arXiv:2305.12689"),
    models={"fit_small": fit_small},
    cases={
        "fit_small": {
            "dim": 8,
            "layers": ((1, 1), (1, 1)),
            "num_heads": 2,
            "patch_size": 2,
            "group_size": 2,
            "latents": 3,
            "grid": (4, 6),
            "num_classes": 3,
            "drop_path": 0.1,
        }
    },
)
