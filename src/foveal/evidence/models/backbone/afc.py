"""Evidence for AFC: logits of moved pictures beside ConvNeXt's, counts, and accuracy where the worst movement counts.

Weights are drawn so that every block matters: those of timm's ConvNeXt-T, whose blocks start at a scale of 1e-6, with
scales of 0.1 to 0.2. AFC takes over all of them; its polynomials are near to GELU, without the scales of 7 at which
they start, since untrained squares of that size all but hide the picture. The stem's is added at 0.3.

A network whose logits hardly depend on the picture would pass, so what movements change is also set beside what another
picture changes. Pictures are moved by the phases of their spectra, periodically, so that a movement loses nothing; they
have no part at the Nyquist frequency, which no fraction of a pixel can move.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import timm
import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10
from foveal.models.backbone.afc import (
    AFC,
    afc_base,
    afc_small,
    afc_tiny,
    from_timm,
    low_pass,
    resample,
    resample_reference,
    shift,
)
from foveal.record import bound, equal, kept, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE, STEPS, PICTURES = 64, 300, 500
HALF, QUARTER = ((0.5, 0.5), (0.5, 0.0), (0.0, 1.5)), ((0.25, 0.25), (0.75, 0.0), (0.0, 1.25))
WHOLE = ((1.0, 0.0), (3.0, -5.0))
MOVES = ((0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (0.0, 1.5), (-2.25, 1.0), (2.0, 2.0), (-1.0, -2.5), (3.5, -0.75))


@cached(maxsize=1)
@torch.no_grad()
def _networks() -> tuple[nn.Module, nn.Module]:
    """AFC-T and timm's ConvNeXt-T of the same weights, in evaluation."""
    draw = torch.Generator().manual_seed(0)
    theirs, ours = timm.create_model("convnext_tiny").eval(), afc_tiny().eval()
    for name, value in theirs.named_parameters():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=draw) / value[0].numel() ** 0.5)
        elif name.endswith("gamma"):
            value.copy_(0.1 + 0.1 * torch.rand(value.shape, generator=draw))
        elif name.endswith("bias"):
            value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    left = ours.load_state_dict(from_timm(theirs.state_dict()), strict=False)
    if left.unexpected_keys or not all(".act." in name or name == "stem.gamma" for name in left.missing_keys):
        raise ValueError(f"weights of timm do not fit, got {left}; see from_timm")
    for name, value in ours.named_parameters():
        if name.endswith(("in_scale", "out_scale")):
            value.fill_(1.0)
    ours.stem.gamma.fill_(0.3)  # type: ignore[union-attr, operator]
    return ours, theirs


def _picture(seed: int = 0) -> Tensor:
    """Waves of few and of many periods."""
    draw = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.randn(1, 3, side, side, generator=draw) for side in (6, SIDE))
    return low_pass(resample(coarse, (SIDE, SIDE)) + 0.5 * fine, 1.0)


@torch.no_grad()
def _logits(network: nn.Module, moves: tuple[tuple[float, float], ...]) -> Tensor:
    return network(torch.cat([shift(_picture(), move) for move in moves]))


def _moved(moves: tuple[tuple[float, float], ...], *, double: bool = False) -> Tensor:
    ours = _networks()[0]
    if not double:
        return _logits(ours, moves)
    network = afc_tiny().double().eval()
    network.load_state_dict(ours.state_dict())
    with torch.no_grad():
        return network(torch.cat([shift(_picture().double(), move) for move in moves]))


def _still(moves: tuple[tuple[float, float], ...], *, double: bool = False) -> Tensor:
    return _moved(((0.0, 0.0),), double=double).expand(len(moves), -1)


@torch.no_grad()
def _spread(network: nn.Module) -> Tensor:
    """Largest difference between the logits of two pictures."""
    return (network(_picture(1)) - network(_picture())).abs().max()


def _changes(network: nn.Module) -> Tensor:
    """Largest difference that each movement makes, over the one that another picture makes."""
    logits, still = _logits(network, HALF + QUARTER), _logits(network, ((0.0, 0.0),))
    return (logits - still).abs().amax(1) / _spread(network)


def _ours() -> float:
    return float(_changes(_networks()[0]).max())


def _theirs() -> float:
    return float(_changes(_networks()[1]).min())


def _resampled(*, reference: bool) -> Tensor:
    x = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    sizes = ((24, 32), (6, 8), (5, 7))
    return torch.cat([(resample_reference if reference else resample)(x, size).flatten() for size in sizes])


_DIMS = (24, 48, 96, 96)


def small() -> nn.Module:
    """AFC with one block a stage, (B, 3, 32, 32) to (B, 10)."""
    return AFC(_DIMS, (1, 1, 1, 1), num_classes=10, ls_init_value=0.1)


def rival() -> nn.Module:
    """ConvNeXt of the same sizes, (B, 3, 32, 32) to (B, 10)."""
    return ConvNeXt(dims=_DIMS, depths=(1, 1, 1, 1), num_classes=10, ls_init_value=0.1)


def _worst(build: Callable[[], nn.Module], seed: int) -> float:
    """Share of pictures that are classified correctly however they are moved, percent."""
    network = cifar10.trained(build, steps=STEPS, seed=seed)
    x, labels = cifar10.pictures("test", limit=PICTURES)
    right = torch.ones(len(labels), dtype=torch.bool)
    with torch.inference_mode():
        for move in MOVES:
            right &= torch.cat([network(shift(part, move)).argmax(1) for part in x.split(100)]) == labels
    return 100 * float(right.float().mean())


def _difference(seed: int) -> float:
    return _worst(small, seed) - _worst(rival, seed)


CLAIMS = (
    *(
        equal(
            f"Logits of a picture moved by {name} are those of the picture, in float32.",
            ours=partial(_moved, moves),
            theirs=partial(_still, moves),
            tolerance=1e-4,
            clause=1,
        )
        for name, moves in (("halves of a pixel", HALF), ("quarters of a pixel", QUARTER))
    ),
    equal(
        "In float64 they are equal to rounding, after whole, half and quarter pixels.",
        ours=partial(_moved, WHOLE + HALF + QUARTER, double=True),
        theirs=partial(_still, WHOLE + HALF + QUARTER, double=True),
        tolerance=1e-10,
        beyond="exact invariance",
    ),
    bound(
        "Nor do they differ by more than a ten-thousandth of what another picture changes.",
        paper="exact",
        value=_ours,
        at_most=1e-4,
        unit="of the difference between two pictures",
        clause=1,
    ),
    smaller(
        "On that scale ConvNeXt-T of the same weights differs at least 100 times more, its least beside AFC's most.",
        paper="ConvNeXt is not invariant",
        ours=_ours,
        theirs=_theirs,
        at_least=100.0,
        clause=2,
    ),
    params("AFC-T.", paper="authors' code", model=afc_tiny, expect=28_668_943, beyond="the authors' network"),
    params("AFC-S.", paper="authors' code", model=afc_small, expect=50_386_483, beyond="the authors' network"),
    params("AFC-B.", paper="authors' code", model=afc_base, expect=88_808_499, beyond="the authors' network"),
    equal(
        "Resampling is the sum of all waves that both grids hold.",
        ours=partial(_resampled, reference=False),
        theirs=partial(_resampled, reference=True),
        beyond="ideal filters",
    ),
    kept(
        "Trained alike, it classifies more pictures correctly under the worst of eight movements than ConvNeXt.",
        paper="better under adversarial translations",
        quality=_difference,
        at_least=0.0,
        unit="points",
        data=f"{STEPS} steps each on CIFAR-10, the first {PICTURES} test pictures",
        needs=cifar10.NEEDS,
        beyond="robustness to adversarial translations",
    ),
)
