"""Evidence for BiViT: exact products, bytes, and softmax-aware attention against signs on CIFAR-10.

The rival differs in the attention map alone. By XNOR-Net's rule, α sign(A) with α = mean |A|, every entry of a map that
softmax made is 1. The second rival keeps what is above the mean of its row, 1/N, the usual fixed threshold.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10, distilling
from foveal.ops.xnor import pack_signs, sign, xnor_matmul
from foveal.record import equal, kept
from foveal.shrink.quantize.bivit import BiViT, phases, select, softmax_aware
from foveal.shrink.quantize.fake import quantized_layers
from foveal.shrink.quantize.packed import packed_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.record import Claim

START, STEPS, BATCH = 600, 200, 32  # steps of the real network and of each phase, whose batches are smaller
DATA = f"ViT of {START} steps of 64 on CIFAR-10, then {STEPS} of {BATCH} for each phase, the first 2,000 test pictures"


def by_sign(attention: Tensor) -> tuple[Tensor, Tensor]:
    """α sign(A): all ones, and the mean."""
    return sign(attention), attention.abs().mean(-1, keepdim=True)


def by_mean(attention: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of at least the mean of their row, and the mean of those."""
    chosen = (attention >= attention.mean(-1, keepdim=True)).to(attention.dtype)
    return chosen, (attention * chosen).sum(-1, keepdim=True) / chosen.sum(-1, keepdim=True).clamp(min=1)


def _start(seed: int) -> nn.Module:
    return distilling.teacher(partial(small_vit, dim=64, depth=4, num_heads=2), steps=START, seed=seed)


def _train(model: nn.Module, seed: int) -> nn.Module:
    inputs, labels = cifar10.pictures("train")

    def batches(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(1000 * seed + step)
        rows = torch.randint(len(labels), (BATCH,), generator=draw)
        flip = torch.rand(BATCH, generator=draw).view(-1, 1, 1, 1) < 0.5
        return torch.where(flip, inputs[rows].flip(-1), inputs[rows]), labels[rows]

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(pair[0]), pair[1])

    return short_run(model, batches, loss, steps=STEPS, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98), clip=1.0)


@cached(maxsize=16)
def _accuracy(seed: int, kind: str) -> float:
    binarise = {"softmax": softmax_aware, "sign": by_sign, "mean": by_mean, "together": softmax_aware}[kind]
    model = copy.deepcopy(_start(seed))
    if kind == "together":
        model = _train(_train(BiViT().apply(model), seed), seed + 100)
    else:
        for number, step in enumerate(phases(binarise)):
            model = _train(step.apply(model), seed + 100 * number)
    return cifar10.accuracy(model)


def _better(says: str, than: str, *, by: float, **words: object) -> Claim:
    return kept(
        says,
        paper="19.8 points on TinyImageNet over earlier binary transformers" if by else "",
        quality=lambda seed: _accuracy(seed, "softmax") - _accuracy(seed, than),
        at_least=by,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        **words,  # type: ignore[arg-type]
    )


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _chosen() -> Tensor:
    return softmax_aware(_drawn(2, 3, 65, 65).mul(2).softmax(-1))[0]


def _bytes() -> Tensor:
    """Bytes of the binary layers of a small ViT in a packed file, without biases."""
    layers = [layer for _, layer in quantized_layers(BiViT().apply(_vit()))]
    biases = sum(4 * layer.layer.bias.numel() for layer in layers if layer.layer.bias is not None)
    return torch.tensor(float(sum(packed_bytes(layer) for layer in layers) - biases))


def _thirty_second() -> Tensor:
    weights = [layer.layer.weight for _, layer in quantized_layers(BiViT().apply(_vit()))]
    return torch.tensor(float(sum(4 * w.numel() / 32 + 4 * w.shape[0] for w in weights)))


def _vit() -> nn.Module:
    return small_vit(dim=64, depth=4, num_heads=2)


def _after(build: Callable[[], nn.Module], backend: str) -> Tensor:
    from foveal.ops import use_backend

    torch.manual_seed(0)
    with use_backend(backend), torch.inference_mode():
        return BiViT().apply(build()).eval()(_drawn(2, 3, 32, 32))


CLAIMS = (
    equal(
        "A product of packed signs is that of float signs, to the bit.",
        ours=lambda: xnor_matmul(_drawn(2, 65, 200), pack_signs(_drawn(2, 33, 200, seed=1))),
        theirs=lambda: sign(_drawn(2, 65, 200)) @ sign(_drawn(2, 33, 200, seed=1)).mT,
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "Zeros and ones times signs of values by xnor are the float product, to the bit.",
        ours=lambda: select(_chosen(), _drawn(2, 3, 65, 21, seed=1)),
        theirs=lambda: _chosen() @ sign(_drawn(2, 3, 65, 21, seed=1)),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "A binary ViT computes the same with bits and with floats.",
        ours=partial(_after, _vit, "auto"),
        theirs=partial(_after, _vit, "reference"),
        beyond="inference in bits",
    ),
    equal(
        "Binary layers take a 32nd of the bytes of their float weights, and one float for each output channel.",
        paper="1-bit weights",
        ours=_bytes,
        theirs=_thirty_second,
        tolerance=0.0,
        clause=2,
    ),
    _better(
        "Softmax-aware attention is at least 2 points more accurate than signs.",
        "sign",
        by=2.0,
        clause=3,
    ),
    _better(
        "It is more accurate than a threshold at the mean of each row.",
        "mean",
        by=0.0,
        beyond="the threshold follows the row",
    ),
    _better(
        "Two phases are more accurate than attention and MLPs at once, for as many steps.",
        "together",
        by=0.0,
        beyond="cross-layer binarisation",
    ),
)
