"""Evidence for ResNeXt: counts of timm's network, three forms of the block, and cardinality beside depth and width."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import timm
import torch
from timm.models.resnet import Bottleneck, downsample_conv
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10, cifar10_half
from foveal.measure.cost import count_macs, count_parameters
from foveal.nn.resnext import (
    ResNeXtBlock,
    early_concatenation,
    folded,
    grouped_convolution,
    matched_width,
    split_transform_sum,
    use_aggregated_,
)
from foveal.record import bound, equal, kept, macs, params

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.record import Claim

NAME = "resnext50_32x4d"
STEPS = 400
TESTED = 10_000  # all test pictures: differences of a point are looked for
DATA = f"{STEPS} steps on CIFAR-10 at 16×16, all {TESTED:,} test pictures"
SHAPE = (1, 3, 16, 16)


class Small(nn.Sequential):
    """A small network of the paper's shape for CIFAR-10, (B, 3, 16, 16) to (B, 10).

    As in the paper's 8×64d for CIFAR-10, eight paths together are wider than the block's output.

    Args:
        cardinality: C.
        widths: channels of a path in the blocks of the three stages, at 16×16, 8×8 and 4×4 pixels.
        depth: number of blocks of each stage.
    """

    def __init__(self, cardinality: int, widths: tuple[int, int, int], *, depth: int = 1) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        dim = 32
        for stage, width in enumerate(widths):
            for number in range(depth):
                stride = 2 if stage and not number else 1
                layers.append(ResNeXtBlock(dim, 32 << stage, cardinality=cardinality, width=width, stride=stride))
                dim = 32 << stage
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, 10))


# One path, and eight of equal cost; the widths of the one path were found by search, as those of table 2.
one_path = partial(Small, 1, (25, 48, 79))
eight_paths = partial(Small, 8, (6, 12, 24))
# The network of one path with residuals of twice the cost, in three ways.
two_paths = partial(Small, 2, (25, 48, 79))
deeper = partial(Small, 1, (25, 48, 79), depth=2)
wider = partial(Small, 1, (37, 73, 114))
NETWORKS = (one_path, eight_paths, two_paths, deeper, wider)


@torch.no_grad()
def _drawn(model: nn.Module) -> nn.Module:
    """The module with the norms' weights and statistics drawn, so that each residual counts."""
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            value.uniform_(0.5, 1.5) if name.endswith(("weight", "running_var")) else value.normal_(std=0.1)
    return model.eval()


@torch.no_grad()
def _logits(*, ours: bool) -> Tensor:
    torch.manual_seed(0)
    model = _drawn(timm.create_model(NAME))
    x = torch.randn(2, 3, 64, 64)
    out: Tensor = (use_aggregated_(model) if ours else model)(x)
    return out


@torch.no_grad()
def _block(form: Callable[..., Tensor] | None, *, stride: int) -> Tensor:
    """A block of timm's with 256 channels, its residual computed in one of the forms; None for timm's own.

    At stride 1 it is that of figure 3, at stride 2 the first of the second stage.
    """
    torch.manual_seed(0)
    shortcut = None if stride == 1 else downsample_conv(256, 512, 1, stride)
    block = _drawn(Bottleneck(256, 64 * stride, stride, shortcut, cardinality=32, base_width=4))
    x = torch.randn(2, 256, 13, 11)
    if form is None:
        out: Tensor = block(x)
        return out
    return (form(x, **folded(block)) + (x if shortcut is None else shortcut(x))).relu()


def _gradients(form: Callable[..., Tensor]) -> Tensor:
    torch.manual_seed(0)
    shapes = (2, 24, 13, 11), (32, 24), (32, 4, 3, 3), (20, 32)
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    found = torch.autograd.grad(form(*tensors, stride=2).square().sum(), tensors)
    return torch.cat([gradient.flatten() for gradient in found])


@cached(maxsize=24)
def _accuracy(build: Callable[[], nn.Module], seed: int) -> float:
    model = cifar10.train_classifier(build, steps=STEPS, seed=seed, data=cifar10_half.pictures("train"))
    return cifar10_half.accuracy(model, limit=TESTED)


def _cost(build: Callable[[], nn.Module]) -> tuple[int, int]:
    with torch.device("meta"):
        model = build()
    return count_parameters(model), count_macs(model, SHAPE)


def _apart(build: Callable[[], nn.Module], other: Callable[[], nn.Module]) -> float:
    """Largest relative difference of two networks' parameters and multiply-adds."""
    return max(abs(ours / theirs - 1) for ours, theirs in zip(_cost(build), _cost(other), strict=True))


def _better(
    build: Callable[[], nn.Module], says: str, *, than: Callable[[], nn.Module], paper: str, clause: int
) -> Claim:
    return kept(
        says,
        paper=paper,
        quality=lambda seed: _accuracy(build, seed) - _accuracy(than, seed),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10_half.NEEDS,
        clause=clause,
    )


FORMS = (("early concatenation", early_concatenation), ("grouped convolution", grouped_convolution))

CLAIMS = (
    params(
        "timm's ResNeXt-50 (32×4d) with our block.",
        paper="25.0 M",
        model=lambda: use_aggregated_(timm.create_model(NAME)),
        expect="25.029 M",
        clause=1,
    ),
    macs(
        "The same at 224×224.",
        paper="4.2 G",
        model=lambda: use_aggregated_(timm.create_model(NAME)),
        shape=(1, 3, 224, 224),
        expect="4.230 G",
        clause=1,
    ),
    *(
        equal(
            f"At stride {stride}, {name} is the sum of 32 bottlenecks.",
            ours=partial(_block, form, stride=stride),
            theirs=partial(_block, split_transform_sum, stride=stride),
            clause=2,
        )
        for stride in (1, 2)
        for name, form in FORMS
    ),
    equal(
        "The sum of 32 bottlenecks is timm's block.",
        ours=partial(_block, split_transform_sum, stride=2),
        theirs=partial(_block, None, stride=2),
        clause=2,
    ),
    *(
        equal(
            f"Gradients of {name} are those of the sum, for the map and all weights.",
            ours=partial(_gradients, form),
            theirs=partial(_gradients, split_transform_sum),
            clause=2,
        )
        for name, form in FORMS
    ),
    equal(
        "timm's network gives the same logits with our block and the weights of its own.",
        ours=lambda: _logits(ours=True),
        theirs=lambda: _logits(ours=False),
        beyond="the block of figure 3(c)",
    ),
    equal(
        "Widths for 1, 2, 4, 8 and 32 paths of the cost of one with 64 channels.",
        paper="64, 40, 24, 14, 4",
        ours=lambda: torch.tensor([float(matched_width(paths)) for paths in (1, 2, 4, 8, 32)]),
        theirs=lambda: torch.tensor([64.0, 40, 24, 14, 4]),
        beyond="table 2",
    ),
    bound(
        "The networks with one path and with eight have the same parameters and multiply-adds within 2 %.",
        paper="preserved complexity",
        value=lambda: 100 * _apart(eight_paths, one_path),
        at_most=2.0,
        unit="%",
        clause=3,
    ),
    _better(
        eight_paths,
        "Eight paths are more accurate than one of equal cost, beyond the spread of seeds.",
        than=one_path,
        paper="+1.7 points on ImageNet, 32×4d against 1×64d",
        clause=3,
    ),
    bound(
        "Doubled by cardinality, width or depth, networks have the same parameters and multiply-adds within 4 %.",
        paper="2× complexity",
        value=lambda: 100 * max(_apart(two_paths, deeper), _apart(two_paths, wider)),
        at_most=4.0,
        unit="%",
        clause=4,
    ),
    _better(
        two_paths,
        "Two paths in place of one gain at least as much as twice the blocks.",
        than=deeper,
        paper="+1.0 points on ImageNet, 2×64d against ResNet-200",
        clause=4,
    ),
    _better(
        two_paths,
        "They gain at least as much as one wider path of equal cost.",
        than=wider,
        paper="+0.6 points on ImageNet, 2×64d against 1×100d",
        clause=4,
    ),
)
