"""Evidence for FlexiViT: against networks of one patch size, trained as long; against timm's resizing; by cost."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call, seconds
from foveal.measure.cost import count_macs
from foveal.record import equal, grows, kept
from foveal.shrink.tokens.flexivit import FlexiViT, fixed, pi_resize, set_patch_size

if TYPE_CHECKING:
    from foveal.record import Claim

SIDE, SIZES, STEPS = 48, (6, 8, 12), 800  # pictures of 48 pixels: 64, 36 or 16 tokens
COUNTED = (4, 6, 8, 12, 16, 24)
CLOCKED = (8, 12, 16, 24, 48)  # patch sizes of a ViT-S/16 on pictures of 240


class _Enlarged(nn.Module):
    """A network for pictures of 48 pixels, given those of 32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False))


def _vit(patch: int) -> nn.Module:
    return small_vit(dim=48, depth=4, patch=patch, img_size=SIDE)


def _one_size(patch: int) -> nn.Module:
    return _Enlarged(_vit(patch))


def _flexible() -> nn.Module:
    """Kernel and positions of the middle size."""
    return _Enlarged(FlexiViT(sizes=SIZES).apply(_vit(SIZES[1])))


@cached(maxsize=4)
def _flexible_at_each_size(seed: int) -> dict[int, float]:
    network: Any = cifar10.trained(_flexible, steps=STEPS, seed=seed)
    every = {size: _Enlarged(fixed(network.model, size, img_size=SIDE)) for size in SIZES}
    return {size: cifar10.accuracy(one.eval()) for size, one in every.items()}


def _difference(size: int, seed: int) -> float:
    single = cifar10.trained(partial(_one_size, size), steps=STEPS, seed=seed)
    return _flexible_at_each_size(seed)[size] - cifar10.accuracy(single)


def _kept(size: int) -> Claim:
    return kept(
        f"With patches of {size} it is at most one point below the network trained at that size alone.",
        paper="usually matches, sometimes beats",
        quality=partial(_difference, size),
        at_least=-1.0,
        unit="points",
        data=f"{STEPS} steps on CIFAR-10 enlarged to {SIDE} pixels, the first 2,000 test pictures",
        needs=cifar10.NEEDS,
        clause=1,
    )


def _at(size: int) -> nn.Module:
    """ViT-S for pictures of 240 with one patch size, out of a flexible one."""
    model = small_vit(dim=384, depth=12, num_heads=6, patch=16, img_size=240, num_classes=1000)
    return fixed(FlexiViT().apply(model), size, img_size=240)


def _counted() -> Tensor:
    model = FlexiViT(sizes=SIZES).apply(_vit(8))
    every = [fixed(model, size, img_size=SIDE) for size in COUNTED]
    return torch.tensor([float(count_macs(one, (1, 3, SIDE, SIDE))) for one in every])


def _macs(size: int, *, side: int = SIDE, dim: int = 48, depth: int = 4, classes: int = 10) -> float:
    """N (3 p² C + depth (12 C² + 2 N C)) and the head, N = (side / p)²."""
    tokens = (side // size) ** 2
    return float(tokens * (3 * size**2 * dim + depth * (12 * dim**2 + 2 * tokens * dim)) + dim * classes)


def _seconds(size: int) -> float:
    return seconds(call(lambda: _at(size), 1, 3, 240, 240), repeats=2)


def _kernels(*, timm: bool) -> Tensor:
    """A kernel of 8 resized to smaller and larger ones, all in a row."""
    weight = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = [
        resample_patch_embed(weight, [size, size], interpolation="bilinear") if timm else pi_resize(weight, size)
        for size in (3, 5, 6, 12, 13, 16, 24)
    ]
    return torch.cat([kernel.flatten() for kernel in found])


def _tokens(*, enlarged: bool) -> Tensor:
    """Tokens of a patch of 8 pixels, and those of the same patch enlarged to 12, 16 and 24."""
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(5, 3, 8, 8, generator=draw), torch.randn(4, 3, 8, 8, generator=draw)
    found = []
    for size in (12, 16, 24):
        wide = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        found.append(F.conv2d(wide, pi_resize(weight, size)) if enlarged else F.conv2d(x, weight))
    return torch.cat(found)


def _network(*, resized_once: bool) -> Tensor:
    torch.manual_seed(0)
    model = FlexiViT(sizes=SIZES).apply(_vit(8)).eval()
    x = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        every = [
            fixed(model, size, img_size=SIDE)(x) if resized_once else set_patch_size(model, size)(x)
            for size in (4, 6, 12)
        ]
    return torch.cat(every)


CLAIMS = (
    *(_kept(size) for size in SIZES),
    equal(
        "Multiply-adds of one network at six patch sizes are those of the formula.",
        paper="tokens change with the patch size",
        ours=_counted,
        theirs=lambda: torch.tensor([_macs(size) for size in COUNTED]),
        tolerance=0.0,
        clause=2,
    ),
    grows(
        "The time of a ViT-S at five patch sizes follows its multiply-adds.",
        paper="compute falls with the tokens",
        cost=_seconds,
        sizes=tuple(reversed(CLOCKED)),
        of=partial(_macs, side=240, dim=384, depth=12, classes=1000),
        exponent=(0.8, 1.2),
        rounds=3,
        clause=2,
    ),
    equal(
        "Tokens of an enlarged patch under the enlarged kernel are those of the patch.",
        ours=partial(_tokens, enlarged=True),
        theirs=partial(_tokens, enlarged=False),
        tolerance=1e-4,
        clause=3,
    ),
    equal(
        "Kernels resized side by side equal timm's, which inverts the whole matrix.",
        ours=partial(_kernels, timm=False),
        theirs=partial(_kernels, timm=True),
        tolerance=1e-4,
        clause=4,
    ),
    equal(
        "A network resized once and for all gives what the flexible one gives at that patch size.",
        ours=partial(_network, resized_once=True),
        theirs=partial(_network, resized_once=False),
        tolerance=1e-5,
        beyond="deployed at any patch size",
    ),
)
