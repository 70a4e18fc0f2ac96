"""Evidence of foveal.models.restore.safmn."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.models.restore.safmn import safmn
from foveal.record import equal, kept, macs, params, smaller

IMDN_PARAMETERS, IMDN_MACS = (
    715_000,
    40.9e9,
)  # as printed for ×4 to 1280×720, arXiv:1909.11856 and table 1 of the source


def _against_spandrel(*, ours: bool) -> Tensor:
    """Both networks with the same weights on the same picture; needs `pip install spandrel`."""
    try:
        from spandrel.architectures.SAFMN import SAFMN as Theirs  # noqa: N811
    except ImportError as error:
        raise ImportError("this claim compares with spandrel; install it: pip install spandrel") from error

    torch.manual_seed(0)
    network = safmn(4).eval()
    x = torch.rand(1, 3, 45, 67)
    if not ours:
        other = Theirs(dim=36, n_blocks=8, ffn_scale=2.0, upscaling_factor=4).eval()
        other.load_state_dict(network.state_dict())
    with torch.inference_mode():
        return (network if ours else other)(x)


def _macs() -> float:
    from foveal.measure.cost import count_macs

    return float(count_macs(safmn(4), (1, 3, 180, 320)))


def _parameters() -> float:
    return float(sum(p.numel() for p in safmn(4).parameters()))


def _gain(seed: int) -> float:
    from foveal.evidence.tasks.photos import gain, trained

    return gain(trained(safmn, 4, steps=900, seed=seed), 4)


CLAIMS = (
    params("Parameters at ×4.", paper="240 K", model=lambda: safmn(4), expect=239_520),
    params("Parameters at ×2.", paper="228 K", model=lambda: safmn(2), expect=227_820),
    smaller(
        "About three times fewer parameters than IMDN at ×4.",
        paper="3 times",
        ours=_parameters,
        theirs=lambda: IMDN_PARAMETERS,
        at_least=2.9,
    ),
    macs(
        "Multiply-adds at ×4 to 1280×720.",
        paper="14 G",
        model=lambda: safmn(4),
        shape=(1, 3, 180, 320),
        expect=14e9,
        tolerance=0.036,  # the paper rounds to whole G
    ),
    smaller(
        "Fewer multiply-adds than IMDN at ×4 to 1280×720.",
        paper="2.9 times",
        ours=_macs,
        theirs=lambda: IMDN_MACS,
        at_least=2.9,
    ),
    equal(
        "Equals spandrel's SAFMN under shared weights.",
        ours=lambda: _against_spandrel(ours=True),
        theirs=lambda: _against_spandrel(ours=False),
        tolerance=1e-5,
    ),
    kept(
        "After two minutes of training, ×4 is at least 0.3 dB above bicubic on pictures it has not seen.",
        paper="32.18 dB on Set5, trained for days",
        quality=_gain,
        at_least=0.3,
        data="trained on BSDS500 without BSD100; Set5, Set14 and BSD100, ×4, luminance PSNR, shave 4",
        needs=("minutes", "bsds400", "Set5", "Set14", "BSD100"),
    ),
)
