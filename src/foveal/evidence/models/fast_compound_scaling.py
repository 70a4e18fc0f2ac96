"""Evidence for fast compound scaling: multiply-adds hit, activations counted, and times at equal multiply-adds."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import timm
import torch
from timm.models.regnet import model_cfgs
from torch import Tensor, nn

from foveal.evidence.timing import call
from foveal.measure.cost import count_macs
from foveal.measure.meta import without_storage
from foveal.models.fast_compound_scaling import (
    DEPTH,
    UNIFORM,
    WIDTH,
    AnyNet,
    Shares,
    count,
    fast,
    multipliers,
    scale_stages,
    scaled_regnet,
    stages_of,
)
from foveal.record import bound, equal, faster, grows, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

FACTORS = (1, 2, 3, 4, 6, 8, 12, 16)
SIZES = (1, 2, 4, 8, 16)
COUNTED = ("regnety_004", "regnetz_005", "regnetv_064")
TIMED, TIMES = "regnety_004", 16


def miss(shares: Shares) -> float:
    """How far multiply-adds are from their target, over all RegNets of timm and eight factors.

    Args:
        shares: of depth, width and resolution.

    Returns:
        The largest relative difference, percent.
    """
    worst = 0.0
    for cfg in model_cfgs.values():
        base = count(cfg, stages_of(cfg)).macs
        for factor in FACTORS:
            macs = count(cfg, scale_stages(cfg, factor, shares=shares)).macs
            worst = max(worst, abs(macs / base / factor - 1))
    return 100 * worst


def activations(shares: Shares, factor: float) -> float:
    """Activations after scaling, the geometric mean over all RegNets of timm.

    Args:
        shares: of depth, width and resolution.
        factor: multiply-adds over those of the base.

    Returns:
        Outputs of convolutions.
    """
    found = [count(cfg, scale_stages(cfg, factor, shares=shares)).activations for cfg in model_cfgs.values()]
    return math.exp(sum(map(math.log, found)) / len(found))


def counted(model: nn.Module, side: int) -> tuple[float, float]:
    """Multiply-adds and activations as torch meets them in a forward pass.

    Args:
        model: network on the meta device.
        side: side of its picture.

    Returns:
        Multiply-adds, and outputs of convolutions and linear layers.
    """
    outputs: list[int] = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda _module, _args, out: outputs.append(out.numel()))
    macs = count_macs(model, (1, 3, side, side))
    return float(macs), float(sum(outputs))


def _counts(*, ours: bool) -> Tensor:
    """Counts of three networks as timm has them and at three times the multiply-adds, by formula or in torch."""
    out = []
    for name in COUNTED:
        cfg = model_cfgs[name]
        for factor in (1, 3):
            stages = scale_stages(cfg, factor)
            if ours:
                found = count(cfg, stages)
                out.append((float(found.macs), float(found.activations)))
                continue
            with without_storage():
                model = timm.create_model(name) if factor == 1 else AnyNet(cfg, stages)
            out.append(counted(model, stages.img_size))
    return torch.tensor(out, dtype=torch.float64)


def _rule(shares: Shares) -> float:
    """Exponent of activations, d·w·r², that the rule gives before rounding."""
    depth, width, resolution = multipliers(16.0, shares)
    return math.log(depth * width * resolution**2, 16)


def _timed(shares: Shares) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        side = scale_stages(model_cfgs[TIMED], TIMES, shares=shares).img_size
        return call(lambda: scaled_regnet(TIMED, TIMES, shares=shares)[0], 1, 3, side, side)()

    return prepare


CLAIMS = (
    *(
        bound(
            f"Scaled {words} by 1 to 16, each RegNet of timm hits its multiply-adds within 5 %.",
            paper="multiply-adds grow by s",
            value=partial(miss, shares),
            at_most=5.0,
            unit="% off at worst",
            clause=1,
        )
        for words, shares in (("fast", fast()), ("uniformly", UNIFORM))
    ),
    equal(
        "Counts by formula are those of a forward pass, for timm's networks and scaled ones.",
        ours=lambda: _counts(ours=True),
        theirs=lambda: _counts(ours=False),
        tolerance=0.0,
        beyond="activations: the outputs of convolutions",
    ),
    grows(
        "Activations of fast-scaled RegNets grow as s^0.6, averaged over timm's.",
        paper="s^0.6",
        cost=partial(activations, fast()),
        sizes=SIZES,
        exponent=(0.55, 0.65),
        clause=2,
    ),
    equal(
        "The rule itself gives 0.6, and 0.83 when uniform.",
        paper="s^0.6 and s^0.83",
        ours=lambda: torch.tensor([_rule(fast()), _rule(UNIFORM), _rule(WIDTH), _rule(DEPTH)], dtype=torch.float64),
        theirs=lambda: torch.tensor([0.6, 5 / 6, 0.5, 1.0], dtype=torch.float64),
        tolerance=1e-12,
        clause=2,
    ),
    smaller(
        "At 16 times the multiply-adds, fast scaling leaves at most two thirds of uniform scaling's activations.",
        paper="16^0.23 = 1.9× fewer",
        ours=partial(activations, fast(), 16),
        theirs=partial(activations, UNIFORM, 16),
        at_least=1.5,
        clause=2,
    ),
    grows(
        "Activations of uniformly scaled RegNets grow as s^0.83, averaged over timm's.",
        paper="s^0.83",
        cost=partial(activations, UNIFORM),
        sizes=SIZES,
        exponent=(0.78, 0.88),
        beyond="s^0.83; stem and first blocks do not deepen",
    ),
    *(
        faster(
            f"{TIMED} at {TIMES} times its multiply-adds takes less time scaled fast than {words}.",
            paper="faster at equal multiply-adds, on GPUs",
            ours=_timed(fast()),
            theirs=_timed(shares),
            clause=3,
        )
        for words, shares in (("uniformly", UNIFORM), ("in depth", DEPTH))
    ),
    faster(
        f"{TIMED} at {TIMES} times its multiply-adds takes less time scaled in width than fast.",
        paper="width alone is the fastest, and less accurate",
        ours=_timed(WIDTH),
        theirs=_timed(fast()),
        beyond="the fewer activations, the less time",
    ),
)
