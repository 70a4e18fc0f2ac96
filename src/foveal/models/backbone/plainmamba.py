"""PlainMamba: blocks of constant width whose scans snake over the image and are aware of their direction.

*Source*: C. Yang et al., "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition", BMVC 2024
(arXiv:2403.17695), section 3 and table 1.

    [x, z] = W_in norm(tokens),  u = silu(dwconv₇ₓ₇(x))              (B, N, C) to two of (B, E, H', W')
    y = sum of four scans of u, along rows and columns, both ways    `foveal.nn.snake`
    tokens = tokens + W_out (y ∘ silu(z))

No class token; the head reads the mean of norm(tokens).

*Differs from the paper*: step sizes are initialised as in Mamba; position embeddings are resized to any image. The
authors' code computes the scans differently from the paper; `released=True` follows the code, see `foveal.nn.snake`.
*Provenance*: written from the paper; the patch embedding, the extra convolution of L1's first block and the initial
values were looked up in the authors' code.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from foveal.nn.isotropic import Isotropic
from foveal.nn.renamed import renamed
from foveal.nn.snake import SnakeScan
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "PlainMambaBlock",
    "PlainMambaMixer",
    "from_authors",
    "plainmamba",
    "plainmamba_l1",
    "plainmamba_l2",
    "plainmamba_l3",
]


class PlainMambaMixer(nn.Module):
    """Mixer of a feature map's tokens, (B, N, dim) to (B, N, dim).

    Args:
        dim: C.
        state: D.
        expand: ratio of inner channels to `dim`.
        kernel_size: kernel size of the depthwise convolution before the scans, odd.
        released: whether to scan as the authors' code does, see `SnakeScan`.
    """

    def __init__(
        self, dim: int, *, state: int = 16, expand: float = 2.0, kernel_size: int = 7, released: bool = False
    ) -> None:
        super().__init__()
        inner = int(expand * dim)
        self.in_proj = nn.Linear(dim, 2 * inner)
        self.conv2d = nn.Conv2d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner)
        self.scan = SnakeScan(inner, state=state, dt_rank=-(-dim // 16), released=released)
        self.out_proj = nn.Linear(inner, dim)
        for projection in (self.in_proj, self.out_proj):
            trunc_normal_(projection.weight, std=0.02)
            nn.init.zeros_(projection.bias)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        # two of (B, E, N)
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        y = self.scan(F.silu(self.conv2d(x.unflatten(2, size)))).flatten(2)
        return self.out_proj((y * F.silu(z)).transpose(1, 2))


class PlainMambaBlock(nn.Module):
    """Norm, mixer, residual and, in L1's first block, a 3×3 depthwise convolution over the sum.

    Args:
        dim: C.
        state: D.
        convolve: whether the block has that convolution.
        drop_path: drop-path rate of the mixer.
        released: whether to scan as the authors' code does, see `SnakeScan`.
    """

    def __init__(
        self, dim: int, *, state: int = 16, convolve: bool = False, drop_path: float = 0.0, released: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = PlainMambaMixer(dim, state=state, released=released)
        self.drop_path = DropPath(drop_path)
        self.convolve = (
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False), nn.BatchNorm2d(dim), nn.GELU())
            if convolve
            else None
        )

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens + self.drop_path(self.mixer(self.norm(tokens), size))
        if self.convolve is None:
            return tokens
        return self.convolve(tokens.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)


class _Patches(nn.Module):
    """Convolutions at half resolution, then patches; (B, in_channels, H, W) to (B, dim, H / p, W / p)."""

    def __init__(self, dim: int, convolutions: int, *, in_channels: int, patch_size: int, features: int = 64) -> None:
        super().__init__()
        self.side = patch_size // 2
        layers: list[nn.Module] = []
        for i in range(1 + convolutions):
            layers += (
                [nn.Conv2d(features, features, 3, padding=1, bias=False)]
                if i
                else [nn.Conv2d(in_channels, features, 7, stride=2, padding=3, bias=False)]
            )
            layers += [nn.BatchNorm2d(features), nn.ReLU()]
        self.stem = nn.Sequential(*layers)
        self.proj = nn.Conv2d(features, dim, self.side, stride=self.side)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.proj(F.pad(x, (0, -x.shape[3] % self.side, 0, -x.shape[2] % self.side)))


def plainmamba(
    dim: int = 192,
    depth: int = 24,
    convolutions: int = 2,
    state: int = 16,
    patch_size: int = 16,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    *,
    convolve_first: bool = False,
    released: bool = False,
    grid: tuple[int, int] = (14, 14),
) -> Isotropic:
    """PlainMamba of any size.

    Args:
        dim: C.
        depth: number of blocks.
        convolutions: number of 3×3 convolutions before the patches.
        state: D.
        patch_size: side of a patch in pixels, even.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns features.
        drop_path: drop-path rate of the last block; the rates rise from 0.
        convolve_first: whether the first block ends with a depthwise convolution.
        released: whether to scan as the authors' code does, see `SnakeScan`.
        grid: size of the position embedding in patches, (H', W').

    Returns:
        The network, (B, in_channels, H, W) to (B, num_classes).
    """
    return Isotropic(
        _Patches(dim, convolutions, in_channels=in_channels, patch_size=patch_size),
        [
            PlainMambaBlock(
                dim,
                state=state,
                convolve=convolve_first and i == 0,
                drop_path=drop_path * i / max(depth - 1, 1),
                released=released,
            )
            for i in range(depth)
        ],
        dim,
        patch_size,
        grid=grid,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=nn.LayerNorm(dim, eps=1e-6),
    )


plainmamba_l1 = partial(plainmamba, dim=192, depth=24, convolutions=1, convolve_first=True)  # L1
plainmamba_l2 = partial(plainmamba, dim=384, depth=24)  # L2
plainmamba_l3 = partial(plainmamba, dim=448, depth=36)  # L3


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    They were trained with the scans of the authors' code: build the network with `released=True`.

    Args:
        state_dict: name → tensor, the entry "state_dict" of their files.

    Returns:
        State dict of `plainmamba_l1`, `plainmamba_l2` or `plainmamba_l3`.
    """
    return renamed(
        state_dict,
        [
            (r"^backbone\.", ""),
            (r"^head\.fc\.", "head."),
            (r"^ln1\.", "norm."),
            # the convolutions after the first one and its norm and activation
            (r"^patch_embed\.convs\.(\d+)", lambda found: f"patch_embed.stem.{int(found[1]) + 3}"),
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^layers\.", "blocks."),
            (r"\.dw\.", ".convolve."),
            (r"\.mamba\.", ".mixer."),
            (r"\.mixer\.(x_proj|dt_proj|A_log|D\b)", r".mixer.scan.\1"),
            (r"\.direction_Bs", ".scan.directions"),
        ],
    )


_TINY = {"dim": 8, "depth": 1, "state": 2, "patch_size": 4, "num_classes": 5}

METHOD = Method(
    id=280,
    name="PlainMamba",
    kind="model",
    summary="Blocks of one width whose four scans snake over the picture and know which way they go.",
    paper=Paper(
        "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition",
        "C. Yang et al.",
        2024,
        "arXiv:2403.17695",
    ),
    models={"plainmamba_l1": plainmamba_l1, "plainmamba_l2": plainmamba_l2, "plainmamba_l3": plainmamba_l3},
    cases={
        "plainmamba_l1": {**_TINY, "depth": 2, "in_channels": 1},
        "plainmamba_l2": {**_TINY, "released": True},
        "plainmamba_l3": _TINY,
    },
)
