"""Evidence for LASI: the pixel-by-pixel solution, gradients, its time, and which of two damaged photographs is nearer.

Triplets are a photograph of BSD100 (luminance, crops of 96 pixels) and two damaged versions, one of which is known to
be nearer. *Severity*: noise, blur or JPEG at two neighbouring strengths, the weaker is nearer. *Kinds*: one of them at
a strength and another one two steps stronger. *Matched*: one of them, and a change of brightness or a stretch of
contrast brought to its PSNR, which is nearer: at one error these are seen least (Z. Wang et al., IEEE TIP 13(4), 2004,
figure 2). PSNR itself is a coin toss there. Agreement is the mean over the three groups, in percent.
"""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import features
from foveal.measure import benchmarks
from foveal.measure.quality import benchmark_pairs
from foveal.record import equal, faster, kept
from foveal.train.restore.lasi import embedding, embedding_reference, lasi, lasi_loss
from foveal.train.restore.losses import luminance
from foveal.train.restore.ms_ssim import ms_ssim

if TYPE_CHECKING:
    from collections.abc import Callable

    Distance = Callable[[Tensor, Tensor], Tensor]

COUNT, SIDE = 30, 96
STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (5, 8, 12, 18),  # standard deviation, levels of 255
    "blur": (0.6, 0.8, 1.1, 1.5),  # standard deviation of the Gaussian, pixels
    "jpeg": (70, 45, 25, 12),  # quality
}
DIMS = (2, 6, 12)
NEEDS = ("minutes", "BSD100")
DATA = "30 of BSD100, luminance, crops of 96 pixels: 270 triplets of severity, 360 of kinds, 720 matched in PSNR"


@cached(maxsize=3)
def _photographs(seed: int) -> Tensor:
    """Crops at drawn places, (30, 1, 96, 96) in [0, 1]."""
    generator = np.random.default_rng(seed)
    if rehearsing():
        return torch.from_numpy(generator.random((2, 1, 24, 24), np.float32))
    made = []
    for _, _, high in benchmark_pairs(benchmarks.find("BSD100"), 4, limit=COUNT):
        top, left = (int(generator.integers(size - SIDE + 1)) for size in high.shape[:2])
        made.append(high[top : top + SIDE, left : left + SIDE])
    return luminance(torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255)


def _blurred(x: Tensor, deviation: float) -> Tensor:
    at = torch.arange(-8, 9).to(x)
    row = torch.softmax(-at.square() / (2 * deviation**2), 0)
    return F.conv2d(F.conv2d(F.pad(x, (8,) * 4, mode="reflect"), row.view(1, 1, 1, -1)), row.view(1, 1, -1, 1))


def _coded(x: Tensor, quality: float) -> Tensor:
    planes = []
    for plane in x[:, 0].mul(255).round().byte().numpy():
        file = io.BytesIO()
        Image.fromarray(plane).save(file, "JPEG", quality=int(quality))
        planes.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(planes))[:, None].float() / 255


def _damaged(x: Tensor, kind: str, strength: float, seed: int) -> Tensor:
    if kind == "blur":
        out = _blurred(x, strength)
    elif kind == "jpeg":
        out = _coded(x, strength)
    else:
        out = x + strength / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return out.clamp(0, 1)


def _matched(x: Tensor, other: Tensor, kind: str) -> Tensor:
    """Pictures with changed brightness or contrast, the error of each brought to that of another by bisection."""
    error = (other - x).square().mean((1, 2, 3), keepdim=True)
    mean = x.mean((1, 2, 3), keepdim=True)
    direction = torch.where(mean < 0.5, 1.0, -1.0) if kind == "brightness" else x - mean
    low, high = torch.zeros_like(error), torch.full_like(error, 0.95)
    for _ in range(24):
        middle = (low + high) / 2
        less = ((x + middle * direction).clamp(0, 1) - x).square().mean((1, 2, 3), keepdim=True) < error
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return (x + low * direction).clamp(0, 1)


@cached(maxsize=3)
def _versions(seed: int) -> dict[tuple[str, ...], Tensor]:
    """Damaged versions of all photographs, by kind and level, and by kind, level and what was brought to its PSNR."""
    x = _photographs(seed)
    found: dict[tuple[str, ...], Tensor] = {}
    for kind, strengths in STRENGTHS.items():
        for level, strength in enumerate(strengths):
            other = found[kind, str(level)] = _damaged(x, kind, strength, 10 * seed + level)
            for mild in ("brightness", "contrast"):
                found[kind, str(level), mild] = _matched(x, other, mild)
    return found


@cached(maxsize=24)
def _agreement(distance: Distance, seed: int) -> float:
    """Percent of triplets whose nearer picture a distance finds nearer."""
    x = _photographs(seed)
    with torch.inference_mode():
        far = {name: distance(x, version) for name, version in _versions(seed).items()}
    groups: list[list[Tensor]] = [[], [], []]
    for (kind, level, *mild), value in far.items():
        if mild:
            groups[2].append(value < far[kind, level])
            continue
        step = int(level)
        if step + 1 < len(STRENGTHS[kind]):
            groups[0].append(value < far[kind, str(step + 1)])
        if step + 2 < len(STRENGTHS[kind]):
            groups[1] += [value < far[other, str(step + 2)] for other in STRENGTHS if other != kind]
    return 100 * float(np.mean([float(torch.cat(group).float().mean()) for group in groups]))


def _unlike(x: Tensor, y: Tensor) -> Tensor:
    return 1 - ms_ssim(x, y)


def _seen(x: Tensor, y: Tensor) -> Tensor:
    """Distance in a small classifier trained on CIFAR-10."""
    return features.distance(features.training(), x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1))


_by_dim = {dim: partial(lasi, dim=dim) for dim in DIMS}


def _above(seed: int, *, rival: Distance) -> float:
    return _agreement(_by_dim[6], seed) - _agreement(rival, seed)


def _least_step(seed: int) -> float:
    """The least gain in agreement from one D to the next, points."""
    found = [_agreement(_by_dim[dim], seed) for dim in DIMS]
    return float(np.diff(found).min())


def _plane() -> Tensor:
    return 2 * torch.rand(1, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1


def _pair() -> tuple[Tensor, Tensor]:
    x, y = torch.rand(2, 1, 1, 7, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, y


def _gradient() -> Tensor:
    x, y = _pair()
    (gradient,) = torch.autograd.grad(lasi_loss(x.requires_grad_(), y), x)
    return gradient


def _differences(step: float = 1e-6) -> Tensor:
    """Central differences of the distance in every pixel."""
    x, y = _pair()
    moved = step * torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    return ((lasi(x + moved, y.expand_as(moved)) - lasi(x - moved, y.expand_as(moved))) / (2 * step)).view_as(x)


def _call(distance: Distance) -> Callable[[], Callable[[], Any]]:
    def prepare() -> Callable[[], Any]:
        x, y = torch.rand(2, 1, 1, 321, 481, generator=torch.Generator().manual_seed(0))

        def run() -> Tensor:
            with torch.inference_mode():
                return distance(x, y)

        return run

    return prepare


CLAIMS = (
    equal(
        "Embeddings of six numbers equal a weighted least-squares solution for each pixel.",
        ours=lambda: embedding(_plane()),
        theirs=lambda: embedding_reference(_plane()),
        tolerance=1e-6,
        clause=1,
    ),
    equal(
        "Gradients of the distance are what its differences say.",
        ours=_gradient,
        theirs=_differences,
        tolerance=1e-6,
        clause=2,
    ),
    kept(
        "It finds the nearer of two damaged photographs at least as often as MS-SSIM.",
        paper="competitive with LPIPS; above MS-SSIM",
        quality=partial(_above, rival=_unlike),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=NEEDS,
        clause=3,
    ),
    kept(
        "It finds the nearer of two damaged photographs at least as often as a small classifier's features.",
        paper="competitive with LPIPS",
        quality=partial(_above, rival=_seen),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=(*NEEDS, *features.NEEDS[1:]),
        clause=3,
    ),
    faster(
        "On a photograph's luminance it takes at most three times as long as MS-SSIM.",
        paper="a similar cost",
        ours=_call(lasi),
        theirs=_call(_unlike),
        at_least=1 / 3,
        clause=4,
    ),
    kept(
        "Agreement does not fall from D = 2 to 6 and to 12.",
        paper="better with more",
        quality=_least_step,
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=NEEDS,
        clause=5,
    ),
)
