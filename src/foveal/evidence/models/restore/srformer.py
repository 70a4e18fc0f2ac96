"""Evidence for SRFormer: counts, plain window attention at r = 1, and against SwinIR: layers, cost, pictures."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from foveal.evidence.rivals.swinir import SwinIR
from foveal.evidence.tasks import photos
from foveal.evidence.tasks.equal_minutes import Trial
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs, count_parameters
from foveal.models.restore.srformer import PermutedAttention, SRFormer
from foveal.nn.windows import WindowAttention
from foveal.record import bound, equal, faster, kept, params, smaller

# Windows that fit into patches of 24 pixels, as both networks are trained on.
small = partial(SRFormer, dim=24, depths=(2, 2), num_heads=4, window=12)
swin = partial(SwinIR, dim=24, depths=(2, 2), num_heads=4, window=8)
TRIAL = Trial((small, swin), 2, 0.9)
SHAPE = (1, 192, 192)  # of a map that windows of 8, 16 and 24 divide


def _unreduced(*, permuted: bool) -> Tensor:
    """Shifted windows of 8×8 with r = 1, or attention in windows with the same weights."""
    torch.manual_seed(0)
    ours, theirs = PermutedAttention(12, 3, 8, reduction=1, shift=4).double(), WindowAttention(12, 3, (8, 8), (4, 4))
    theirs = theirs.double()
    theirs.load_state_dict(
        {
            "qkv.weight": torch.cat([ours.q.weight, ours.kv.weight]),
            "qkv.bias": torch.cat([ours.q.bias, ours.kv.bias]),
            "proj.weight": ours.proj.weight,
            "proj.bias": ours.proj.bias,
            "bias.relative_position_bias_table": ours.bias.relative_position_bias_table,
        }
    )
    x = torch.randn(2, 16, 24, 12, dtype=torch.float64)
    with torch.inference_mode():
        return (ours if permuted else theirs)(x)


def _permuted(dim: int, window: int) -> PermutedAttention:
    return PermutedAttention(dim, 6, window)


def _plain(dim: int) -> WindowAttention:
    return WindowAttention(dim, 6, (8, 8))


CLAIMS = (
    params("Parameters of SRFormer-light ×2.", paper="853 K", model=partial(SRFormer, 2), expect=853_272, clause=1),
    params("Parameters of SRFormer-light ×4.", paper="873 K", model=partial(SRFormer, 4), expect=872_748, clause=1),
    equal(
        "With r = 1 it is attention in windows.",
        ours=lambda: _unreduced(permuted=True),
        theirs=lambda: _unreduced(permuted=False),
        tolerance=1e-9,
        clause=2,
    ),
    smaller(
        "In 24×24 windows it takes no more multiply-adds than SwinIR-light's attention in 8×8 windows, 60 channels.",
        paper="large windows at a lower cost",
        ours=lambda: count_macs(_permuted(60, 24), (*SHAPE, 60)),
        theirs=lambda: count_macs(_plain(60), (*SHAPE, 60)),
        clause=3,
    ),
    faster(
        "In 24×24 windows it takes no more processor time than SwinIR-light's attention in 8×8 windows, 60 channels.",
        paper="large windows at a lower cost",
        ours=call(partial(_permuted, 60, 24), *SHAPE, 60),
        theirs=call(partial(_plain, 60), *SHAPE, 60),
        clause=3,
    ),
    TRIAL.better(
        small,
        "After equal processor minutes a small ×2 is not below a SwinIR of the same width and depth.",
        than=swin,
        by=0.0,
        paper="Urban100: + 0.46 dB",
        clause=4,
    ),
    kept(
        "The small network has learnt in its minutes: it is above bicubic.",
        paper="",
        quality=partial(TRIAL.gain, small),
        at_least=0.0,
        data=TRIAL.data,
        needs=photos.NEEDS,
        beyond="what is compared has been learnt",
    ),
    bound(
        "For that it has no more parameters.",
        paper="fewer",
        value=lambda: count_parameters(small(2)) / count_parameters(swin(2)),
        at_most=1.0,
        clause=4,
    ),
    smaller(
        "In 24×24 windows it takes fewer multiply-adds than attention in 8×8 windows with 180 channels.",
        paper="fewer, at the width of SwinIR",
        ours=lambda: count_macs(_permuted(180, 24), (*SHAPE, 180)),
        theirs=lambda: count_macs(_plain(180), (*SHAPE, 180)),
        at_least=1.1,
        beyond="cost at the width of the large network",
    ),
    smaller(
        "In the light network's 16×16 windows it takes fewer multiply-adds than attention in 8×8 windows.",
        paper="fewer",
        ours=lambda: count_macs(_permuted(60, 16), (*SHAPE, 60)),
        theirs=lambda: count_macs(_plain(60), (*SHAPE, 60)),
        at_least=1.3,
        beyond="cost of the light network",
    ),
    faster(
        "In the light network's 16×16 windows it takes no more processor time than attention in 8×8 windows.",
        paper="large windows at a lower cost",
        ours=call(partial(_permuted, 60, 16), *SHAPE, 60),
        theirs=call(partial(_plain, 60), *SHAPE, 60),
        beyond="time of the light network",
    ),
)
