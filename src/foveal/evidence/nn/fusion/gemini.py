"""Evidence for GeminiFusion: against multi-head attention sample by sample, its growth, and two views of digits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.fusion import Concatenation, CrossAttention, TokenExchange
from foveal.evidence.tasks import two_views
from foveal.evidence.timing import call, seconds
from foveal.nn.fusion.gemini import GeminiFusion
from foveal.record import equal, faster, grows

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 300
SIDES = (16, 32, 64)  # 256, 1,024 and 4,096 tokens


def _outputs(*, batched: bool) -> Tensor:
    """Both streams after the block, or from `torch.nn.MultiheadAttention` looped over the samples, float32."""
    torch.manual_seed(0)
    block, x, y = GeminiFusion(64), torch.randn(3, 64, 7, 9), torch.randn(3, 64, 7, 9)
    with torch.inference_mode():
        if batched:
            return torch.stack(block(x, y))
        made = []
        for stream, (own, other) in enumerate(((x, y), (y, x))):
            attend: Any = block.attend[stream]
            for a, b in zip(own.flatten(2).mT, other.flatten(2).mT, strict=True):
                # one query and two keys for each pixel, the pixels as the batch, (1 or 2, N, C)
                related = block.relation(torch.cat((a, b), -1)) * a
                keys = torch.stack((block.key_noise[stream] + a, related))
                values = torch.stack((block.value_noise[stream] + a, b))
                made.append(a + attend(a[None], keys, values)[0][0])
        return torch.stack(made).mT.reshape(2, 3, 64, 7, 9)


def _both(build: Callable[[], nn.Module]) -> Callable[[], Callable[[Tensor], Any]]:
    """A block as a function of one tensor, which both streams get."""

    def built() -> Callable[[Tensor], Any]:
        block = build().eval()
        return lambda x: block(x, x)

    return built


def _many(side: int, times: int) -> Callable[[], Callable[[], None]]:
    prepare = call(_both(partial(GeminiFusion, 64)), 1, 64, side, side)

    def prepared() -> Callable[[], None]:
        run = prepare()

        def repeat() -> None:
            for _ in range(times):
                run()

        return repeat

    return prepared


def _seconds(build: Callable[[], nn.Module], side: int) -> float:
    return seconds(call(_both(build), 1, 64, side, side))


CLAIMS = (
    equal(
        "All samples at once give what torch.nn.MultiheadAttention gives of each.",
        paper="the authors' code loops over the batch",
        ours=partial(_outputs, batched=True),
        theirs=partial(_outputs, batched=False),
        tolerance=1e-5,
        clause=1,
    ),
    faster(
        "64×64 tokens take less time than 20 times 16×16 tokens.",
        paper="linear",
        ours=_many(64, 1),
        theirs=_many(16, 20),
        clause=2,
    ),
    grows(
        "Measured in the same way, full cross-attention grows faster than linearly.",
        paper="quadratic",
        cost=partial(_seconds, partial(CrossAttention, 64)),
        sizes=SIDES,
        of=lambda side: side**2,
        exponent=(1.2, 2.2),
        rounds=5,
        beyond="complexity against cross-attention",
    ),
    two_views.above_single(
        GeminiFusion,
        "Two views of digits: more accurate with both than with the better one alone.",
        steps=STEPS,
        paper="gains over single modalities",
        clause=3,
    ),
    two_views.better(
        GeminiFusion,
        "It is more accurate than exchanging tokens in the same network.",
        than=TokenExchange,
        steps=STEPS,
        paper="above TokenFusion",
        beyond="quality against token exchange",
    ),
    two_views.better(
        GeminiFusion,
        "It is more accurate than full cross-attention in the same network.",
        than=CrossAttention,
        steps=STEPS,
        paper="above cross-attention",
        beyond="quality against cross-attention",
    ),
    two_views.better(
        GeminiFusion,
        "It is more accurate than concatenation and a 1×1 convolution in the same network.",
        than=Concatenation,
        steps=STEPS,
        paper="",
        beyond="quality against concatenation",
    ),
)
