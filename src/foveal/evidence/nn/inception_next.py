"""Evidence for InceptionNeXt: its operator in timm's networks, counts, and a small network beside its 7×7 twin."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models.inception_next import MetaNeXt
from torch import Tensor, nn

from foveal.evidence.tasks.zoo import NEEDS, Zoo, depthwise
from foveal.evidence.timing import call, step
from foveal.nn.inception_next import (
    InceptionDepthwise,
    inception_depthwise,
    inception_depthwise_reference,
    use_inception_,
)
from foveal.record import equal, faster, kept, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable

tiny = partial(timm.create_model, "inception_next_tiny")


@torch.no_grad()
def _logits(*, ours: bool) -> Tensor:
    """Logits of timm's network with all weights and statistics drawn, so that each block's branch counts."""
    torch.manual_seed(0)
    model = tiny().eval()
    for name, value in model.state_dict().items():
        if "num_batches" not in name:
            value.copy_(
                0.5 + torch.rand_like(value) if value.ndim == 1 else torch.randn_like(value) / value[0].numel() ** 0.5
            )
    x = torch.randn(2, 3, 96, 64)
    if ours:
        weights = model.state_dict()
        model = use_inception_(tiny()).eval()
        model.load_state_dict(weights)
    return model(x)


def _operator(function: Callable[..., Tensor]) -> Tensor:
    torch.manual_seed(0)
    x, kernels = torch.randn(2, 24, 13, 11), [torch.randn(3, 1, *size) for size in ((3, 3), (1, 11), (11, 1))]
    return function(x, *kernels)


def small(mixer: Callable[[int], nn.Module]) -> nn.Module:
    """A small network of timm's blocks; a stem of stride 2 in place of 4 suits pictures of 32×32.

    Args:
        mixer: builder of the depthwise operator, from channels to a module (B, C, H, W) to the same.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network: Any = MetaNeXt(
        num_classes=10,
        depths=(2, 2),
        dims=(48, 96),
        mlp_ratios=(4, 3),
        token_mixers=lambda dim, **_: mixer(dim),  # type: ignore[arg-type]
        ls_init_value=0.1,  # 1e-6 needs more steps than these trainings have
    )
    network.stem[0] = nn.Conv2d(3, 48, 2, 2)
    built: nn.Module = network
    return built


ours, twin = partial(small, InceptionDepthwise), partial(small, partial(depthwise, kernel_size=7))
TRIAL = Zoo(ours, (twin,), "the twin with 7×7 kernels", minutes=1.5, matched=False)

CLAIMS = (
    equal(
        "timm's network gives the same logits with our operator and the weights of its own.",
        ours=lambda: _logits(ours=True),
        theirs=lambda: _logits(ours=False),
        tolerance=1e-5,
        clause=1,
    ),
    params(
        "timm's InceptionNeXt-T with our operator.",
        paper="28 M",
        model=lambda: use_inception_(tiny()),
        expect="28.06 M",
        clause=2,
    ),
    macs(
        "timm's InceptionNeXt-T at 224×224, with our operator.",
        paper="4.2 G",
        model=lambda: use_inception_(tiny()),
        shape=(1, 3, 224, 224),
        expect="4.19 G",
        beyond="multiply-adds as timm prints them",
    ),
    equal(
        "The operator is one depthwise convolution with bands written into squares.",
        ours=lambda: _operator(inception_depthwise),
        theirs=lambda: _operator(inception_depthwise_reference),
        beyond="a large kernel taken apart into branches",
    ),
    kept(
        "After equal minutes a small network is at most half a point below its twin with 7×7 kernels.",
        paper="+0.2 points on ImageNet",
        quality=TRIAL.difference,
        at_least=-0.5,
        unit="points",
        data=f"{TRIAL.minutes:g} processor minutes each on CIFAR-10, the first 2,000 test pictures",
        needs=NEEDS,
        clause=3,
    ),
    faster(
        "Its training step takes less time than the twin's, 64 pictures of 32×32.",
        paper="1.6× the training throughput of ConvNeXt-T",
        ours=step(ours, 64, 3, 32, 32),
        theirs=step(twin, 64, 3, 32, 32),
        clause=3,
    ),
    faster(
        "InceptionNeXt-T takes less time than ConvNeXt-T.",
        paper="1.2× the inference throughput",
        ours=call(tiny, 1, 3, 224, 224),
        theirs=call(partial(timm.create_model, "convnext_tiny"), 1, 3, 224, 224),
        beyond="faster than ConvNeXt at equal size",
    ),
)
