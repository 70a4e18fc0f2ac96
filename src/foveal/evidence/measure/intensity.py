"""Evidence for DI-Intensity: counts of timm's networks against closed forms, and the order of their measured rates.

Rates are multiply-adds per second of one picture of 224×224 pixels on one thread, the networks timed in turn. The share
is fitted to half of the networks and judged on the other half; one halving of 25 networks is luck, so 200 are drawn.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.measure.cost import count_macs
from foveal.measure.intensity import Counts, counts, fit_share, rank_correlation, total
from foveal.measure.meta import without_storage
from foveal.measure.paired import interleaved
from foveal.record import bound, equal

if TYPE_CHECKING:
    from collections.abc import Callable

NETWORKS = (
    *("resnet18", "resnet50", "resnet101", "resnext50_32x4d", "vgg11", "densenet121", "dla34", "hrnet_w18_small"),
    *("mobilenetv2_100", "mobilenetv3_large_100", "mnasnet_100", "efficientnet_b0", "efficientnet_es", "ghostnet_100"),
    *("regnetx_008", "regnety_008", "repvgg_a0", "convnext_atto", "convnext_tiny", "poolformer_s12", "edgenext_small"),
    *("vit_tiny_patch16_224", "vit_small_patch32_224", "swin_tiny_patch4_window7_224", "resmlp_12_224"),
)
TINY = ("test_resnet", "test_vit", "test_efficientnet", "test_convnext")  # of a rehearsal
SHAPE = (1, 3, 224, 224)
ROUNDS = 5
HALVINGS = 200


def _built(name: str) -> nn.Module:
    with without_storage():
        return timm.create_model(name).eval()


@cached(maxsize=2)
def _counted() -> dict[str, tuple[Counts, ...]]:
    return {name: counts(_built(name), SHAPE) for name in NETWORKS}


def _totals() -> Tensor:
    """Multiply-adds, weights, inputs and outputs of the convolutions and linear layers of each network, (25, 4)."""
    rows = []
    for layers in _counted().values():
        item = total([layer for layer in layers if layer.kind not in ("attention", "product")])
        rows.append([item.macs, item.weights, item.inputs, item.outputs])
    return torch.tensor(rows, dtype=torch.float64)


def _by_modules(name: str) -> list[int]:
    """The same of one network, from the attributes of its modules and the shapes of what enters and leaves them."""
    model, sums = _built(name), [0, 0, 0, 0]

    def add(module: Any, given: tuple[Tensor, ...], made: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            each = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        else:
            each = module.in_features
        width = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
        weights = width * each + (0 if module.bias is None else width)
        for i, count in enumerate((made.numel() * each, weights, given[0].numel(), made.numel())):
            sums[i] += count

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        model(torch.empty(SHAPE, device="meta"))
    return sums


@cached(maxsize=2)
def _measured() -> tuple[list[Counts], list[float]]:
    """Counts and rates of the networks, in multiply-adds per second."""
    names = TINY if rehearsing() else NETWORKS
    shape = (1, 3, 64, 64) if rehearsing() else SHAPE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = [timm.create_model(name).eval() for name in names]
        x = torch.randn(shape)
    found = [total(counts(model, shape), name) for name, model in zip(names, models, strict=True)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            calls: list[Callable[[], Any]] = [partial(model, x) for model in models]
            times = interleaved(calls, pairs=ROUNDS, warm_up=1, least=0.0, most=240.0)
    finally:
        torch.set_num_threads(threads)
    return found, [item.macs / float(np.median(taken)) for item, taken in zip(found, times, strict=True)]


def _correlation(share: float, rows: np.ndarray | None = None) -> float:
    networks, rates = _measured()
    kept = range(len(rates)) if rows is None else rows
    return rank_correlation([networks[i].weighted(share) for i in kept], [rates[i] for i in kept])


def _gain() -> float:
    """Rank correlation of DI less that of AI on the networks that the share was not fitted to, mean of the halvings."""
    networks, rates = _measured()
    generator = np.random.default_rng(0)
    gains = []
    for _ in range(HALVINGS):
        order = generator.permutation(len(rates))
        fitted, other = np.array_split(order, 2)
        share = fit_share([networks[i] for i in fitted], [rates[i] for i in fitted])
        gains.append(_correlation(share, other) - _correlation(0.5, other))
    return float(np.mean(gains))


CLAIMS = (
    equal(
        f"Multiply-adds, weights, inputs and outputs of the layers of {len(NETWORKS)} networks are those of their "
        "modules' closed forms.",
        paper="from layer shapes",
        ours=_totals,
        theirs=lambda: torch.tensor([_by_modules(name) for name in NETWORKS], dtype=torch.float64),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "With attention, the multiply-adds of each network are all there are.",
        ours=lambda: torch.tensor([total(layers).macs for layers in _counted().values()], dtype=torch.float64),
        theirs=lambda: torch.tensor([count_macs(_built(name), SHAPE) for name in NETWORKS], dtype=torch.float64),
        tolerance=0.0,
        clause=1,
    ),
    bound(
        "With the share fitted to one half, DI orders the other half's rates better than AI, mean of 200 halvings.",
        paper="better indicator",
        value=_gain,
        at_least=0.005,
        unit="rank correlation",
        needs=("minutes",),
        clause=2,
    ),
    bound(
        "Plain intensity orders the networks by their rates.",
        paper="not always correct",
        value=partial(_correlation, 0.5),
        at_least=0.5,
        unit="rank correlation",
        needs=("minutes",),
        beyond="an indicator at design time",
    ),
    bound(
        "Activations alone order them worse than weights and activations together.",
        paper="unequal importance",
        value=lambda: _correlation(0.5) - _correlation(0.0),
        at_least=0.005,
        unit="rank correlation",
        needs=("minutes",),
        beyond="both data types matter",
    ),
)
