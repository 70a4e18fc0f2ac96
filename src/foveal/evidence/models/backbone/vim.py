"""Evidence of foveal.models.backbone.vim."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.models.backbone.vim import VimBlock, vim_base, vim_small, vim_tiny
from foveal.nn.mamba import Mamba
from foveal.record import equal, faster, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


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


CLAIMS = (
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
)
