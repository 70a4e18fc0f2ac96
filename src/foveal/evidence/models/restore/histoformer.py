"""Evidence for Histoformer: sorting undone, attention by plain loops, and a twin of equal compute without histograms.

The twin is the same network with Restormer's attention among channels in place of the histograms', wider until it takes
as many multiply-adds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from foveal.evidence.rivals.channel_attention import ChannelAttention
from foveal.evidence.tasks import photos, restoring
from foveal.measure.cost import count_macs
from foveal.models.restore.histoformer import (
    Histoformer,
    HistogramAttention,
    correlation_loss,
    dynamic_range,
    sort_attend_scatter,
)
from foveal.record import bound, equal, grows, kept, params

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]

STEPS = 300
DAMAGE = ("snow", "rain")
PATCH = 32
DATA = f"{STEPS} steps on bsds400 with snow or rain; crops of 128 pixels of 30 of BSD100, RGB; paired"
SHAPE = (1, 3, PATCH, PATCH)

_small = partial(Histoformer, depths=(1, 1), num_heads=(2, 4), refinement=0, expansion=2.0)
_ours = partial(_small, dim=12)
_twin = partial(_small, dim=14, attention=ChannelAttention)


def looped(layer: HistogramAttention, x: Tensor) -> Tensor:
    """The equations of DHSA with Python's sort and one token at a time, no gather and no scatter.

    Args:
        layer: the weights.
        x: (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    batch, dim, height, width = x.shape
    bins, each, size = layer.bins, dim // layer.num_heads, -(-height * width // layer.bins)
    out = torch.zeros_like(x)
    places = {}  # of a sorted pixel: where it came from
    first = x.clone()
    for b in range(batch):
        for c in range(dim // 2):
            seen = {(i, j): float(x[b, c, i, j].detach()) for i in range(height) for j in range(width)}
            columns = [sorted(((i, j) for i in range(height)), key=seen.__getitem__) for j in range(width)]
            for i in range(height):
                for j, place in enumerate(sorted((column[i] for column in columns), key=seen.__getitem__)):
                    places[b, c, i, j], first[b, c, i, j] = place, x[b, c][place]
    q1, k1, q2, k2, value = layer.qkv_dwconv(layer.qkv(first)).flatten(2).chunk(5, 1)

    def attended(b: int, head: int, query: Tensor, key: Tensor, *, within: bool) -> Tensor:
        channels = range(head * each, (head + 1) * each)
        tokens = []  # of each: the pixels it is made of, in the order of their brightness
        for c in channels:
            order = sorted(range(height * width), key=value[b, c].tolist().__getitem__)
            cut = [order[i::bins] for i in range(bins)] if within else [
                order[i * size : (i + 1) * size] for i in range(bins)
            ]  # fmt: skip
            tokens += [(c, pixels) for pixels in cut]
        vectors = []
        for source in (query, key, value):
            filled = [torch.cat([source[b, c, n], source.new_zeros(size - len(n))]) for c, n in tokens]
            vectors.append(torch.stack(filled))
        result = value.new_zeros(each, height * width)
        for (c, n), asked in zip(tokens, vectors[0], strict=True):
            scores = [layer.temperature[head, 0, 0] * _cosine(asked, known) for known in vectors[1]]
            total = 1 + sum(torch.exp(s) for s in scores)
            mixed = sum(torch.exp(s) / total * seen for s, seen in zip(scores, vectors[2], strict=True))
            result[c - head * each, n] = mixed[: len(n)]
        return result

    for b in range(batch):
        heads = range(layer.num_heads)
        across = torch.cat([attended(b, h, q1, k1, within=False) for h in heads])
        inside = torch.cat([attended(b, h, q2, k2, within=True) for h in heads])
        mixed = layer.project_out((across * inside).view(1, dim, height, width))[0]
        out[b, dim // 2 :] = mixed[dim // 2 :]
        for c in range(dim // 2):
            for i in range(height):
                for j in range(width):
                    out[b, c][places[b, c, i, j]] = mixed[c, i, j]
    return out


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm().clamp_min(1e-12) * b.norm().clamp_min(1e-12))


def _round_trip(*, ours: bool) -> Tensor:
    """Maps and values of odd sizes through sorting and back, attention being the identity."""
    generator = torch.Generator().manual_seed(0)
    seen = []
    for height, width, bins in ((1, 1, 1), (7, 9, 4), (16, 12, 8), (31, 17, 3)):
        x = torch.randn(2, 4, height, width, generator=generator).round(decimals=1)  # with ties
        sorted_map, undo = dynamic_range(x)
        value = x.flatten(2).unflatten(1, (2, -1))
        back = [
            sort_attend_scatter(value, value, value, value.argsort(-1), lambda q, k, v: v, bins=bins, within=w)  # noqa: ARG005
            for w in (False, True)
        ]
        seen += [undo(sorted_map), *back] if ours else [x] * 3
    return torch.cat([x.flatten() for x in seen])


def _attention(*, ours: bool) -> Tensor:
    """DHSA of an odd map, three heads of five bins, fast or by loops."""
    torch.manual_seed(0)
    layer = HistogramAttention(6, 3, bins=5)
    with torch.no_grad():
        layer.temperature.uniform_(0.5, 2)
        x = torch.randn(2, 6, 5, 7)
        return layer(x) if ours else looped(layer, x)


def _macs(build: partial[Histoformer], shape: tuple[int, int, int, int] = SHAPE) -> float:
    return float(count_macs(build(), shape))


def _with_correlation(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The paper's loss: absolute error and correlation."""
    out = model(batch[0])
    return (out - batch[1]).abs().mean() + correlation_loss(out, batch[1])


def _difference(seed: int, *, than: Callable[[], nn.Module] = _ours, loss: Loss = photos.absolute_error) -> float:
    """Gain of the network trained with `loss` minus that of `than`, dB, mean over snow and rain."""
    make = partial(restoring.trained, names=DAMAGE, steps=STEPS, seed=seed, each=True, patch=PATCH)
    ours, theirs = make(_ours, loss=loss), make(than, loss=photos.absolute_error)
    return sum(restoring.gain(ours, (d,)) - restoring.gain(theirs, (d,)) for d in DAMAGE) / len(DAMAGE)


CLAIMS = (
    equal(
        "Sorted, cut in bins, put together and scattered, with attention that changes nothing, a map is as it was.",
        ours=partial(_round_trip, ours=True),
        theirs=partial(_round_trip, ours=False),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "Attention equals plain loops over sorted pixels.",
        ours=partial(_attention, ours=True),
        theirs=partial(_attention, ours=False),
        tolerance=1e-5,
        clause=2,
    ),
    kept(
        "A small network is above its twin with attention among channels, which takes as many multiply-adds.",
        paper="above the next best on snow, rain and raindrops",
        quality=partial(_difference, than=_twin),
        at_least=0.0,
        data=DATA,
        needs=restoring.NEEDS,
        clause=3,
    ),
    bound(
        "The twin's multiply-adds are within 5 % of the network's.",
        paper="equal compute",
        value=lambda: _macs(_twin) / _macs(_ours),
        at_least=0.95,
        at_most=1.05,
        beyond="the twin of equal compute",
    ),
    grows(
        "Multiply-adds grow linearly with the pixels.",
        paper="linear",
        cost=lambda side: _macs(_ours, (1, 3, side, side)),
        sizes=(32, 64, 128, 256),
        of=lambda side: float(side * side),
        exponent=(0.99, 1.01),
        beyond="attention over the whole map at linear cost",
    ),
    params(
        "Parameters.",
        paper="authors' code",
        model=Histoformer,
        expect=16_615_100,
        beyond="the size of the authors' network",
    ),
    kept(
        "Pearson's correlation beside the absolute error helps.",
        paper="an ablation's gain",
        quality=partial(_difference, loss=_with_correlation),
        at_least=0.0,
        data=DATA,
        needs=restoring.NEEDS,
        beyond="the loss of correlation",
    ),
)
