"""Evidence of foveal.models.backbone.vcmamba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.models.backbone.plainmamba import plainmamba
from foveal.models.backbone.vcmamba import vcmamba_b, vcmamba_m, vcmamba_s
from foveal.record import equal, faster, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable


def _counts(build: Callable[[], nn.Module], *sides: int) -> Tensor:
    from foveal.measure.cost import count_macs

    return torch.tensor([float(count_macs(build(), (1, 3, side, side))) for side in sides])


def _timed(model: nn.Module) -> Callable[[], Any]:
    model, x = model.eval(), torch.rand(1, 3, 512, 512)

    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return call


CLAIMS = (
    params("S, both classifiers.", paper="10.5 M", model=vcmamba_s, expect=10_478_720),
    params("M, both classifiers.", paper="21.0 M", model=vcmamba_m, expect=21_072_176),
    params("B, both classifiers.", paper="31.5 M", model=vcmamba_b, expect=31_450_832),
    params(
        "B has 37% fewer parameters than PlainMamba-L3, 50,956,456.",
        paper="37% fewer",
        model=vcmamba_b,
        expect=round(0.63 * 50_956_456),
        tolerance=0.03,
    ),
    macs("S at 224×224.", paper="1.1 G", model=vcmamba_s, shape=(1, 3, 224, 224), expect=1_106_894_080),
    macs("M at 224×224.", paper="2.3 G", model=vcmamba_m, shape=(1, 3, 224, 224), expect=2_374_321_152),
    macs("B at 224×224.", paper="4.0 G", model=vcmamba_b, shape=(1, 3, 224, 224), expect=4_064_276_480),
    equal(
        "Multiply-adds grow as the pixels do, from 224×224 to 1024×1024.",
        paper="linear",
        ours=lambda: _counts(vcmamba_b, 448, 672, 1024),
        theirs=lambda: _counts(vcmamba_b, 224) * torch.tensor([4.0, 9.0, (1024 / 224) ** 2]),
        tolerance=1e-3,
    ),
    faster(
        "M takes less time at 512×512 than PlainMamba's blocks of as many parameters, 24 of width 340.",
        paper="",
        ours=lambda: _timed(vcmamba_m()),
        theirs=lambda: _timed(plainmamba(340, 24)),
    ),
)
