"""Evidence for SageAttention2: outlier channels with and without smoothing, and the attention of a trained ViT.

Outliers are as the paper draws them: in a few channels of queries and keys all tokens of a head are large alike.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10, distilling
from foveal.ops.low_bit_attention import sage_attention2
from foveal.record import bound, faster, kept

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS, TOKENS, DIM = 3, 1024, 64
OUTLIERS, SIZE = 4, 8.0  # channels, and how many standard deviations away they are
STEPS, PICTURES = 600, 64
DATA = f"ViT of {STEPS} steps of 64 on CIFAR-10 at 2×2 pixels a token, its attention on {PICTURES} test pictures"


def _outliers(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 4, TOKENS, DIM, generator=generator)
    for x in (q, k):
        signs = torch.randint(0, 2, (4, 1, OUTLIERS), generator=generator) * 2.0 - 1
        x[..., :OUTLIERS] += SIZE * signs
    return q, k, v


def _cosine(ours: Tensor, full: Tensor) -> float:
    return float(F.cosine_similarity(ours.double().flatten(), full.double().flatten(), dim=0))


@cached(maxsize=4)
def _error(seed: int, *, smooth: bool, bits: int = 4) -> tuple[float, float]:
    """Cosine with full attention, and relative L1 error."""
    q, k, v = _outliers(seed)
    full = F.scaled_dot_product_attention(q, k, v)
    ours = sage_attention2(q, k, v, bits=bits, smooth=smooth)
    return _cosine(ours, full), float((ours - full).abs().sum() / full.abs().sum())


def _in_a_vit(seed: int) -> float:
    """Lowest cosine of all layers of a trained ViT, in percent."""
    build = partial(small_vit, dim=96, depth=4, num_heads=3, patch=2)
    model: nn.Module = distilling.teacher(build, steps=STEPS, seed=seed)
    found: list[float] = []
    fused = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
        full = fused(q, k, v)
        found.append(_cosine(sage_attention2(q, k, v), full))
        return full

    F.scaled_dot_product_attention = watched  # type: ignore[assignment]
    try:
        with torch.no_grad():
            model(cifar10.pictures("test")[0][:PICTURES])
    finally:
        F.scaled_dot_product_attention = fused
    return 100 * min(found)


def _on_gpu(*, low_bit: bool) -> Callable[[], Tensor]:
    q, k, v = (x.cuda() for x in _outliers(0))

    def run() -> Tensor:
        out = (sage_attention2 if low_bit else F.scaled_dot_product_attention)(q, k, v)
        torch.cuda.synchronize()
        return out

    return run


CLAIMS = (
    bound(
        "On outlier channels 4 bits with smoothing keep a cosine of at least 0.99 with full attention, the worst of 3.",
        paper="accurate with smoothing",
        value=lambda: min(_error(seed, smooth=True)[0] for seed in range(SEEDS)),
        at_least=0.99,
        clause=1,
    ),
    bound(
        "Without smoothing the relative L1 error is at least twice as large, the least of 3.",
        paper="INT4 alone is not accurate",
        value=lambda: min(_error(seed, smooth=False)[1] / _error(seed, smooth=True)[1] for seed in range(SEEDS)),
        at_least=2.0,
        clause=1,
    ),
    faster(
        "On a GPU 4 bits take less time than torch's fused attention.",
        paper="3 times as fast as FlashAttention2, by the paper's kernels",
        ours=partial(_on_gpu, low_bit=True),
        theirs=partial(_on_gpu, low_bit=False),
        needs=("gpu",),
        clause=2,
    ),
    kept(
        "In every layer of a small trained ViT 4 bits keep a cosine of at least 0.99.",
        paper="negligible end-to-end loss",
        quality=_in_a_vit,
        at_least=99.0,
        unit="% cosine",
        data=DATA,
        needs=cifar10.NEEDS,
        beyond="end-to-end metric loss: negligible",
    ),
)
