"""Evidence for QuickSRNet: folded against unfolded, int8 against float, and its time against SAFMN's."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from foveal.evidence.rivals.static_int8 import static_int8
from foveal.evidence.tasks import photos
from foveal.evidence.timing import call
from foveal.models.restore.quicksrnet import QuickSRNet, quicksrnet_large, quicksrnet_medium
from foveal.models.restore.safmn import SAFMN
from foveal.record import equal, faster, kept, params

STEPS = 2500


def _folding(*, fold: bool) -> Tensor:
    torch.manual_seed(0)
    network = QuickSRNet(folded=False).eval()
    x = torch.rand(2, 3, 33, 47)
    with torch.inference_mode():
        return (network.fold() if fold else network)(x)


def _int8_change(seed: int) -> float:
    """Gain over bicubic in int8, calibrated on 64 training patches, minus the gain in float, dB."""
    model = photos.trained(QuickSRNet, 2, steps=STEPS, seed=seed)
    low, _ = photos.batches(2, seed, batch=64)(0)
    return photos.gain(static_int8(model, low), 2) - photos.gain(model, 2)


CLAIMS = (
    params(
        "Small at ×2: 22,752 weights and 108 biases in four convolutions.",
        paper="layer sizes",
        model=QuickSRNet,
        expect=22_860,
        beyond="layer sizes of section 3",
    ),
    params(
        "Medium at ×2.",
        paper="authors' code",
        model=quicksrnet_medium,
        expect=50_604,
        beyond="layer sizes of section 3",
    ),
    params(
        "Large at ×4, its direct connection included.",
        paper="authors' code",
        model=partial(quicksrnet_large, 4),
        expect=435_888,
        beyond="layer sizes of section 3",
    ),
    equal(
        "Folding the residual start into the weights leaves the outputs equal.",
        ours=lambda: _folding(fold=True),
        theirs=lambda: _folding(fold=False),
        tolerance=1e-5,
        clause=3,
    ),
    faster(
        "Small enlarges 960×540 to 1920×1080 in less time than SAFMN.",
        paper="2.2 ms on a phone's accelerator",
        ours=call(partial(QuickSRNet, 2), 1, 3, 540, 960),
        theirs=call(partial(SAFMN, 2), 1, 3, 540, 960),
        clause=4,
    ),
    photos.above_bicubic(
        QuickSRNet,
        "After a minute of training, Small ×2 is at least 0.5 dB above bicubic on pictures it has not seen.",
        scale=2,
        steps=STEPS,
        by=0.5,
        paper="",
        clause=1,
    ),
    kept(
        "Eight-bit weights and activations cost at most 0.2 dB.",
        paper="little loss",
        quality=_int8_change,
        at_least=-0.2,
        data=f"{STEPS} steps on bsds400; first 30 of Set5, Set14 and BSD100, ×2, luminance, shave 2",
        needs=photos.NEEDS,
        clause=2,
    ),
)
