"""Evidence for TuneMode-ConvBN: timm's ResNet and MobileNet with frozen batch norms, as they are and in Tune mode.

The networks are drawn, and their running statistics are those of a batch, so that signals neither vanish nor grow.
Gradients are compared in float64, and in float32 where the activation is smooth: rounding turns single ReLUs on or off,
and then Eval mode's own gradients in float32 and float64 differ by as much.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import rehearsing
from foveal.measure.cost import peak_memory
from foveal.measure.saved import saved_bytes
from foveal.record import equal, faster, smaller
from foveal.train.memory.tune_mode import tune_

Change = Callable[[nn.Module], nn.Module]
NETWORKS = {"resnet50": "ResNet-50", "mobilenetv2_100": "MobileNetV2", "mobilenetv3_small_100": "MobileNetV3-Small"}
TIMED = {"resnet50": 4, "mobilenetv2_100": 8}  # batch sizes
BATCH, SIDE = 16, 224  # of what is counted


def _eval(model: nn.Module) -> nn.Module:
    return model


def _pictures(batch: int, side: int) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def _network(name: str, change: Change, *, smooth: bool = False) -> nn.Module:
    """A classifier with drawn weights, of its norms too, and the statistics of a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words: dict[str, Any] = {"act_layer": nn.SiLU} if smooth else {}
        model = timm.create_model(name, num_classes=10, **words)
        for part, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                # blocks that add little to their input, as at the start of a training, keep rounding errors small
                low = 0.1 if part.endswith("bn3") else 0.5
                nn.init.uniform_(module.weight, low, 2 * low)
                nn.init.uniform_(module.bias, -0.1, 0.1)
        with torch.no_grad():
            model.train()(_pictures(8, 64))
    return change(model.eval())


def _outputs(name: str, change: Change) -> Tensor:
    with torch.no_grad():
        return _network(name, change)(_pictures(2, 64))


def _gradients(name: str, change: Change, *, smooth: bool) -> Tensor:
    """Gradients of all parameters, each over its largest value, in float32 if `smooth`, else in float64."""
    model, pictures = _network(name, change, smooth=smooth), _pictures(2, 64)
    if not smooth:
        model, pictures = model.double(), pictures.double()
    loss = F.cross_entropy(model(pictures), torch.arange(2))
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() / gradient.abs().max() for gradient in found])


def _steps(change: Change) -> Tensor:
    """How far three steps of gradient descent move the parameters of a ResNet-18, each over its largest value."""
    model = _network("resnet18", change).double()
    start = [value.detach().clone() for value in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(_pictures(2, 64).double()), torch.arange(2)).backward()
        optimizer.step()
    moved = [value.detach() - first for value, first in zip(model.parameters(), start, strict=True)]
    return torch.cat([change.flatten() / change.abs().max() for change in moved])


def _kept(name: str, change: Change) -> float:
    """Bytes kept for the backward pass besides parameters and statistics."""
    with torch.device("meta"):
        model, pictures = timm.create_model(name).eval(), torch.zeros(BATCH, 3, SIDE, SIDE)
    own = [*model.parameters(), *model.buffers()]
    model = change(model)
    return saved_bytes(lambda: model(pictures), own)


def _loss(model: nn.Module, pictures: Tensor) -> Tensor:
    return F.cross_entropy(model(pictures), torch.arange(len(pictures)) % 10)


def _trained(name: str, change: Change) -> None:
    _loss(_network(name, change), _pictures(BATCH, SIDE)).backward()


def _peak(name: str, change: Change) -> float:
    return float(peak_memory(partial(_trained, name, change)))


def _step(name: str, change: Change) -> Callable[[], Tensor]:
    model, pictures = _network(name, change), _pictures(1 if rehearsing() else TIMED[name], SIDE)

    def run() -> Tensor:
        model.zero_grad()
        loss = _loss(model, pictures)
        loss.backward()
        return loss.detach()

    return run


CLAIMS = (
    *(
        equal(
            f"{said}: outputs equal Eval mode's.",
            paper="equivalent to Eval mode in forward",
            ours=partial(_outputs, name, tune_),
            theirs=partial(_outputs, name, _eval),
            tolerance=1e-4,
            clause=1,
        )
        for name, said in NETWORKS.items()
    ),
    *(
        equal(
            f"{said}: gradients of all parameters equal Eval mode's, in float64.",
            paper="equivalent to Eval mode in backward",
            ours=partial(_gradients, name, tune_, smooth=False),
            theirs=partial(_gradients, name, _eval, smooth=False),
            tolerance=1e-9,
            clause=1,
        )
        for name, said in NETWORKS.items()
    ),
    *(
        equal(
            f"{said} with SiLU for ReLU: so they do in float32.",
            paper="equivalent to Eval mode in backward",
            ours=partial(_gradients, name, tune_, smooth=True),
            theirs=partial(_gradients, name, _eval, smooth=True),
            tolerance=1e-4,
            clause=1,
        )
        for name, said in NETWORKS.items()
        if name in TIMED
    ),
    *(
        smaller(
            f"{said}, {BATCH} pictures of {SIDE}×{SIDE}: a fifth less is kept for the backward pass.",
            paper="a significantly smaller footprint on a GPU",
            ours=partial(_kept, name, tune_),
            theirs=partial(_kept, name, _eval),
            at_least=1.25,
            clause=2,
        )
        for name, said in NETWORKS.items()
    ),
    *(
        faster(
            f"{NETWORKS[name]}, {batch} pictures of {SIDE}×{SIDE}: a training step takes no more time.",
            paper="significantly less training time on a GPU",
            ours=partial(_step, name, tune_),
            theirs=partial(_step, name, _eval),
            clause=3,
        )
        for name, batch in TIMED.items()
    ),
    equal(
        "ResNet-18: three steps of gradient descent with momentum move all parameters as in Eval mode, in float64.",
        paper="as stable as Eval mode",
        ours=partial(_steps, tune_),
        theirs=partial(_steps, _eval),
        tolerance=1e-9,
        beyond="as stable as Eval mode, unlike Deploy mode",
    ),
    smaller(
        f"ResNet-50: a whole training step on {BATCH} pictures takes a tenth less memory, measured in a process each.",
        paper="a significantly smaller footprint on a GPU",
        ours=partial(_peak, "resnet50", tune_),
        theirs=partial(_peak, "resnet50", _eval),
        at_least=1.1,
        beyond="less memory in use",
    ),
)
