"""Evidence for Quamba2: against the network in floating point, its size in half precision, and one scale per tensor."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10, cifar10_vim
from foveal.nn.mamba import Mamba
from foveal.record import equal, kept, smaller
from foveal.shrink.quantize.codes import levels, round_to
from foveal.shrink.quantize.mamba import integers_
from foveal.shrink.quantize.points import Watch, watched
from foveal.shrink.quantize.quamba2 import Quamba2, clips, clustered, packed_bytes, sort_

if TYPE_CHECKING:
    from foveal.record import Claim


def _mixers() -> tuple[nn.Module, Tensor]:
    """Two mixers of Vim-Tiny's width and the tokens of a picture."""
    torch.manual_seed(0)
    model = nn.Sequential(Mamba(192, bidirectional=True), Mamba(192, bidirectional=True))
    return model, torch.randn(2, 49, 192)


def _bytes(part: int) -> float:
    model, x = _mixers()
    return float(packed_bytes(Quamba2().apply(model, x))[part])


def _sorted(*, permuted: bool) -> Tensor:
    model, x = _mixers()
    if permuted:
        sort_(integers_(model), model, x)
    with torch.inference_mode():
        return model(x)


def _scan_error(seed: int, clusters: int) -> float:
    """Mean squared rounding error of the scans' inputs over their mean square, on pictures outside the calibration."""
    model, calibration = copy.deepcopy(cifar10_vim.trained(seed)), cifar10_vim.calibration()
    mixers = integers_(model)
    sort_(mixers, model, calibration)
    watches = {mixer: {f"u{way}": Watch() for way in mixer.ways} for mixer in mixers}
    watched(model, calibration, {m.point(name): watch for m, seen in watches.items() for name, watch in seen.items()})
    errors: list[Tensor] = []
    for mixer, seen in watches.items():
        label = clustered(mixer, seen, clusters)
        for name, watch in seen.items():
            scale = clips(watch, label)[:, None] / levels(8)

            def hook(_: nn.Module, __: tuple[Tensor], u: Tensor, scale: Tensor = scale) -> None:
                errors.append((round_to(u, scale) * scale - u).square().sum() / u.square().sum())

            mixer.point(name).register_forward_hook(hook)
    with torch.no_grad():
        model(cifar10.pictures("test", limit=2000)[0][:256])
    return float(torch.stack(errors).mean())


def _losing(name: str, step: Quamba2) -> Claim:
    return cifar10_vim.difference(
        f"A small trained Vim loses at most 1.6 points of accuracy in {name}.",
        step,
        than=None,
        at_least=-1.6,
        paper="1.6 points on average, W4A8",
        beyond="accuracy in W8A8, W4A8 and W4A16",
    )


CLAIMS = (
    equal(
        "Sorting the channels changes nothing before rounding, two mixers of Vim-Tiny's width.",
        ours=lambda: _sorted(permuted=True),
        theirs=lambda: _sorted(permuted=False),
        clause=1,
    ),
    smaller(
        "Codes and scales of all weights take at most 0.30 of half precision, mixers of Vim-Tiny's width.",
        paper="4 times",
        ours=lambda: _bytes(0),
        theirs=lambda: _bytes(1),
        at_least=1 / 0.30,
        clause=2,
    ),
    kept(
        "Sorted and clustered scales lower the rounding error of the scans' inputs, mean square.",
        paper="",
        quality=lambda seed: _scan_error(seed, 1) / _scan_error(seed, 4),
        at_least=1.1,
        unit="times",
        data="a small Vim trained on CIFAR-10 for 500 steps; 256 test pictures",
        needs=cifar10_vim.NEEDS,
        clause=3,
    ),
    _losing("W8A8", Quamba2(weight_bits=8)),
    _losing("W4A8", Quamba2()),
    _losing("W4A16", Quamba2(activation_bits=16)),
)
