"""Evidence for GPUSQ-ViT: the pattern, the bits, and a small vision transformer on CIFAR-10 beside the dense one.

One dense network is trained once; a seed draws the batches of what follows. The dense rival is trained further for as
many steps with the same losses and teacher, without masks and quantisers.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals import small
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10
from foveal.evidence.trained_once import trained_once
from foveal.record import bound, equal, faster, kept, smaller
from foveal.shrink.data import Data
from foveal.shrink.prune.gpusq_vit import (
    GPUSQViT,
    expand,
    quantize_sparse_,
    sparse_,
    stored,
    stored_bits,
)
from foveal.shrink.prune.masks import bake_
from foveal.shrink.quantize.fake import quantized_layers
from foveal.shrink.quantize.packed import unpack

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, STAGE = 1500, 200  # training of the dense network, each of the two stages after it
SHAPE = (64 * 197, 1024, 4096)  # tokens of 64 pictures, inputs and outputs of the first layer of ViT-L's MLP
build = partial(small_vit, dim=96, depth=4, patch=8)


@cached(maxsize=1)
def _dense() -> nn.Module:
    return trained_once(
        build,
        lambda: cifar10.train_classifier(build, steps=STEPS, seed=0),
        modules=[cifar10.__name__, small.__name__],
        key=f"small_vit dim 96 depth 4 patch 8, steps {STEPS} seed 0",
    )


def _data(seed: int) -> Data:
    inputs, labels = cifar10.pictures("train")
    draw = torch.Generator().manual_seed(seed)

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from the seeded generator
        rows = torch.randint(len(labels), (64,), generator=draw)
        flip = torch.rand(64, generator=draw).view(-1, 1, 1, 1) < 0.5
        return torch.where(flip, inputs[rows].flip(-1), inputs[rows]), labels[rows]

    return Data(inputs, cifar10.accuracy, batches=batches, loss=F.cross_entropy)


@cached(maxsize=6)
def _trained(seed: int, bits: int) -> nn.Module:
    """The compressed network; for 32 bits the dense one, trained further in two stages too."""
    step, data, model = GPUSQViT(bits=bits, steps=2 if rehearsing() else STAGE), _data(seed), copy.deepcopy(_dense())
    if bits < 32:
        return step.apply(model, data)
    training = step.distil(copy.deepcopy(_dense()))
    return training.apply(training.apply(model, data), data)


def _lost(seed: int) -> float:
    return cifar10.accuracy(_trained(seed, 8)) - cifar10.accuracy(_trained(seed, 32))


def _violations() -> float:
    """Groups of four with more than two integers other than zero, and linear layers that were not quantised."""
    model = _trained(0, 8)
    weights = [layer.quantized_weight() for _, layer in quantized_layers(model)]
    groups = sum(int(((w.view(len(w), -1, 4) != 0).sum(-1) > 2).sum()) for w in weights)
    return groups + sum(isinstance(m, nn.Linear) for m in _dense().modules()) - len(weights)


@cached(maxsize=2)
def _untrained(bits: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return quantize_sparse_(sparse_(build()), bits=bits).eval()


def _bits(bits: int) -> np.ndarray:
    """Bits in the packed bytes of every layer."""
    held = [stored(layer) for _, layer in quantized_layers(_untrained(bits))]
    return np.array([8 * (len(parts["codes"]) + len(parts["positions"])) for parts in held])


def _formula(bits: int) -> np.ndarray:
    weights = [layer.layer.weight for _, layer in quantized_layers(_untrained(bits))]
    return np.array([stored_bits(*weight.shape, bits=bits) for weight in weights])


def _weights(*, from_bytes: bool) -> Tensor:
    """All quantised weights in a row, or what their packed bytes hold."""
    found = []
    for _, layer in quantized_layers(_untrained(8)):
        weight = layer.quantized_weight().detach()
        if from_bytes:
            held, half = stored(layer), (weight.shape[0], weight.shape[1] // 2)
            weight = expand(unpack(held["codes"], 8, half) - 128, unpack(held["positions"], 2, half))
            weight = weight * held["scale"][:, None]
        found.append(weight.flatten())
    return torch.cat(found)


def _on_gpu(*, sparse: bool) -> Callable[[], Any]:
    tokens, into, out = SHAPE
    layer = nn.Linear(into, out).cuda().half()
    x = torch.randn(tokens, into, device="cuda", dtype=torch.float16)
    if sparse:
        bake_(sparse_(nn.Sequential(layer)))
        layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()))

    def run() -> None:
        with torch.inference_mode():
            layer(x)
        torch.cuda.synchronize()

    return run


CLAIMS = (
    bound(
        "Every linear layer of the trained network holds at most two of four integers: groups and layers that do not.",
        paper="2:4 in every layer",
        value=_violations,
        at_most=0,
        needs=cifar10.NEEDS,
        clause=1,
    ),
    equal(
        "The packed bytes of INT8 hold out·in/4·(2·8 + 4) bits, layer by layer.",
        ours=partial(_bits, 8),
        theirs=partial(_formula, 8),
        tolerance=0,
        clause=2,
    ),
    equal(
        "The packed bytes of INT4 hold out·in/4·(2·4 + 4) bits, layer by layer.",
        ours=partial(_bits, 4),
        theirs=partial(_formula, 4),
        tolerance=0,
        clause=2,
    ),
    equal(
        "The packed bytes hold the quantised weights.",
        ours=partial(_weights, from_bytes=True),
        theirs=partial(_weights, from_bytes=False),
        tolerance=0,
        clause=2,
    ),
    kept(
        "2:4 and INT8 lose less than 1 point against the dense network, trained as long with the same teacher.",
        paper="negligible loss",
        quality=_lost,
        at_least=-1.0,
        unit="points",
        data=f"CIFAR-10, small ViT of {STEPS} steps, then 2 × {STAGE}; the first 2,000 test pictures; paired",
        needs=cifar10.NEEDS,
        clause=3,
    ),
    faster(
        "On a GPU a 2:4 FP16 linear layer of ViT-L (1024 to 4096, 64 pictures) takes less time than the dense one.",
        paper="1.39–1.79 times lower latency on an A100",
        ours=partial(_on_gpu, sparse=True),
        theirs=partial(_on_gpu, sparse=False),
        needs=("gpu",),
        clause=4,
    ),
    smaller(
        "The weights of the linear layers as 2:4 INT8 take 6.4 times fewer bits than FP32.",
        paper="6.4 times smaller",
        ours=lambda: float(_bits(8).sum()),
        theirs=lambda: 32.0 * sum(layer.layer.weight.numel() for _, layer in quantized_layers(_untrained(8))),
        at_least=6.4,
        beyond="model size",
    ),
)
