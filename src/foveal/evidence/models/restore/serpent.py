"""Evidence of foveal.models.restore.serpent."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.models.restore.serpent import Serpent, SerpentBlock, serpent, serpent_small
from foveal.record import kept, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


RATIO = 0.45  # hidden over outer width of a block of convolutions that costs what a small Serpent's costs

SIGMA, RADIUS = 2.0, 6  # of the blur that the small networks are trained to undo, in pixels


class _ConvBlock(nn.Module):
    """What the scans are compared with: two 3×3 convolutions to `ratio` times the channels and back, and a residual."""

    def __init__(self, dim: int, *, ratio: float) -> None:
        super().__init__()
        hidden = round(dim * ratio)
        self.norm = LayerNorm2d(dim)
        self.up, self.down = nn.Conv2d(dim, hidden, 3, padding=1), nn.Conv2d(hidden, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def _small_convolutions(*, in_channels: int = 3) -> Serpent:
    """`serpent_small` with convolutions in place of scans, and as many multiply-adds."""
    return Serpent(24, (1, 1, 2), make=partial(_ConvBlock, ratio=RATIO), in_channels=in_channels)


class _Deblurring(nn.Module):
    """Blurs a picture, rounds it to 8 bits and restores it; trained and measured as a super-resolution by 1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        place = torch.arange(2 * RADIUS + 1.0) - RADIUS
        weights = torch.exp(-place.square() / (2 * SIGMA**2))
        self.register_buffer("weights", weights / weights.sum())

    def blurred(self, x: Tensor) -> Tensor:
        assert isinstance(self.weights, Tensor)
        channels = x.shape[1]
        x = F.pad(x, (RADIUS,) * 4, mode="reflect")
        for shape in ((1, -1), (-1, 1)):
            x = F.conv2d(x, self.weights.view(1, 1, *shape).expand(channels, -1, -1, -1), groups=channels)
        return torch.round(x * 255) / 255

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.blurred(x))


@lru_cache(maxsize=8)
def _restored(build: Callable[..., nn.Module], seed: int) -> float:
    """PSNR of luminance on photographs that training has not seen, dB."""
    from foveal.measure import benchmarks
    from foveal.measure.quality import benchmark_pairs, from_torch, psnr
    from foveal.train.brief import brief

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Deblurring(build(in_channels=1))
    brief(model, 1, steps=600, seed=seed, luminance=True, patch=64, batch=8, lr=2e-3)
    restore = from_torch(model, luminance=True)
    # the sharp pictures of the set, their upper left corners
    sharp = [high[:192, :192] for _, _, high in benchmark_pairs(benchmarks.find("BSD100"), 2, limit=30)]
    return sum(psnr(restore(picture), picture, shave=RADIUS) for picture in sharp) / len(sharp)


def _forward(block: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return block(x)


def _slope(of: str) -> float:
    """Exponent of the pixels that time or memory of one block grows with, from 128 to 768 pixels a side."""
    from foveal.measure.cost import latency, peak_memory

    torch.manual_seed(0)
    block = SerpentBlock(16, state=8).eval()
    sides = (128, 256, 384, 512, 768)
    calls = [partial(_forward, block, torch.rand(1, 16, side, side)) for side in (8, *sides)]
    if of == "time":
        costs = [latency(call, repeats=5, warmup=2).median for call in calls[1:]]
    else:
        # what the process takes for its first call, whatever the map, is not the map's
        first, *peaks = map(peak_memory, calls)
        costs = [float(peak - first) for peak in peaks]
    # least squares through the logarithms
    x, y = torch.tensor([[2 * math.log(s) for s in sides], [math.log(c) for c in costs]], dtype=torch.float64)
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def _swinir_macs(side: int) -> float:
    """SwinIR as published (arXiv:2108.10257), 6 groups of 6 layers of width 180."""
    dim, window, groups, layers = 180, 8, 6, 6
    projections = (4 + 2 * 2) * dim**2  # query, key, value, output and the feed-forward
    attention = 2 * window**2 * dim
    convolutions = (groups + 1) * 9 * dim**2 + 2 * 9 * 3 * dim
    return float(side**2 * (groups * layers * (projections + attention) + convolutions))


def _macs(side: int) -> float:
    from foveal.measure.cost import count_macs

    return float(count_macs(serpent(), (1, 3, side, side)))


CLAIMS = (
    params("Parameters.", paper="", model=serpent, expect=2_243_340),
    smaller(
        "Multiply-adds at 512×512 against SwinIR, whose quality is not compared.",
        paper="up to 150 times fewer at equal quality",
        ours=lambda: _macs(512),
        theirs=lambda: _swinir_macs(512),
        at_least=150,
    ),
    kept(
        "A block's time grows linearly in pixels, 128 to 768 a side: 0.1 less how far the exponent is from 1.",
        paper="linear",
        quality=lambda _: 0.1 - abs(_slope("time") - 1),
        at_least=0.0,
        unit="of exponent",
    ),
    kept(
        "A block's peak memory above that of a map of 8×8 does too: 0.1 less how far the exponent is from 1.",
        paper="linear",
        quality=lambda _: 0.1 - abs(_slope("memory") - 1),
        at_least=0.0,
        unit="of exponent",
    ),
    kept(
        "After minutes of training, a small Serpent deblurs photographs better than a U of convolutions with as "
        "many multiply-adds.",
        paper="on par with the best, trained for days",
        quality=lambda seed: _restored(serpent_small, seed) - _restored(_small_convolutions, seed),
        at_least=0.0,
        seeds=3,
        data="Gaussian blur of 2 pixels, 8 bits; trained on BSDS500 without BSD100, corners of 30 of BSD100",
        needs=("minutes", "bsds400", "BSD100"),
    ),
)
