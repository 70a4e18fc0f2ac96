"""Evidence for ShiftAddViT: exact integers, MLPs of shifts and of mixtures after training, tokens by latency, time.

A first phase trains a real ViT with attention by additions; from there a second one of as many steps goes on with MLPs
as they are, with shift layers and with mixtures.
"""

from __future__ import annotations

import copy
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10, distilling
from foveal.evidence.timing import call
from foveal.measure.paired import paired
from foveal.record import bound, equal, faster, kept
from foveal.shrink.quantize.fake import QuantizedLayer
from foveal.shrink.quantize.packed import packed_bytes
from foveal.shrink.quantize.powers_of_two import (
    IntegerShift,
    integer_,
    shift_add,
    shift_add_reference,
    shift_layer,
)
from foveal.shrink.quantize.shift_add_vit import AddAttention, ShiftAddViT, ShiftMixture, balanced, routers

if TYPE_CHECKING:
    from collections.abc import Callable

BUILD = partial(small_vit, dim=64, depth=4, num_heads=2)
START, STEPS, BATCH = 600, 250, 32  # steps of the real network and of each phase, whose batches are smaller
WEIGHT = 0.1  # of L: ten times the paper's, for a hundredth of its steps
PICOJOULES = {"product": 3.7, "sum": 0.9, "shift": 0.13, "integer sum": 0.1}  # 45 nm, float32 and int32
DATA = f"ViT of {START} steps of 64 on CIFAR-10, then {STEPS} of {BATCH} for each phase, 10,000 test pictures"


def _start(seed: int) -> nn.Module:
    return distilling.teacher(BUILD, steps=START, seed=seed)


@cached(maxsize=1)
def _latencies() -> tuple[float, float]:
    """Median times of the MLP and of its shift layers in integers for 512 tokens, one thread, interleaved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = BUILD().eval()
        mlp, x = model.blocks[0].mlp, torch.randn(512, 64)
    other = copy.deepcopy(mlp)
    other.fc1, other.fc2 = (IntegerShift(shift_layer(layer)) for layer in (other.fc1, other.fc2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            times = paired(lambda: mlp(x), lambda: other(x), pairs=5 if rehearsing() else 100, clock=time.perf_counter)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[0]), statistics.median(times[1])


def _train(model: nn.Module, seed: int) -> nn.Module:
    inputs, labels = cifar10.pictures("train")

    def batches(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(1000 * seed + step)
        rows = torch.randint(len(labels), (BATCH,), generator=draw)
        flip = torch.rand(BATCH, generator=draw).view(-1, 1, 1, 1) < 0.5
        return torch.where(flip, inputs[rows].flip(-1), inputs[rows]), labels[rows]

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        y, balance = balanced(model, pair[0])
        return F.cross_entropy(y, pair[1]) + WEIGHT * balance

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for the noise of routers
        return short_run(model, batches, loss, steps=STEPS, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98), clip=1.0)


def _changed(step: ShiftAddViT, model: nn.Module, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return step.apply(copy.deepcopy(model))


@cached(maxsize=4)
def _attention(seed: int) -> nn.Module:
    return _train(_changed(ShiftAddViT(mlp="mult"), _start(seed), seed), seed)


@cached(maxsize=12)
def _network(seed: int, kind: str) -> nn.Module:
    model = _attention(seed)
    if kind == "mult":
        return _train(copy.deepcopy(model), seed + 100)
    step = ShiftAddViT(attention=False, mlp=kind, latencies=_latencies())
    return integer_(_train(_changed(step, model, seed), seed + 100))


@cached(maxsize=12)
def _accuracy(seed: int, kind: str) -> float:
    return cifar10.accuracy(_start(seed) if kind == "start" else _network(seed, kind), cifar10.pictures("test"))


def _share(seed: int) -> float:
    """Time that the MLPs of a network are busy over that of their copies, mean over the mixtures, 1 when balanced."""
    model, pictures = _network(seed, "moe"), cifar10.pictures("test", limit=1000)[0]
    chosen: dict[str, Tensor] = {name: torch.zeros(2) for name in routers(model)}

    def count(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, logits: Tensor) -> None:
            chosen[name] += torch.bincount(logits.argmax(-1), minlength=2)

        return hook

    handles = [mixture.router.register_forward_hook(count(name)) for name, mixture in routers(model).items()]
    with torch.inference_mode():
        for x in pictures.split(100):
            model(x)
    for handle in handles:
        handle.remove()
    busy = torch.stack(list(chosen.values())).sum(0) * torch.tensor(_latencies())
    return float(busy[0] / busy[1])


def _energy(model: nn.Module) -> float:
    """Picojoules of the arithmetic of a picture: counts of operations times the energy of each."""
    float_product, shifted = PICOJOULES["product"] + PICOJOULES["sum"], PICOJOULES["shift"] + PICOJOULES["integer sum"]
    slow, fast = _latencies()
    share, tokens = fast / (slow + fast), 64  # share of tokens that go to products
    total: Any = 0.0
    module: Any
    for module in model.modules():
        if isinstance(module, AddAttention):
            d = module.qkv.in_features // module.num_heads
            total += 2 * PICOJOULES["sum"] * module.num_heads * d * d * tokens
            total += float_product * tokens * module.qkv.in_features * 9
        elif hasattr(module, "fused_attn"):
            total += 2 * float_product * tokens**2 * module.qkv.in_features
        elif isinstance(module, ShiftMixture):
            mlp: Any = module.experts[0]
            weights = 2 * mlp.fc1.weight.numel()
            total -= float_product * tokens * weights  # counted as float layers below, for all tokens
            total += tokens * weights * (share * float_product + (1 - share) * shifted)
        elif isinstance(module, IntegerShift | QuantizedLayer):
            continue
        elif isinstance(module, nn.Conv2d) and module.in_channels == 3:
            total += float_product * tokens * module.weight.numel()
        elif isinstance(module, nn.Linear):
            total += float_product * (1 if module.out_features == 10 else tokens) * module.weight.numel()
    return float(total)


def _saved() -> float:
    converted = ShiftAddViT(latencies=_latencies()).apply(BUILD())
    return 100 * (1 - _energy(integer_(converted)) / _energy(BUILD()))


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tokens() -> Tensor:
    return torch.randint(-128, 128, (33, 70), generator=torch.Generator().manual_seed(1)).to(torch.int8)


def _powers() -> tuple[Tensor, Tensor]:
    """Weights of a layer of powers of two as floats, and as integers with their step."""
    layer = nn.Linear(70, 21)
    with torch.no_grad():
        layer.weight.copy_(_drawn(21, 70))
    quantized = shift_layer(layer)
    whole = IntegerShift(quantized)
    return quantized.quantized_weight().detach(), whole.weight * whole.step


def _products(kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    layer = nn.Linear(70, 21)
    with torch.no_grad():
        layer.weight.copy_(_drawn(21, 70))
    whole = IntegerShift(shift_layer(layer))
    return kernel(_tokens(), whole.weight).float() * whole.step.float()


def _large(convert: bool) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    side = 32 if rehearsing() else 256
    words: dict[str, Any] = {"img_size": side, "patch_size": 4, "class_token": False, "global_pool": "avg"}
    model = VisionTransformer(embed_dim=192, depth=2, num_heads=3, num_classes=10, **words)
    return integer_(ShiftAddViT().apply(model)) if convert else model


def _timed(convert: bool) -> Callable[[], Any]:
    side = 32 if rehearsing() else 256
    return call(partial(_large, convert), 1, 3, side, side)()


CLAIMS = (
    equal(
        "Shifts and additions of integers equal the float product with weights that are powers of two, to the bit.",
        ours=partial(_products, shift_add_reference),
        theirs=lambda: _tokens().float() @ _powers()[0].float().T,
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "The product of bytes that inference takes equals it too, to the bit.",
        ours=partial(_products, shift_add),
        theirs=lambda: _tokens().float() @ _powers()[0].float().T,
        tolerance=0.0,
        clause=1,
    ),
    kept(
        "MLPs of shift layers alone are less accurate than MLPs of products, for as many steps.",
        paper="accuracy drops when shifts are applied to MLPs",
        quality=lambda seed: _accuracy(seed, "mult") - _accuracy(seed, "shift"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "Mixtures regain at least half of what shift layers alone lose.",
        paper="comparable accuracy",
        quality=lambda seed: _accuracy(seed, "moe") - (_accuracy(seed, "mult") + _accuracy(seed, "shift")) / 2,
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    *(
        bound(
            f"Both experts are busy equally long, within 10 %, by the latencies measured here (seed {seed}).",
            paper="the faster the experts run, the more input tokens they are assigned",
            value=partial(_share, seed),
            at_least=0.9,
            at_most=1.1,
            needs=cifar10.NEEDS,
            clause=4,
        )
        for seed in range(3)
    ),
    faster(
        "At 4,096 tokens the converted ViT is faster than the one with float softmax attention, on a CPU.",
        paper="up to 5.18× on a GPU",
        ours=partial(_timed, True),
        theirs=partial(_timed, False),
        clause=5,
    ),
    bound(
        "Energy of the arithmetic, by counts of operations at 45 nm, falls by at least 42.9 %.",
        paper="42.9 % with data movement",
        value=_saved,
        at_least=42.9,
        unit="%",
        beyond="energy",
    ),
    kept(
        "The converted ViT is at most 2 points less accurate than the ViT it came from.",
        paper="comparable accuracy",
        quality=lambda seed: _accuracy(seed, "moe") - _accuracy(seed, "start"),
        at_least=-2.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        beyond="accuracy of the whole conversion",
    ),
    equal(
        "A layer of shifts is stored in 4 bits a weight.",
        paper="signs and shifts",
        ours=lambda: torch.tensor(float(packed_bytes(shift_layer(nn.Linear(70, 20, bias=False))))),
        theirs=lambda: torch.tensor(70 * 20 / 2 + 4.0),
        tolerance=0.0,
        beyond="bytes",
    ),
)
