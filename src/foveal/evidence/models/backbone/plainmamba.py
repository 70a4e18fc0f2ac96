"""Evidence of foveal.models.backbone.plainmamba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.models.backbone.plainmamba import PlainMambaBlock, plainmamba_l1, plainmamba_l2, plainmamba_l3
from foveal.nn.snake import SnakeScan
from foveal.ops.scan2d import routes
from foveal.record import equal, faster, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


_SIDES = tuple((height, width) for height in range(1, 8) for width in range(1, 8))


def _walked() -> Tensor:
    """For maps of all small sizes: the places that each route visits, sorted, and the length of each step."""
    found = []
    for height, width in _SIDES:
        route = routes("snake", height, width)
        step = (route // width).diff(dim=1).abs() + (route % width).diff(dim=1).abs()
        found += [route.sort(1).values.flatten(), step.flatten()]
    return torch.cat(found).float()


def _neighbours() -> Tensor:
    found = [
        torch.cat([torch.arange(h * w).repeat(4), torch.ones(4 * (h * w - 1), dtype=torch.int64)]) for h, w in _SIDES
    ]
    return torch.cat(found).float()


def _scanned(*, plainly: bool) -> Tensor:
    from foveal.ops.selective_scan.reference import selective_scan_reference

    torch.manual_seed(0)
    scan, u = SnakeScan(6, state=3, dt_rank=2), torch.randn(2, 6, 5, 7)
    nn.init.zeros_(scan.directions)
    with torch.no_grad():
        if not plainly:
            return scan(u)
        flat = u.flatten(2)
        delta, weights_in, weights_out = scan.project(flat)
        found = torch.zeros_like(flat)
        for route in routes("snake", 5, 7):
            ins, outs = weights_in[:, None, :, route], weights_out[:, None, :, route]
            y, _ = selective_scan_reference(
                flat[..., route], delta[..., route], -scan.A_log.exp(), ins, outs, scan.D, delta_softplus=True
            )
            found[..., route] += y
        return found.view(u.shape)


def _macs(build: Callable[[], nn.Module], side: int) -> float:
    from foveal.measure.cost import count_macs

    return float(count_macs(build(), (1, 3, side, side)))


def _deit() -> nn.Module:
    """DeiT-S for pictures of 1024×1024."""
    from timm import create_model

    return create_model("deit_small_patch16_224", img_size=1024)


def _timed(*blocks: nn.Module) -> Callable[[], Any]:
    stack, tokens = nn.ModuleList(blocks).eval(), torch.randn(1, 64**2, 384)

    def call() -> Tensor:
        with torch.inference_mode():
            x = tokens
            for block in stack:
                x = block(x, (64, 64)) if isinstance(block, PlainMambaBlock) else block(x)
            return x

    return call


def _attention() -> nn.Module:
    """A block of DeiT-S that builds its matrix of attention."""
    from timm.models.vision_transformer import Block

    block = Block(384, num_heads=6, qkv_bias=True)
    block.attn.fused_attn = False  # type: ignore[assignment]
    return block


CLAIMS = (
    params("L1 without the classifier.", paper="7.3 M", model=lambda: plainmamba_l1(num_classes=0), expect=7_358_656),
    params("L2, the same.", paper="25.7 M", model=lambda: plainmamba_l2(num_classes=0), expect=25_760_832),
    params("L3, the same.", paper="50.5 M", model=lambda: plainmamba_l3(num_classes=0), expect=50_507_456),
    macs("L1 at 224×224.", paper="3.0 G", model=plainmamba_l1, shape=(1, 3, 224, 224), expect=3_012_897_024),
    macs("L2 at 224×224.", paper="8.1 G", model=plainmamba_l2, shape=(1, 3, 224, 224), expect=8_074_705_920),
    macs("L3 at 224×224.", paper="14.4 G", model=plainmamba_l3, shape=(1, 3, 224, 224), expect=14_432_972_288),
    equal(
        "The routes visit each place once and go from neighbour to neighbour, on maps of 49 sizes.",
        ours=_walked,
        theirs=_neighbours,
        tolerance=0.0,
    ),
    equal(
        "Without direction vectors it is four ordinary scans, summed.",
        ours=lambda: _scanned(plainly=False),
        theirs=lambda: _scanned(plainly=True),
        tolerance=1e-5,
    ),
    smaller(
        "At 1024×1024 L2 takes fewer multiply-adds than DeiT-S, at 224×224 more.",
        paper="much less than attention",
        ours=lambda: _macs(plainmamba_l2, 1024),
        theirs=lambda: _macs(_deit, 1024),
        at_least=1.3,
    ),
    faster(
        "At 1024×1024 two blocks of L2 take less time than one of DeiT-S, whose network has half as many.",
        paper="",
        ours=lambda: _timed(PlainMambaBlock(384), PlainMambaBlock(384)),
        theirs=lambda: _timed(_attention()),
    ),
)
