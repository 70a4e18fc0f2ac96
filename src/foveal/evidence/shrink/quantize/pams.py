"""Evidence for PAMS: a small EDSR ×2 at 8 and 4 bits beside the original and beside min-max, and its packed bytes.

All networks are fine-tuned for the same number of steps on the same patches. The original is fine-tuned too.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.edsr import EDSR
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos
from foveal.evidence.tasks.distilling_photos import pictures_alone, teacher
from foveal.record import Claim, equal, kept, smaller
from foveal.shrink.distill.distillation import Distillation
from foveal.shrink.quantize.fake import MinMax, quantized_
from foveal.shrink.quantize.packed import packed_bytes
from foveal.shrink.quantize.pams import PAMS, MaxWeight, transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.shrink.distill.distillation import Loss

SCALE, STEPS, LR = 2, 150, 5e-4
SETS = ("Set5", "Set14")
baseline = partial(EDSR, 4)  # the paper's EDSR: 16 blocks of 64 channels


def _tuned(prepare: Callable[[nn.Module, Tensor], nn.Module], loss: Loss, seed: int) -> float:
    """Gain over bicubic of the trained start network after a change and its fine-tuning, dB."""
    batches = photos.batches(SCALE, seed)
    start = teacher(SCALE)
    model = prepare(copy.deepcopy(start), batches(0)[0])
    distillation = Distillation(model, start, loss, student_taps=["fuse"], teacher_taps=["fuse"])
    short_run(distillation, batches, lambda module, batch: module(batch), steps=STEPS, lr=LR, clip=1.0)
    return photos.gain(model.eval(), SCALE, sets=SETS)


@cached(maxsize=8)
def _original(seed: int) -> float:
    return _tuned(lambda model, _: model, pictures_alone, seed)


@cached(maxsize=8)
def _pams(bits: int, seed: int) -> float:
    return _tuned(lambda model, inputs: PAMS(bits).apply(model, inputs), transfer, seed)


@cached(maxsize=8)
def _min_max(bits: int, symmetric: bool, seed: int) -> float:
    """The same weights and the same places; activations between the running extremes of their layer."""

    def prepare(model: nn.Module, _: Tensor) -> nn.Module:
        return quantized_(
            model,
            weight=lambda _: MaxWeight(bits),
            inputs=lambda _: MinMax(bits, symmetric=symmetric),
            choose=lambda name, _: name.startswith("body."),
        )

    return _tuned(prepare, pictures_alone, seed)


def _difference(says: str, quality: Callable[[int], float], **words: Any) -> Claim:
    data = f"{STEPS} steps of fine-tuning on bsds400; first 30 of Set5 and Set14, ×{SCALE}, luminance, paired"
    return kept(says, quality=quality, data=data, needs=("minutes", "bsds400", *SETS), **words)


def _packed(bits: int) -> int:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return packed_bytes(PAMS(bits).apply(baseline(), torch.rand(1, 3, 8, 8)))


def _formula(bits: int) -> int:
    """Bytes of EDSR with 16 blocks of 64 channels: 32 weights of few bits, one scale and one bound for each."""
    inside = 64 * 64 * 9
    around = 3 * 64 * 9 + 64 + inside + 64 + 2 * (4 * inside + 4 * 64) + 64 * 3 * 9 + 3
    return 32 * (inside * bits // 8 + 4 * 64 + 4 + 4) + 4 * around


CLAIMS = (
    _difference(
        "8-bit PAMS is within 0.05 dB of the original fine-tuned as long.",
        lambda seed: _pams(8, seed) - _original(seed),
        paper="32.095 to 32.124 dB",
        at_least=-0.05,
        clause=1,
    ),
    _difference(
        "4-bit PAMS is at least 0.1 dB above 4-bit min-max on the same symmetric grid.",
        lambda seed: _pams(4, seed) - _min_max(4, True, seed),
        paper="trained bounds above fixed ones",
        at_least=0.1,
        clause=2,
    ),
    _difference(
        "4-bit PAMS is above 4-bit min-max whose range is not symmetric.",
        lambda seed: _pams(4, seed) - _min_max(4, False, seed),
        paper="trained bounds above fixed ones",
        at_least=0.0,
        beyond="quality at 4 bits",
    ),
    *(
        equal(
            f"Packed bytes of the paper's EDSR ×4 at {bits} bits follow from its layer sizes.",
            ours=partial(_packed, bits),
            theirs=partial(_formula, bits),
            tolerance=0.0,
            clause=3,
        )
        for bits in (8, 4)
    ),
    smaller(
        "8-bit PAMS-EDSR ×4 is 2.42 times as small.",
        paper="2.42×",
        ours=lambda: _packed(8),
        theirs=lambda: 4 * sum(p.numel() for p in baseline().parameters()),
        at_least=2.42,
        beyond="compression ratio",
    ),
)
