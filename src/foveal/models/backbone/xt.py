"""xT: a large picture is read region by region with a hierarchical backbone, and one long sequence joins the regions.

*Source*: R. Gupta et al., "xT: Nested Tokenization for Larger Context in Large Images", ICML 2024 (arXiv:2403.01915);
the variant with a Mamba context encoder. A picture is cut into R square regions of side s, each of which the region
encoder reduces to h × h features:

    t_i = encoder(region i)                              (3, s, s) to (h, h, E), a few regions at a time
    y = [W t + P; c]                                     map of all regions, row by row, (N, C), and a token c behind it
    y = norm(y),  y = y + Mamba(y)                       depth times; every other layer reads the sequence from its end
    out = head(norm(last token of y))

P are sines and cosines of row and column in the whole map. The encoder's memory depends on the number of regions that
it reads at a time, `chunk`, and not on the picture; the sequence grows with the pixels, by a factor of about
C / (3 · stride²), and the context encoder takes linear time and memory in it.

Shapes: B batch, R regions, s side of a region, h features along a side of a region, N = R h² tokens, E channels of the
encoder, C channels of the sequence.

*Differs from the paper*: any height and width, filled up with zeros to whole regions; the last layer reads forward for
any depth (the code reverses layers 0, 2, …, which is the same for an even depth); the encoder's last features are
normalised; weights are not pretrained. The context encoders with attention (Transformer-XL, Hyper) and the heads for
segmentation and detection are not here.
*Provenance*: the paper was read in abstract and overview, the formulas are those of the authors' code (the context
encoder normalises its residual branch too). The sequence behind the region encoder equals that code, run with
`foveal.nn.mamba` in place of mamba_ssm, to 2e-7.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from foveal.nn.mamba import Mamba
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["XT", "ContextBlock", "join", "positions", "regions", "xt", "xt_base", "xt_large", "xt_small", "xt_tiny"]


def regions(x: Tensor, side: int, first: int, last: int) -> Tensor:
    """Copy some regions out of pictures; nothing as large as the pictures is allocated.

    Args:
        x: pictures, (B, C, H, W).
        side: s, side of a region.
        first: number of the first region, counted row by row and picture by picture.
        last: number behind the last one, at most B·R.

    Returns:
        Regions, (last - first, C, s, s), zero beyond the border of the picture.
    """
    rows, columns = -(-x.shape[2] // side), -(-x.shape[3] // side)
    found = []
    for number in range(first, last):
        picture, place = divmod(number, rows * columns)
        top, left = (side * i for i in divmod(place, columns))
        cut = x[picture, :, top : top + side, left : left + side]
        found.append(F.pad(cut, (0, side - cut.shape[2], 0, side - cut.shape[1])))
    return torch.stack(found)


def join(features: Tensor, rows: int, columns: int) -> Tensor:
    """Put the features of regions together.

    Args:
        features: of all regions, row by row and picture by picture, (B·R, h, w, C).
        rows: regions along the height.
        columns: regions along the width, R = rows · columns.

    Returns:
        Maps, (B, rows·h, columns·w, C).
    """
    height, width, dim = features.shape[1:]
    grid = features.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return grid.reshape(-1, rows * height, columns * width, dim)


def positions(rows: int, columns: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of the column, then of the row, with wavelengths from 2π to 20,000π.

    Args:
        rows: height of the map.
        columns: width of the map.
        dim: C, a multiple of 4.
        device: where the result is made.

    Returns:
        (rows, columns, C).
    """
    rate = 10_000.0 ** -(torch.arange(dim // 4, device=device) / (dim // 4))
    down, across = (torch.arange(count, device=device)[:, None] * rate for count in (rows, columns))
    down, across = (torch.cat((angle.sin(), angle.cos()), 1) for angle in (down, across))
    return torch.cat((across.expand(rows, -1, -1), down[:, None].expand(-1, columns, -1)), 2)


class ContextBlock(nn.Module):
    """One layer of the context encoder, (B, N, C) to the same.

    Args:
        dim: C.
        state: state size per inner channel of Mamba.
        reverse: whether the sequence is read from its end.
        drop_path: probability of dropping the branch while training.
    """

    def __init__(self, dim: int, *, state: int = 16, reverse: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        self.reverse = reverse
        self.norm, self.mixer, self.drop_path = nn.LayerNorm(dim), Mamba(dim, state=state), DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens.flip(1) if self.reverse else tokens)
        tokens = tokens + self.drop_path(self.mixer(tokens))
        return tokens.flip(1) if self.reverse else tokens


class XT(nn.Module):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), of any H and W.

    Args:
        encoder: region encoder with timm's `forward_features`, (B, in_channels, s, s) to (B, h, h, E).
        encoder_dim: E.
        region_size: s.
        dim: C, a multiple of 4.
        depth: number of context layers.
        state: state size per inner channel of Mamba.
        num_classes: of the head; 0 gives the last token.
        in_channels: of the picture.
        drop_path: of each context layer while training.
        chunk: number of regions that are encoded at a time; None for all. It changes memory, not the result.

    Raises:
        ValueError: a width that is no multiple of 4, or a chunk below 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        encoder_dim: int,
        *,
        region_size: int,
        dim: int,
        depth: int,
        state: int = 16,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path: float = 0.0,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4, got {dim}; a quarter each are sines and cosines of a side")
        self.region_size, self.in_channels, self.num_classes = region_size, in_channels, num_classes
        self.set_chunk(chunk)
        self.encoder = encoder
        self.proj = nn.Linear(encoder_dim, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 1e-6)
        # The token stands at the end: the last layer must read forward, or the token would see itself alone.
        self.blocks = nn.ModuleList(
            ContextBlock(dim, state=state, reverse=(depth - i) % 2 == 0, drop_path=drop_path) for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def set_chunk(self, chunk: int | None) -> None:
        """Choose how many regions are encoded at a time.

        Args:
            chunk: at least 1; None for all regions of all pictures.

        Raises:
            ValueError: a chunk below 1.
        """
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1 region, got {chunk}; None encodes all regions at once")
        self.chunk = chunk

    def encode(self, x: Tensor) -> Tensor:
        """Features of all regions, each read by itself.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            The map of the sequence, (B, rows·h, columns·h, C).
        """
        side = self.region_size
        rows, columns = -(-x.shape[2] // side), -(-x.shape[3] // side)
        count = x.shape[0] * rows * columns
        encoder: Any = self.encoder
        found = []
        for first in range(0, count, self.chunk or count):
            cut = regions(x, side, first, min(count, first + (self.chunk or count)))
            found.append(self.proj(encoder.forward_features(cut)))
        return join(torch.cat(found), rows, columns)

    def forward_features(self, x: Tensor) -> Tensor:
        """The sequence behind the context encoder, normalised.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            (B, N + 1, C); the last token stands for the picture.
        """
        tokens = self.encode(x)
        tokens = tokens + positions(*tokens.shape[1:], device=x.device).to(tokens)
        tokens = torch.cat((tokens.flatten(1, 2), self.cls_token.expand(x.shape[0], -1, -1)), 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x)[:, -1])


def xt(
    dim: int = 768,
    depth: int = 4,
    *,
    region_size: int = 256,
    patch_size: int = 4,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 16,
    state: int = 16,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.0,
    chunk: int | None = None,
) -> XT:
    """Build xT with a Swin Transformer V2 as region encoder.

    Args:
        dim: C.
        depth: number of context layers.
        region_size: s.
        patch_size: side of the encoder's patches.
        embed_dim: channels of its first stage; each later one has twice as many.
        depths: blocks of its stages.
        num_heads: attention heads of its stages.
        window_size: side of its windows.
        state: state size per inner channel of Mamba.
        num_classes: of the head; 0 gives the last token.
        in_channels: of the picture.
        drop_path: drop-path rate of encoder and context layers.
        chunk: number of regions that are encoded at a time; None for all.

    Returns:
        The network, (B, in_channels, H, W) to (B, num_classes).
    """
    encoder = SwinTransformerV2(
        img_size=region_size,
        patch_size=patch_size,
        in_chans=in_channels,
        num_classes=0,
        embed_dim=embed_dim,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        window_size=window_size,
        drop_path_rate=drop_path,
    )
    return XT(
        encoder,
        encoder.num_features,
        region_size=region_size,
        dim=dim,
        depth=depth,
        state=state,
        num_classes=num_classes,
        in_channels=in_channels,
        drop_path=drop_path,
        chunk=chunk,
    )


xt_tiny = xt  # the encoder is Swin-T
xt_small = partial(xt, depths=(2, 2, 18, 2))  # Swin-S
xt_base = partial(xt, embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))  # Swin-B
xt_large = partial(xt, embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))  # Swin-L

_TINY = {"dim": 8, "depth": 2, "region_size": 8, "embed_dim": 4, "depths": (1, 1), "num_heads": (1, 2)}
_CASE = {**_TINY, "window_size": 2, "patch_size": 2, "state": 2, "num_classes": 3}

METHOD = Method(
    id=73,
    name="xT",
    kind="model",
    summary="A large picture is encoded region by region, and one long sequence with linear cost joins the regions.",
    paper=Paper(
        "xT: Nested Tokenization for Larger Context in Large Images", "R. Gupta et al.", 2024, "arXiv:2403.01915"
    ),
    models={"xt_base": xt_base, "xt_large": xt_large, "xt_small": xt_small, "xt_tiny": xt_tiny},
    cases={name: {**_CASE, "chunk": 3} for name in ("xt_base", "xt_large", "xt_small", "xt_tiny")},
)
