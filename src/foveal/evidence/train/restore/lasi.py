"""Evidence for LASI: least squares pixel by pixel, and choices between two distorted pictures whose answer is known.

A triplet is a photograph, 64×64 in grey, and two distorted copies, of which one is nearer to it. In five of eleven both
copies have the same distortion, and the one with less of it is nearer. In six of eleven the copies have the same PSNR:
one is brighter or of less contrast, the other noisy, blurred or JPEG-compressed; the first is nearer (Z. Wang and
A. Bovik, "Mean Squared Error: Love It or Leave It?", 2009).
"""

from __future__ import annotations

import io
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import seconds
from foveal.measure import benchmarks
from foveal.measure.fusion import ms_ssim
from foveal.record import bound, equal, faster, grows, kept
from foveal.train.restore.lasi import DECAY, RIDGE, lasi_distance, neighbours, prediction_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SIDE, PICTURES = 64, 24
NEEDS = (*cifar10.NEEDS, "bsds400")
DATA = f"triplets of {PICTURES} photographs of bsds400, 64×64, grey: same distortion or same PSNR"


def _written(pixels: NDArray) -> NDArray[np.uint8]:
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def _noisy(picture: NDArray, strength: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    return _written(picture + rng.normal(0, strength, picture.shape))


def _blurred(picture: NDArray, strength: float, _: np.random.Generator) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(strength)))


def _compressed(picture: NDArray, strength: float, _: np.random.Generator) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=round(100 - strength))
    return np.asarray(Image.open(file))


def _brighter(picture: NDArray, strength: float, _: np.random.Generator) -> NDArray[np.uint8]:
    return _written(picture + strength)


def _flatter(picture: NDArray, strength: float, _: np.random.Generator) -> NDArray[np.uint8]:
    mean = picture.mean()
    return _written(mean + (picture - mean) * (1 - strength / 100))


# Each distortion with two strengths; the first three change the structure.
STRUCTURAL = ((_noisy, 10, 11.5), (_blurred, 0.9, 1.05), (_compressed, 75, 80))
HARMLESS = ((_brighter, 12, 14), (_flatter, 20, 23))


def _error(a: NDArray, b: NDArray) -> float:
    return float(np.square(a.astype(np.float64) - b).mean())


def _matched(
    distort: Callable[..., NDArray[np.uint8]], picture: NDArray, error: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The copy whose squared error is nearest to another copy's, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _error(distort(picture, middle, rng), picture) < error else (low, middle)
    return distort(picture, low, rng)


def _photographs(rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    if rehearsing():
        return [np.asarray(Image.fromarray(rng.integers(0, 255, (4, 4), np.uint8)).resize((SIDE, SIDE)))]
    files = sorted(benchmarks.find("bsds400").glob("*.jpg"))
    cut = []
    for number in rng.choice(len(files), PICTURES, replace=False):
        whole = np.asarray(Image.open(files[number]).convert("L"))
        top, left = (int(rng.integers(side - SIDE)) for side in whole.shape)
        cut.append(whole[top : top + SIDE, left : left + SIDE])
    return cut


@cached(maxsize=4)
def _triplets(seed: int) -> NDArray[np.uint8]:
    """Photograph, nearer copy and farther copy, (3, triplets, 64, 64)."""
    rng = np.random.default_rng(seed)
    found = []
    for picture in _photographs(rng):
        found += [(picture, make(picture, a, rng), make(picture, b, rng)) for make, a, b in (*STRUCTURAL, *HARMLESS)]
        for distort, _, strength in STRUCTURAL:
            far = distort(picture, strength, rng)
            found += [(picture, _matched(mild, picture, _error(far, picture), rng), far) for mild, _, _ in HARMLESS]
    return np.stack(found, 1)


class _Small(nn.Module):
    """Three convolutions, (B, 3, H, W) to ten classes; their outputs are its features."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=1 if a == 3 else 2, padding=1) for a, b in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], 10)

    def features(self, x: Tensor) -> list[Tensor]:
        found = []
        for conv in self.convs:
            x = F.relu(conv(x))
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1].mean((2, 3)))


def _in_features(seed: int, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of features of unit length, over the layers of a network trained on CIFAR-10."""
    with torch.enable_grad():
        network = cifar10.trained(_Small, steps=600, seed=seed)
    assert isinstance(network, _Small)
    both = zip(*(network.features(z.expand(-1, 3, -1, -1)) for z in (x, y)), strict=True)
    layers = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2)) for a, b in both]
    return torch.stack(layers).sum(0)


def _dissimilar(pictures: NDArray, copies: NDArray) -> Tensor:
    return torch.tensor([-ms_ssim(a, b) for a, b in zip(pictures, copies, strict=True)])


@cached(maxsize=24)
def _agreement(measure: str, seed: int) -> float:
    """Percentage of triplets that "ms-ssim", "features" or LASI with a number of neighbours answers rightly."""
    photographs, near, far = _triplets(seed)
    if measure == "ms-ssim":
        distances = [_dissimilar(photographs, copies) for copies in (near, far)]
    else:
        x, *both = (torch.from_numpy(z).float().div(255)[:, None] for z in (photographs, near, far))
        of = partial(_in_features, seed) if measure == "features" else partial(lasi_distance, dim=int(measure))
        with torch.no_grad():
            distances = [of(x, y) for y in both]
    return 100 * float((distances[0] < distances[1]).double().mean())


def _ahead(measure: str, rival: str) -> Callable[[int], float]:
    return lambda seed: _agreement(measure, seed) - _agreement(rival, seed)


def _by_pixel(x: Tensor, dim: int) -> Tensor:
    """Weighted least squares of each pixel of a picture, (H, W) to (D, H, W)."""
    (height, width), x = x.shape, 2 * x - 1
    padded = F.pad(x, (dim, dim, dim, 0))
    places = [(i, j) for i in range(height) for j in range(width)]
    near = {(i, j): torch.stack([padded[i + dim + a, j + dim + b] for a, b in neighbours(dim)]) for i, j in places}
    out = x.new_zeros(dim, height, width)
    ridge = RIDGE**0.5 * torch.eye(dim, dtype=x.dtype)
    for number, (i, j) in enumerate(places):
        roots = [DECAY ** ((abs(i - a) + abs(j - b)) / 2) for a, b in places[:number]]
        matrix = torch.stack([*(r * near[at] for r, at in zip(roots, places, strict=False)), *ridge])
        right = torch.stack([*(r * x[at] for r, at in zip(roots, places, strict=False)), *x.new_zeros(dim)])
        out[:, i, j] = torch.linalg.lstsq(matrix, right[:, None]).solution[:, 0]
    return out


def _picture(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _checked() -> float:
    """1 if the gradient agrees with differences."""
    x, y = _picture(2, 1, 1, 6, 7)

    def distance(x: Tensor) -> Tensor:
        return lasi_distance(x, y, 5)

    return float(torch.autograd.gradcheck(distance, x.requires_grad_(), raise_exception=False))


def _timed(*, lasi: bool, dim: int = 8) -> Callable[[], object]:
    """A distance between two grey pictures of 256×256."""
    pair = _picture(2, 1, 1, 256, 256).float()
    if not lasi:
        a, b = (_written(255 * z[0, 0].numpy()) for z in pair)
        return lambda: ms_ssim(a, b)

    @torch.inference_mode()
    def run() -> Tensor:
        return lasi_distance(pair[0], pair[1], dim)

    return run


def _seconds(dim: int) -> float:
    return seconds(partial(_timed, lasi=True, dim=dim))


_kept = partial(kept, unit="points of agreement", data=DATA, needs=NEEDS)

CLAIMS = (
    equal(
        "It equals weighted least squares, pixel by pixel.",
        ours=lambda: prediction_weights(_picture(1, 1, 9, 7), 6)[:, 0, 0],
        theirs=lambda: _by_pixel(_picture(9, 7), 6),
        tolerance=1e-6,
        clause=1,
    ),
    bound("Its gradient agrees with differences.", paper="differentiable", value=_checked, at_least=1, clause=2),
    _kept(
        "It answers as many triplets rightly as MS-SSIM.",
        paper="competitive at the cost of MS-SSIM",
        quality=_ahead("8", "ms-ssim"),
        at_least=0.0,
        clause=3,
    ),
    _kept(
        "It answers as many triplets rightly as the features of a small network trained on CIFAR-10.",
        paper="competitive with LPIPS",
        quality=_ahead("8", "features"),
        at_least=0.0,
        clause=3,
    ),
    faster(
        "It takes at most three times as long as MS-SSIM, 256×256.",
        paper="similar cost to MS-SSIM",
        ours=partial(_timed, lasi=True),
        theirs=partial(_timed, lasi=False),
        at_least=1 / 3,
        clause=4,
    ),
    _kept(
        "With 8 neighbours it answers as many triplets rightly as with 4.",
        paper="better with more neighbours",
        quality=_ahead("8", "4"),
        at_least=0.0,
        clause=5,
    ),
    _kept(
        "With 16 neighbours it answers as many triplets rightly as with 8.",
        paper="better with more neighbours",
        quality=_ahead("16", "8"),
        at_least=0.0,
        clause=5,
    ),
    grows(
        "Its time grows no faster than the third power of the number of neighbours.",
        paper="cubic",
        cost=_seconds,
        sizes=(4, 8, 16),
        exponent=(0.0, 3.0),
        beyond="complexity",
    ),
)
