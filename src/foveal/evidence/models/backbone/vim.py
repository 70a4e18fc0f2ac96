"""Evidence for Vim: its scans against the recurrence step by step, its memory and time against DeiT's attention."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from foveal.evidence.timing import call
from foveal.measure.cost import peak_memory
from foveal.models.backbone.vim import VimBlock, vim_base, vim_small, vim_tiny
from foveal.nn.mamba import Mamba
from foveal.ops.selective_scan.reference import selective_scan_reference
from foveal.record import equal, faster, grows, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

DIM = 192  # width of Vim-Ti and DeiT-Ti


def _tokens(side: int) -> int:
    """Number of tokens of a picture of side×side pixels, including the class token."""
    return (side // 16) ** 2 + 1


def _mixed(*, plainly: bool) -> Tensor:
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
            u = F.silu(conv1d(way)[..., :37])
            delta, weights_in, weights_out = mixer.project(u, back=back)
            ins, outs = weights_in[:, None], weights_out[:, None]
            y, _ = selective_scan_reference(u, delta, -decay.exp(), ins, outs, skip, delta_softplus=True)
            found += (y.flip(-1) if back else y) / 2
        return mixer.out_proj((found * F.silu(z)).transpose(1, 2))


def _deit() -> Block:
    """A block of DeiT-Ti that materialises its attention matrix, as was usual when the paper was written."""
    block = Block(DIM, num_heads=DIM // 64, qkv_bias=True)
    block.attn.fused_attn = False  # type: ignore[assignment]
    return block


def _kept_bytes(build: Callable[[], nn.Module], side: int) -> float:
    """Bytes, without weights, that a block saves for the backward pass on a picture of side×side pixels."""
    with torch.device("meta"):
        block, tokens = build().train(), torch.zeros(1, _tokens(side), DIM, requires_grad=True)
    weights = {id(parameter) for parameter in block.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        origin = tensor if tensor._base is None else tensor._base
        if id(origin) not in weights:
            found[id(origin)] = origin
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(tokens)
    return float(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))


def _growth(build: Callable[[], nn.Module]) -> float:
    return _kept_bytes(build, 1248) / _kept_bytes(build, 224)


def _two() -> nn.Module:
    return nn.Sequential(VimBlock(DIM), VimBlock(DIM))


def _run(build: Callable[[], nn.Module], tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return build().eval()(tokens)


def _peak(build: Callable[[], nn.Module]) -> float:
    return float(peak_memory(partial(_run, build, torch.randn(1, _tokens(1248), DIM))))


CLAIMS = (
    params(
        "Vim-Ti: 7 M parameters as printed.",
        paper="7 M",
        model=vim_tiny,
        expect="7 M",
        tolerance=0.02,
        clause=2,
    ),
    params(
        "Vim-S: 26 M parameters as printed.",
        paper="26 M",
        model=vim_small,
        expect="26 M",
        tolerance=0.02,
        clause=2,
    ),
    params("Vim-Ti.", paper="authors' code", model=vim_tiny, expect=7_148_008, beyond="the authors' network"),
    params("Vim-S.", paper="authors' code", model=vim_small, expect=25_796_584, beyond="the authors' network"),
    params("Vim-B.", paper="98 M", model=vim_base, expect="98 M", beyond="the size of the largest network"),
    macs(
        "Vim-Ti, one picture of 224×224.",
        paper="layer sizes",
        model=vim_tiny,
        shape=(1, 3, 224, 224),
        expect=1_819_448_832,
        beyond="cost of the sizes; the paper prints none",
    ),
    macs(
        "Vim-S, the same.",
        paper="layer sizes",
        model=vim_small,
        shape=(1, 3, 224, 224),
        expect=5_904_706_560,
        beyond="cost of the sizes; the paper prints none",
    ),
    equal(
        "Both directions compute what the recurrence does, step by step.",
        ours=lambda: _mixed(plainly=False),
        theirs=lambda: _mixed(plainly=True),
        tolerance=1e-4,
        clause=1,
    ),
    grows(
        "From 224 to 1248 pixels, what a block keeps for training grows as the tokens do.",
        paper="linear memory",
        cost=partial(_kept_bytes, partial(VimBlock, DIM)),
        sizes=(224, 448, 640, 896, 1248),
        of=_tokens,
        clause=3,
    ),
    grows(
        "What explicit attention of the same width keeps grows quadratically, once its matrices outweigh the inputs of "
        "its projections, from 1248 to 4992 pixels.",
        paper="quadratic memory",
        cost=partial(_kept_bytes, lambda: _deit().attn),
        sizes=(1248, 2496, 4992),
        of=_tokens,
        exponent=(1.9, 2.1),
        clause=4,
    ),
    smaller(
        "What a block of DeiT keeps grows more than five times as much.",
        paper="quadratic memory",
        ours=lambda: _growth(partial(VimBlock, DIM)),
        theirs=lambda: _growth(_deit),
        at_least=5.0,
        clause=4,
    ),
    smaller(
        "At 1248×1248 two blocks run in a fifth of the memory of one of DeiT, whose network has half as many.",
        paper="86.8% less on a GPU",
        ours=lambda: _peak(_two),
        theirs=lambda: _peak(_deit),
        at_least=5.0,
        beyond="memory saved at 1248×1248",
    ),
    faster(
        "At 1248×1248 two blocks take less time than one of DeiT, whose network has half as many.",
        paper="2.8 times on a GPU",
        ours=call(_two, 1, _tokens(1248), DIM),
        theirs=call(_deit, 1, _tokens(1248), DIM),
        beyond="speed at 1248×1248",
    ),
)
