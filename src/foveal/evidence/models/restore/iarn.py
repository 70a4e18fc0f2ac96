"""Evidence for IARN: exact inversion, and photographs at three scales against bicubic and learned-up."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from foveal.evidence.tasks import rescaling, restoring
from foveal.models.restore.iarn import IARN, invertible_loss, split
from foveal.record import equal, kept, smaller

if TYPE_CHECKING:
    from torch import Tensor

STEPS, LR = 400, 4e-3
DATA = rescaling.data(STEPS)
TESTS: dict[str, rescaling.Scale] = {"×1.5": 1.5, "×2.5": 2.5, "×1.5 of rows and ×3.5 of columns": (1.5, 3.5)}

small = partial(IARN, dim=12, depth=2, layers=1)


def _loss(model: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
    pair = cast("IARN", model)
    reduced, rest = pair.hidden(x, size)
    return invertible_loss(x, reduced, rest, pair.up(reduced, (x.shape[-2], x.shape[-1])))


def _trained(seed: int, *, alone: bool = False) -> IARN:
    return cast("IARN", rescaling.trained(small, _loss, seed=seed, alone=alone, steps=STEPS, lr=LR))


def _lead(seed: int, *, scale: rescaling.Scale) -> float:
    return rescaling.lead(_trained(seed), _trained(seed, alone=True), scale)


def _stack(*, back: bool) -> Tensor:
    """A picture, or what comes back of it through all blocks of drawn weights and back."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 33, 46, generator=generator)
    if not back:
        return x
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = IARN(dim=8, depth=8, layers=2)
        for module in model.modules():  # the last layers too, which are 0 at the start
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    size = (13, 31)
    with torch.inference_mode():
        _, low, rest = split(x, size)
        low, rest = model.unmixed(*model.mixed(low, rest, size), size)
    return low + rest


def _error(seed: int) -> float:
    """Largest difference, of any value, of what comes back of test pictures with nothing dropped after training."""
    model, x, size = _trained(seed), restoring.crops(), (37, 85)
    with torch.inference_mode():
        _, low, rest = split(x, size)
        low, rest = model.unmixed(*model.mixed(low, rest, size), size)
    return float((low + rest - x).abs().max())


def _fixed_scale() -> int:
    """Parameters of IRN's eight blocks for ×2: 3 and 9 channels, dense convolutions of four layers of 32."""

    def dense(given: int, made: int) -> int:
        layers = sum(9 * (given + 32 * i) * 32 + 32 for i in range(4))
        return layers + 9 * (given + 128) * made + made

    return 8 * (dense(9, 3) + 2 * dense(3, 9))


CLAIMS = (
    equal(
        "Eight blocks forwards and back, with nothing dropped, give the picture.",
        ours=partial(_stack, back=True),
        theirs=partial(_stack, back=False),
        tolerance=1e-4,
        clause=1,
    ),
    kept(
        "After training, with nothing dropped, no value of a photograph comes back with an error above 1e-4.",
        paper="exact",
        quality=lambda seed: -_error(seed),
        at_least=-1e-4,
        unit="",
        data=DATA,
        needs=rescaling.NEEDS,
        clause=1,
    ),
    *(
        kept(
            f"At {name} held-out photographs come back better than from bicubic by the same enlarging network.",
            paper="state of the art",
            quality=partial(_lead, scale=scale),
            at_least=0.0,
            data=DATA,
            needs=rescaling.NEEDS,
            clause=2,
        )
        for name, scale in TESTS.items()
    ),
    kept(
        "Small pictures stay within 30 dB of bicubic ones.",
        paper="no loss of perceptual quality",
        quality=lambda seed: rescaling.closeness(_trained(seed)),
        at_least=30.0,
        data=DATA,
        needs=rescaling.NEEDS,
        beyond="small pictures stay like those of bicubic",
    ),
    smaller(
        "One model for all scales has no more parameters than the network it builds on has for ×2 alone.",
        paper="without increasing model complexity",
        ours=lambda: sum(p.numel() for p in IARN().parameters()),
        theirs=_fixed_scale,
        beyond="one model for arbitrary scales, of the complexity of one for a fixed scale",
    ),
)
