"""Evidence of foveal.shrink.quantize.quamba2."""

from __future__ import annotations

import copy
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from foveal.record import equal, kept, smaller
from foveal.shrink.quantize.mamba import Watch, integers_, levels, round_to, watched
from foveal.shrink.quantize.quamba import small_vim
from foveal.shrink.quantize.quamba2 import Quamba2, _clips, _clustered, _sort_, packed_bytes, quamba2_


def _wide(**config: int) -> nn.Module:
    """Two mixers of Vim-Tiny's width, quantised."""
    from foveal.nn.mamba import Mamba

    torch.manual_seed(0)
    model = nn.Sequential(Mamba(192, bidirectional=True), Mamba(192, bidirectional=True))
    return quamba2_(model, torch.randn(2, 49, 192), Quamba2(**config))  # type: ignore[arg-type]


def _sorted(*, permuted: bool) -> Tensor:
    from foveal.nn.mamba import Mamba

    torch.manual_seed(0)
    model = nn.Sequential(Mamba(192, bidirectional=True), Mamba(192, bidirectional=True))
    x = torch.randn(2, 49, 192)
    if permuted:
        _sort_(integers_(model), model, x)
    with torch.inference_mode():
        return model(x)


@lru_cache(maxsize=16)
def _accuracy(seed: int, config: Quamba2 | None) -> float:
    from foveal.evidence.tasks.cifar10 import accuracy, pictures

    model = copy.deepcopy(small_vim(seed))
    if config is not None:
        quamba2_(model, pictures("train")[0][:512], config)
    return accuracy(model, pictures("test", limit=4000))


def _lost(config: Quamba2, seed: int) -> float:
    return _accuracy(seed, config) - _accuracy(seed, None)


def _scan_error(seed: int, clusters: int) -> float:
    """Mean squared rounding error of the scans' inputs over their mean square, on pictures not calibrated on."""
    from foveal.evidence.tasks.cifar10 import pictures

    model = copy.deepcopy(small_vim(seed))
    mixers = integers_(model)
    calibration = pictures("train", limit=512)[0]
    _sort_(mixers, model, calibration)
    watches = {mixer: {f"u{way}": Watch() for way in mixer.ways} for mixer in mixers}
    watched(model, calibration, {m.point(name): watch for m, seen in watches.items() for name, watch in seen.items()})
    errors: list[Tensor] = []
    for mixer, seen in watches.items():
        label = _clustered(mixer, seen, clusters)
        for name, watch in seen.items():
            scale = _clips(watch, label)[:, None] / levels(8)

            def hook(_: nn.Module, __: tuple[Tensor], u: Tensor, scale: Tensor = scale) -> None:
                errors.append((round_to(u, scale) * scale - u).square().sum() / u.square().sum())

            mixer.point(name).register_forward_hook(hook)
    with torch.no_grad():
        model(pictures("test", limit=2000)[0][:256])
    return float(torch.stack(errors).mean())


CLAIMS = (
    equal(
        "Sorting the channels changes nothing before rounding, two mixers of Vim-Tiny's width.",
        ours=lambda: _sorted(permuted=True),
        theirs=lambda: _sorted(permuted=False),
        tolerance=1e-5,
    ),
    smaller(
        "Codes and scales of all weights take at most 0.30 of half precision, mixers of Vim-Tiny's width.",
        paper="4 times",
        ours=lambda: packed_bytes(_wide())[0],
        theirs=lambda: packed_bytes(_wide())[1],
        at_least=1 / 0.30,
    ),
    kept(
        "Sorted and clustered scales lower the rounding error of the scans' inputs, mean square.",
        paper="",
        quality=lambda seed: _scan_error(seed, 1) / _scan_error(seed, 4),
        at_least=1.1,
        unit="times",
        data="a small Vim trained on CIFAR-10 for 500 steps; 256 test pictures",
        needs=("minutes", "cifar10_train", "cifar10_test"),
    ),
    *(
        kept(
            f"A small trained Vim loses at most 1.6 points of accuracy in W{weights}A{activations}.",
            paper="1.6 points on average, W4A8",
            quality=partial(_lost, Quamba2(weight_bits=weights, activation_bits=activations)),
            at_least=-1.6,
            unit="points",
            data="CIFAR-10, 4,000 test pictures; 500 steps, calibrated on 512 training pictures",
            needs=("minutes", "cifar10_train", "cifar10_test"),
        )
        for weights, activations in ((8, 8), (4, 8), (4, 16))
    ),
)
