"""Evidence for MSVMamba: tokens scanned by its layer, and its block against one with four full routes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from foveal.evidence.timing import call
from foveal.models.backbone.msvmamba import MS2D, ConvFFN, msvmamba_micro, msvmamba_nano, msvmamba_tiny
from foveal.models.backbone.vmamba import VSSBlock
from foveal.nn.ss2d import SS2D
from foveal.record import equal, faster, macs, params


def _tokens(height: int, width: int) -> Tensor:
    """Number of tokens that one layer scans, over all sequences of its scans."""
    mixer, seen = MS2D(4), []
    for s6 in (mixer.s6, mixer.coarse):
        s6.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, :, 0].numel()))
    with torch.no_grad():
        mixer(torch.zeros(1, 4, height, width))
    return torch.tensor(seen).sum()


def _block(*, coarse: bool) -> VSSBlock:
    return VSSBlock(96, MS2D(96) if coarse else SS2D(96, state=1), ConvFFN(96))


CLAIMS = (
    params("MSVMamba-T.", paper="33 M", model=msvmamba_tiny, expect="33 M", tolerance=0.02, clause=1),
    macs(
        "MSVMamba-T, a picture of 224×224.",
        paper="4.6 G",
        model=msvmamba_tiny,
        shape=(1, 3, 224, 224),
        expect="4.6 G",
        tolerance=0.02,
        clause=1,
    ),
    params("MSVMamba-N.", paper="7 M", model=msvmamba_nano, expect="7 M", beyond="sizes as printed"),
    params("MSVMamba-M.", paper="12 M", model=msvmamba_micro, expect="12 M", beyond="sizes as printed"),
    equal(
        "A layer scans 1¾ tokens for each token of the map, where SS2D scans 4.",
        paper="1 + 3/4",
        ours=lambda: torch.stack([_tokens(2, 4), _tokens(14, 14), _tokens(56, 48)]),
        theirs=lambda: torch.tensor([8, 196, 2688]) * 7 // 4,
        tolerance=0.0,
        clause=2,
    ),
    faster(
        "A block of 96 channels of 56×56 takes less time than one of SS2D.",
        paper="fewer tokens scanned",
        ours=call(partial(_block, coarse=True), 1, 96, 56, 56),
        theirs=call(partial(_block, coarse=False), 1, 96, 56, 56),
        clause=3,
    ),
)
