"""Evidence for LZU: the way there and back, its time beside a ResNet-18, and small things in the streets of CamVid.

A small segmenter sees 48×64 pixels of pictures of 96×128, once read evenly, once through a grid that follows where
poles, signs, pedestrians and cyclists stand in the training pictures. Both are the same module with the same weights to
begin with, trained on the same batches; the even one has a uniform saliency, and reads the mean of each 2×2 pixels.
Classes are weighted in the loss by median frequency over frequency, as is usual on CamVid: without it, neither network
finds small things in so few steps.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals.segmenters import Segmenter
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import segmenting
from foveal.evidence.tasks.segmenting import better
from foveal.nn.lzu import LZU
from foveal.nn.sampling_grid import SamplingGrid, pull, push
from foveal.record import bound, equal, faster

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 400
SMALL = ("pole", "sign", "pedestrian", "cyclist")
KNOTS, REACH = 4, 0.5  # pixels of a side that share a knot; width of the attraction: rows are enlarged up to 1.6 times
DATA = f"CamVid at 96×128 seen in 48×64, {STEPS} steps of 8 pictures, 233 test pictures"


def _convolutions(dim: int, out: int, stride: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels, step in ((dim, stride), (out, 1)):
        layers += [nn.Conv2d(channels, out, 3, step, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers)


@cached(maxsize=1)
def _small_things() -> Tensor:
    """How often a place shows a small thing in training pictures and their mirror images, and as much everywhere."""
    labels = segmenting.pictures("train")[1]
    numbers = torch.tensor([segmenting.CLASSES.index(name) for name in SMALL])
    often = F.avg_pool2d(torch.isin(labels, numbers).float().mean(0)[None], KNOTS)[0]
    often = (often + often.flip(1)) / 2
    return often + often.mean()


def _network(*, zooms: bool) -> LZU:
    stages = [_convolutions(a, b, 2) for a, b in ((3, 16), (16, 32), (32, 64))]
    body: Any = Segmenter(stages, (16, 32, 64), dim=32, num_classes=len(segmenting.CLASSES))
    head, body.classifier = body.classifier, nn.Identity()
    saliency = _small_things() if zooms else torch.ones(2, 2)
    size = (16, 16) if rehearsing() else (48, 64)
    return LZU(body, size, saliency=saliency, head=head, reach=REACH, finer=2)


_zoomed, _even = partial(_network, zooms=True), partial(_network, zooms=False)


@cached(maxsize=1)
def _weights() -> Tensor:
    """Weights of the classes, (classes,)."""
    labels = segmenting.pictures("train")[1]
    counts = torch.bincount(labels[labels != segmenting.IGNORED], minlength=len(segmenting.CLASSES)).float()
    return counts.median() / counts.clamp(min=1)


def _loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    logits = F.interpolate(model(pair[0]), pair[1].shape[1:], mode="bilinear")
    return F.cross_entropy(logits, pair[1], _weights(), ignore_index=segmenting.IGNORED)


def _ious(model: nn.Module, part: str = "test") -> Tensor:
    """Intersection over union of each class, (classes,), percent."""
    counts = torch.zeros(len(segmenting.CLASSES), len(segmenting.CLASSES), dtype=torch.int64)
    inputs, labels = segmenting.pictures(part)
    with torch.inference_mode():
        for x, y in zip(inputs.split(16), labels.split(16), strict=True):
            logits = F.interpolate(model(x), y.shape[1:], mode="bilinear")
            counts += segmenting.confusion(logits.argmax(1), y)
    hits = counts.diagonal().double()
    return 100 * hits / (counts.sum(0) + counts.sum(1) - hits).clamp(min=1)


@cached(maxsize=12)
def _scores(build: Callable[[], nn.Module], seed: int, part: str = "test") -> tuple[float, float]:
    """Mean IoU of small things and of all classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    short_run(model, segmenting.batches(seed), _loss, steps=STEPS, weight_decay=0.01, clip=1.0)
    found = _ious(model, part)
    return float(found[[segmenting.CLASSES.index(name) for name in SMALL]].mean()), float(found.mean())


def _small(seed: int, build: Callable[[], nn.Module]) -> float:
    return _scores(build, seed)[0]


def _all(seed: int, build: Callable[[], nn.Module]) -> float:
    return _scores(build, seed)[1]


def _drawn() -> Tensor:
    """Steep saliency maps of 31×51 knots: a few peaks over a thousandth of their height."""
    return torch.rand(8, 31, 51, generator=torch.Generator().manual_seed(0)) ** 8 + 1e-3


def _there_and_back() -> float:
    """Largest error of a coordinate, in both orders, at an odd number of places."""
    found, at = [], torch.linspace(0, 1, 1001)
    for reach in (0.1, 0.25, 0.5):
        grid = SamplingGrid.from_saliency(_drawn(), reach=reach)
        for knots in (grid.rows, grid.columns):
            found += [pull(knots, push(knots, at)) - at, push(knots, pull(knots, at)) - at]
    return max(float(error.abs().max()) for error in found)


def _strength() -> float:
    """Largest enlargement of an axis by the grids of `_there_and_back`: a grid that does nothing has 1."""
    grid = SamplingGrid.from_saliency(_drawn(), reach=0.1)
    return max(1 / float(knots.diff(dim=1).min() * (knots.shape[1] - 1)) for knots in (grid.rows, grid.columns))


def _resnet() -> nn.Module:
    import timm

    return timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4)).eval()


def _features(*, wrapped: bool) -> Tensor:
    """Features of a ResNet-18 at stride 32, alone and inside of LZU with a uniform saliency."""
    torch.manual_seed(0)
    body, x = _resnet(), torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    model: nn.Module = LZU(body, (96, 160), saliency=torch.full((5, 7), 0.3)) if wrapped else body
    with torch.inference_mode():
        return model(x)[-1]


def _saliency() -> Tensor:
    return torch.rand(1, 31, 51, generator=torch.Generator().manual_seed(0)) + 0.1


def _backbone() -> Callable[[], Any]:
    """A ResNet-18 on a picture of 256×512."""
    body, x = _resnet(), torch.randn(1, 3, 256, 512, generator=torch.Generator().manual_seed(0))

    def run() -> Any:
        with torch.inference_mode():
            return body(x)

    return run


def _warping() -> Callable[[], Any]:
    """Everything else that LZU does for it: the grid from its saliency, 512×1024 to 256×512, and three maps back."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 512, 1024, generator=draw)
    maps = [torch.randn(1, 64 * 2**i, 256 >> (2 + i), 512 >> (2 + i), generator=draw) for i in (1, 2, 3)]

    class _Given(nn.Module):
        def forward(self, _: Tensor) -> list[Tensor]:
            return maps

    model = LZU(_Given(), (256, 512), saliency=_saliency()[0])

    def run() -> Any:
        with torch.inference_mode():
            return model(x)

    return run


CLAIMS = (
    bound(
        "Coordinates come back from zooming and unzooming, in both orders, on steep grids of 31×51 knots.",
        paper="invertible",
        value=_there_and_back,
        at_most=1e-4,
        clause=1,
    ),
    bound(
        "The steepest of these grids enlarge at least 1.2 times.",
        paper="magnified salient regions",
        value=_strength,
        at_least=1.2,
        unit="times",
        beyond="the grids that come back are no identities",
    ),
    equal(
        "With a uniform saliency a ResNet-18 of timm gives the features that it gives alone.",
        ours=partial(_features, wrapped=True),
        theirs=partial(_features, wrapped=False),
        tolerance=1e-4,
        clause=2,
    ),
    faster(
        "Grid, zooming from 512×1024 to 256×512 and unzooming three maps take less than a tenth of a ResNet-18's time.",
        paper="under 1 ms",
        ours=_warping,
        theirs=_backbone,
        at_least=10.0,
        clause=3,
    ),
    better(
        "At equal input pixels, zooming raises the mean IoU of poles, signs, pedestrians and cyclists.",
        partial(_small, build=_zoomed),
        than=partial(_small, build=_even),
        paper="improves segmentation at a fixed input size",
        data=DATA,
        clause=4,
    ),
    better(
        "The mean IoU of all classes is above that of even reading.",
        partial(_all, build=_zoomed),
        than=partial(_all, build=_even),
        paper="improves segmentation at a fixed input size",
        data=DATA,
        beyond="a boost at a fixed input size",
    ),
)
