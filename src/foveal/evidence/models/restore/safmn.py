"""Evidence for SAFMN: its counts against IMDN's, its outputs against spandrel's with shared weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from foveal.evidence.tasks import photos
from foveal.measure.cost import count_macs, count_parameters
from foveal.models.restore.safmn import SAFMN
from foveal.record import equal, macs, params, smaller

# IMDN at ×4 to 1280×720, as printed in arXiv:1909.11856 and in table 1 of the source.
IMDN_PARAMETERS, IMDN_MACS = 715_000, 40.9e9


def _against_spandrel(*, ours: bool) -> Tensor:
    """Output of one of the two networks with the same weights on the same picture; needs `pip install spandrel`."""
    try:
        from spandrel.architectures.SAFMN import SAFMN as Theirs  # noqa: N811
    except ImportError as error:
        raise ImportError("this claim compares with spandrel; install it: pip install spandrel") from error

    torch.manual_seed(0)
    network = SAFMN(4).eval()
    x = torch.rand(1, 3, 45, 67)
    if not ours:
        other = Theirs(dim=36, n_blocks=8, ffn_scale=2.0, upscaling_factor=4).eval()
        other.load_state_dict(network.state_dict())
    with torch.inference_mode():
        return (network if ours else other)(x)


CLAIMS = (
    params("Parameters at ×4.", paper="240 K", model=SAFMN, expect=239_520, clause=1),
    params("Parameters at ×2.", paper="228 K", model=partial(SAFMN, 2), expect=227_820, beyond="228 K at ×2"),
    smaller(
        "About three times fewer parameters than IMDN at ×4.",
        paper="3 times",
        ours=lambda: count_parameters(SAFMN()),
        theirs=lambda: IMDN_PARAMETERS,
        at_least=2.9,
        beyond="three times fewer parameters than IMDN",
    ),
    macs(
        "Multiply-adds at ×4 to 1280×720.",
        paper="14 G",
        model=SAFMN,
        shape=(1, 3, 180, 320),
        expect="14 G",
        beyond="14 G multiply-adds",
    ),
    smaller(
        "Fewer multiply-adds than IMDN at ×4 to 1280×720.",
        paper="2.9 times",
        ours=lambda: count_macs(SAFMN(), (1, 3, 180, 320)),
        theirs=lambda: IMDN_MACS,
        at_least=2.9,
        beyond="less compute than IMDN",
    ),
    equal(
        "Equals spandrel's SAFMN under shared weights.",
        ours=lambda: _against_spandrel(ours=True),
        theirs=lambda: _against_spandrel(ours=False),
        tolerance=1e-5,
        clause=2,
    ),
    photos.above_bicubic(
        SAFMN,
        "After two minutes of training, ×4 is at least 0.3 dB above bicubic on pictures it has not seen.",
        scale=4,
        steps=800,
        by=0.3,
        paper="32.18 dB on Set5, trained for days",
        clause=3,
    ),
)
