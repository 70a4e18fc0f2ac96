"""Vim: a plain stack of blocks that read the patches of a picture forward and backward.

*Source*: L. Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
ICML 2024 (arXiv:2401.09417), section 3, algorithm 1 and the class token in the middle (table 5).

    tokens = [patches before, class token, patches after] + positions         (B, N, C), N = H·W / 16² + 1
    tokens = tokens + mamba(rmsnorm(tokens))                                  24 times, `foveal.nn.mamba`
    logits = W rmsnorm(class token)

The class token stands in the middle, so that both directions have read half of the picture when they come to it. The
time and the memory of a block grow with N, where attention's grow with N².

*Differs from the paper*: the two directions are averaged, as in the authors' code; positions are resized to any
picture.
*Provenance*: written from the paper; sizes and initial values looked up in the authors' code.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import DropPath, lecun_normal_
from torch import Tensor, nn

from foveal.nn.isotropic import Isotropic, PatchEmbed
from foveal.nn.mamba import Mamba
from foveal.record import Method, Paper, equal, faster, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VimBlock", "vim", "vim_base", "vim_small", "vim_tiny"]


class VimBlock(nn.Module):
    """Norm, mixer in both directions, residual; (B, N, dim) to (B, N, dim).

    Args:
        dim: C.
        state: D, numbers that each inner channel remembers.
        drop_path: probability of dropping the mixer while training.
    """

    def __init__(self, dim: int, *, state: int = 16, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = Mamba(dim, state=state, bidirectional=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, size: tuple[int, int] | None = None) -> Tensor:  # noqa: ARG002 - for any map
        return tokens + self.drop_path(self.mixer(self.norm(tokens)))


def vim(
    dim: int,
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
        in_channels: of the picture.
        num_classes: of the head; 0 gives features.
        drop_path: of the last block; the others' grow to it.
        grid: patches that the position embedding is made for.

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


def vim_tiny(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 192,
    depth: int = 24,
    state: int = 16,
    patch_size: int = 16,
) -> Isotropic:
    """Vim-Ti, width 192.

    Args:
        in_channels: of the picture.
        num_classes: of the head; 0 gives features.
        drop_path: of the last block.
        dim: C.
        depth: number of blocks.
        state: D.
        patch_size: side of a patch in pixels.

    Returns:
        The network.
    """
    return vim(dim, depth, state, patch_size, in_channels, num_classes, drop_path)


def vim_small(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 384,
    depth: int = 24,
    state: int = 16,
    patch_size: int = 16,
) -> Isotropic:
    """Vim-S, width 384.

    Args:
        in_channels: of the picture.
        num_classes: of the head; 0 gives features.
        drop_path: of the last block.
        dim: C.
        depth: number of blocks.
        state: D.
        patch_size: side of a patch in pixels.

    Returns:
        The network.
    """
    return vim(dim, depth, state, patch_size, in_channels, num_classes, drop_path)


def vim_base(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 768,
    depth: int = 24,
    state: int = 16,
    patch_size: int = 16,
) -> Isotropic:
    """Vim-B, width 768.

    Args:
        in_channels: of the picture.
        num_classes: of the head; 0 gives features.
        drop_path: of the last block.
        dim: C.
        depth: number of blocks.
        state: D.
        patch_size: side of a patch in pixels.

    Returns:
        The network.
    """
    return vim(dim, depth, state, patch_size, in_channels, num_classes, drop_path)


def _mixed(*, plainly: bool) -> Tensor:
    from foveal.ops.selective_scan.reference import selective_scan_reference

    torch.manual_seed(0)
    mixer, tokens = Mamba(12, state=4, bidirectional=True), torch.randn(2, 37, 12)
    with torch.no_grad():
        if not plainly:
            return mixer(tokens)
        x, z = mixer.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        found = torch.zeros_like(x)
        for back in (False, True):
            conv1d, _, _, decay, skip = mixer.parts(back=back)
            way = x.flip(-1) if back else x
            u = torch.nn.functional.silu(conv1d(way)[..., :37])
            delta, weights_in, weights_out = mixer.project(u, back=back)
            ins, outs = weights_in[:, None], weights_out[:, None]
            y, _ = selective_scan_reference(u, delta, -decay.exp(), ins, outs, skip, delta_softplus=True)
            found += (y.flip(-1) if back else y) / 2
        return mixer.out_proj((found * torch.nn.functional.silu(z)).transpose(1, 2))


def _attention(dim: int) -> nn.Module:
    """A block of DeiT that builds its matrix of attention, as when the paper was written."""
    from timm.models.vision_transformer import Block

    block = Block(dim, num_heads=dim // 64, qkv_bias=True)
    block.attn.fused_attn = False  # type: ignore[assignment]
    return block


def _kept_bytes(block: nn.Module, side: int) -> float:
    """Bytes, but for weights, that a block keeps for the backward pass of a picture of side×side pixels."""
    block = block.to("meta").train()
    weights = {id(parameter) for parameter in block.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        origin = tensor if tensor._base is None else tensor._base
        if id(origin) not in weights:
            found[id(origin)] = origin
        return tensor

    tokens = torch.zeros(1, (side // 16) ** 2 + 1, 192, device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(tokens)
    return float(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))


def _growth(block: nn.Module) -> float:
    return _kept_bytes(block, 1248) / _kept_bytes(block, 224)


def _run(stack: nn.Module, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return stack(tokens)


def _on_large(*blocks: nn.Module) -> Callable[[], Any]:
    """A stack on the tokens of a picture of 1248×1248."""
    return partial(_run, nn.Sequential(*blocks).eval(), torch.randn(1, 78**2 + 1, 192))


def _peak(*blocks: nn.Module) -> float:
    from foveal.measure.cost import peak_memory

    return float(peak_memory(_on_large(*blocks)))


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
    cases={"vim_tiny": _TINY, "vim_small": {**_TINY, "depth": 2}, "vim_base": {**_TINY, "in_channels": 1}},
    claims=(
        params("Vim-Ti.", paper="7 M", model=vim_tiny, expect=7_148_008),
        params("Vim-S.", paper="26 M", model=vim_small, expect=25_796_584),
        params("Vim-B.", paper="98 M", model=vim_base, expect=97_598_440),
        macs("Vim-Ti, one picture of 224×224.", paper="", model=vim_tiny, shape=(1, 3, 224, 224), expect=1_819_448_832),
        macs("Vim-S, the same.", paper="", model=vim_small, shape=(1, 3, 224, 224), expect=5_904_706_560),
        equal(
            "Both directions compute what the recurrence does, step by step.",
            ours=lambda: _mixed(plainly=False),
            theirs=lambda: _mixed(plainly=True),
            tolerance=1e-4,
        ),
        smaller(
            "From 224 to 1248 pixels, what a block keeps for training grows as the tokens do, 31 times.",
            paper="linear memory",
            ours=lambda: _growth(VimBlock(192)),
            theirs=lambda: (78**2 + 1) / (14**2 + 1),
            at_least=0.98,
        ),
        smaller(
            "What a block of DeiT keeps grows more than five times as much.",
            paper="quadratic memory",
            ours=lambda: _growth(VimBlock(192)),
            theirs=lambda: _growth(_attention(192)),
            at_least=5.0,
        ),
        smaller(
            "At 1248×1248 two blocks run in a fifth of the memory of one of DeiT, whose network has half as many.",
            paper="86.8% less on a GPU",
            ours=lambda: _peak(VimBlock(192), VimBlock(192)),
            theirs=lambda: _peak(_attention(192)),
            at_least=5.0,
        ),
        faster(
            "At 1248×1248 two blocks take less time than one of DeiT, whose network has half as many.",
            paper="2.8 times on a GPU",
            ours=lambda: _on_large(VimBlock(192), VimBlock(192)),
            theirs=lambda: _on_large(_attention(192)),
        ),
    ),
)
