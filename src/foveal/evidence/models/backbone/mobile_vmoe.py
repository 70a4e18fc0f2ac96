"""Evidence for MobileVMoE: the dense ViT of timm with the same multiply-adds, from which the super-classes come.

The dense twin of each seed is trained first; what it confuses among training pictures that were held out makes the
super-classes. The floor is the same network whose super-classes are drawn at random.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.measure.cost import count_macs
from foveal.models.backbone.mobile_vmoe import mobile_vmoe, routed_loss, routes, super_classes
from foveal.record import equal, kept

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, BATCH = 1200, 64
DIM, DEPTH, HEADS, PATCH = 64, 4, 2, 8
EXPERTS, LAYERS = 4, 2
HELD_OUT = 5000  # of 50,000 training pictures
DATA = f"ViT of 64 channels and 4 blocks, {STEPS} steps of {BATCH} on CIFAR-10, the first 2,000 test pictures"

_dense = partial(small_vit, dim=DIM, depth=DEPTH, num_heads=HEADS, patch=PATCH, fc_norm=False)
_experts = partial(
    mobile_vmoe,
    dim=DIM,
    depth=DEPTH,
    num_heads=HEADS,
    patch_size=PATCH,
    num_classes=10,
    num_experts=EXPERTS,
    expert_layers=LAYERS,
    grid=(32 // PATCH, 32 // PATCH),
)


def _parts() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training pictures, and those held out for the confusion."""
    x, y = cifar10.pictures("train")
    cut = len(x) - (4 if rehearsing() else HELD_OUT)
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def _trained(build: Callable[[], nn.Module], seed: int, groups: Tensor) -> nn.Module:
    (x, y), _ = _parts()

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from torch's seeded generator
        rows = torch.randint(len(y), (BATCH,))
        flip = torch.rand(BATCH).view(-1, 1, 1, 1) < 0.5
        return torch.where(flip, x[rows].flip(-1), x[rows]), y[rows]

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        with routes(model) as scores:
            logits = model(pair[0])
        return routed_loss(logits, scores, pair[1], groups)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        torch.manual_seed(1000 + seed)  # the same pictures for both, whatever their initial weights drew
        return short_run(model, batches, loss, steps=STEPS, lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98), clip=1.0)


@cached(maxsize=3)
def _twin(seed: int) -> nn.Module:
    return _trained(_dense, seed, torch.zeros(10, dtype=torch.int64))


@cached(maxsize=3)
def _groups(seed: int) -> Tensor:
    """Super-classes by what the dense twin confuses among held-out training pictures."""
    x, y = _parts()[1]
    twin = _twin(seed)
    with torch.inference_mode():
        taken = torch.cat([twin(part).argmax(1) for part in x.split(100)])
    return super_classes(torch.zeros(10, 10).index_put_((y, taken), torch.ones(len(y)), accumulate=True), EXPERTS)


@cached(maxsize=8)
def _accuracy(seed: int, kind: str) -> float:
    if kind == "dense":
        return cifar10.accuracy(_twin(seed))
    groups = _groups(seed)
    if kind == "random":
        groups = groups[torch.randperm(10, generator=torch.Generator().manual_seed(seed))]
    return cifar10.accuracy(_trained(_experts, seed, groups))


def _outputs(top_k: int, *, together: bool) -> Tensor:
    torch.manual_seed(0)
    model, x = _experts(top_k=top_k).eval(), torch.randn(24, 3, 32, 32)
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter.mul_(50.0)  # so that pictures differ in their experts
        return model(x) if together else torch.cat([model(picture) for picture in x.split(1)])


def _macs(build: Callable[[], nn.Module], *, more: int = 0) -> Tensor:
    return torch.tensor(float(count_macs(build(), (1, 3, 32, 32)) + more))


def _active(*, whole: bool) -> Tensor:
    """Parameters that one picture uses, or of the twin and the routers."""
    if whole:
        return torch.tensor(float(sum(p.numel() for p in _dense().parameters()) + LAYERS * (DIM + 1) * EXPERTS))
    shared = {name: p.numel() for name, p in _experts().named_parameters()}
    return torch.tensor(float(sum(n // EXPERTS if ".mlp." in k and k[-2:-1] in "wb" else n for k, n in shared.items())))


CLAIMS = (
    *(
        equal(
            f"A batch grouped by experts, {k} a picture, equals its pictures one by one.",
            ours=partial(_outputs, k, together=True),
            theirs=partial(_outputs, k, together=False),
            clause=1,
        )
        for k in (1, 2)
    ),
    equal(
        "Multiply-adds of a picture are those of timm's dense ViT and of the routers.",
        ours=partial(_macs, _experts),
        theirs=partial(_macs, _dense, more=LAYERS * DIM * EXPERTS),
        tolerance=0.0,
        clause=2,
    ),
    equal(
        "So are the parameters that a picture uses: one expert of each layer.",
        paper="one image-level expert choice a layer",
        ours=partial(_active, whole=False),
        theirs=partial(_active, whole=True),
        tolerance=0.0,
        beyond="inference cost",
    ),
    kept(
        "With super-classes it is at least a point more accurate than the dense ViT of as many multiply-adds.",
        paper="+3.39% over ViT-Tiny on ImageNet-1k",
        quality=lambda seed: _accuracy(seed, "experts") - _accuracy(seed, "dense"),
        at_least=1.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "Super-classes of confused classes are better than ones of the same sizes drawn at random.",
        paper="",
        quality=lambda seed: _accuracy(seed, "experts") - _accuracy(seed, "random"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        beyond="super-classes from the confusion matrix",
    ),
)
