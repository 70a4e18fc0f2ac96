"""Vim: a plain stack of blocks that read the patches of an image forward and backward.

*Source*: L. Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
ICML 2024 (arXiv:2401.09417), section 3, algorithm 1 and the class token in the middle (table 5).

    tokens = [patches before, class token, patches after] + positions         (B, N, C), N = H·W / 16² + 1
    tokens = tokens + mamba(rmsnorm(tokens))                                  24 times, `foveal.nn.mamba`
    logits = W rmsnorm(class token)

The class token is in the middle, so that both directions have read half of the image when they reach it. The time and
memory of a block grow with N, those of attention with N².

*Differs from the paper*: the two directions are averaged, as in the authors' code; position embeddings are resized to
any image.
*Provenance*: written from the paper; sizes and initial values were looked up in the authors' code.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.layers import DropPath, lecun_normal_
from torch import Tensor, nn

from foveal.nn.isotropic import Isotropic, PatchEmbed
from foveal.nn.mamba import Mamba
from foveal.nn.renamed import renamed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["VimBlock", "from_authors", "vim", "vim_base", "vim_small", "vim_tiny"]


class VimBlock(nn.Module):
    """Norm, bidirectional mixer, residual; (B, N, dim) to (B, N, dim).

    Args:
        dim: C.
        state: D, state size per inner channel.
        drop_path: drop-path rate of the mixer.
    """

    def __init__(self, dim: int, *, state: int = 16, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = Mamba(dim, state=state, bidirectional=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, size: tuple[int, int] | None = None) -> Tensor:  # noqa: ARG002 - for any map
        return tokens + self.drop_path(self.mixer(self.norm(tokens)))


def vim(
    dim: int = 192,
    depth: int = 24,
    state: int = 16,
    patch_size: int = 16,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    *,
    grid: tuple[int, int] = (14, 14),
) -> Isotropic:
    """Vim of any size.

    Args:
        dim: C.
        depth: number of blocks.
        state: D.
        patch_size: side of a patch in pixels.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns features.
        drop_path: drop-path rate of the last block; the rates rise from 0.
        grid: size of the position embedding in patches, (H', W').

    Returns:
        The network, (B, in_channels, H, W) to (B, num_classes).
    """
    blocks = [VimBlock(dim, state=state, drop_path=drop_path * i / max(depth - 1, 1)) for i in range(depth)]
    for block in blocks:
        with torch.no_grad():
            block.mixer.out_proj.weight /= math.sqrt(depth)
    embed = PatchEmbed(dim, patch_size, in_channels=in_channels)
    lecun_normal_(embed.proj.weight)
    assert embed.proj.bias is not None
    nn.init.zeros_(embed.proj.bias)
    return Isotropic(
        embed,
        blocks,
        dim,
        patch_size,
        grid=grid,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=nn.RMSNorm(dim, eps=1e-5),
        class_token=True,
    )


vim_tiny = partial(vim, dim=192)  # Vim-Ti
vim_small = partial(vim, dim=384)  # Vim-S
vim_base = partial(vim, dim=768)  # Vim-B


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    Args:
        state_dict: name → tensor, the entry "model" of their files, for networks with non-overlapping patches.

    Returns:
        State dict of `vim_tiny`, `vim_small` or `vim_base`.
    """
    return renamed(state_dict, [(r"^layers\.", "blocks."), (r"^norm_f\.", "norm.")])


_TINY = {"dim": 8, "depth": 1, "state": 2, "patch_size": 4, "num_classes": 5}

METHOD = Method(
    id=278,
    name="Vim",
    kind="model",
    summary="A plain stack of blocks that read the patches of a picture forward and backward in linear time.",
    paper=Paper(
        "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
        "L. Zhu et al.",
        2024,
        "arXiv:2401.09417",
    ),
    models={"vim_tiny": vim_tiny, "vim_small": vim_small, "vim_base": vim_base},
    cases={"vim_tiny": {**_TINY, "depth": 2, "in_channels": 1}, "vim_small": _TINY, "vim_base": _TINY},
)
