"""Evidence for xT: memory against the side of a picture, and a task whose answer lies in two regions far apart.

A picture of the task is a composite of four CIFAR-10 photographs, 64×64, in which two of the 16 cells of 16×16 pixels,
never neighbours, are darkened and show a rendered digit, a 2 or a 5, which are nearly each other's mirror image. The
question is whether both digits are the same; each cell alone says nothing about it, so chance is 50 %. Photographs and
digits of the test are in no training picture. As the paper's region encoders are pretrained, each network first learns
to tell 2 from 5 in single cells, the vision transformer as a whole, the others with their region encoder.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10, digits
from foveal.measure.cost import count_parameters, peak_memory
from foveal.models.backbone.xt import XT, ContextBlock, regions, xt, xt_base, xt_large, xt_tiny
from foveal.record import bound, equal, grows, kept, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

CELL, CELLS, KINDS = 16, 4, (2, 5)  # pixels of a cell, cells a side, and the digits that appear
FIRST, STEPS, BATCH, RATE = 300, 400, 32, 4e-3  # steps on cells, then steps on composites
TESTED = 2000
DATA = (
    f"two digits in 64×64 composites of CIFAR-10; {FIRST} steps of {4 * BATCH} cells, {STEPS} steps of {BATCH} "
    f"composites; {TESTED:,} test pictures; chance 50 %"
)

_places = [divmod(i, CELLS) for i in range(CELLS**2)]
FAR = [
    (i, j)
    for i, (top, left) in enumerate(_places)
    for j, (down, right) in enumerate(_places)
    if max(abs(top - down), abs(left - right)) >= 2
]


def _written(x: Tensor, kind: Tensor, part: str, generator: torch.Generator) -> Tensor:
    """Cells with white digits, (n, 3, 16, 16), of the first or the second kind, (n,)."""
    drawn, labels = digits.pictures(part)
    if rehearsing():  # few digits, and perhaps not these
        labels = torch.tensor(KINDS)[torch.arange(len(labels)) % 2]
    rows = [(labels == digit).nonzero()[:, 0] for digit in KINDS]
    level = torch.rand(len(x), generator=generator)
    chosen = torch.stack([rows[int(k)][int(u * len(rows[int(k)]))] for k, u in zip(kind, level, strict=True)])
    ink = (drawn[chosen] * 0.3 + 0.2).clamp(0, 1)  # (n, 1, 16, 16), as drawn
    # darker than the photograph around it, and white 2.5 deviations above the mean
    return (0.6 * x - 0.8) * (1 - ink) + 2.5 * ink


def _draw(count: int, part: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Composites, (count, 3, 64, 64), and whether their digits are the same, (count,) int64."""
    photos = cifar10.pictures(part)[0]
    x = photos[torch.randint(len(photos), (4 * count,), generator=generator)]
    x = x.view(count, 2, 2, 3, 32, 32).permute(0, 3, 1, 4, 2, 5)
    # (count, 3, 64, 64) to (count, 16 cells, 3, 16, 16)
    x = x.reshape(count, 3, CELLS, CELL, CELLS, CELL).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).contiguous()
    first, second = torch.randint(2, (2, count), generator=generator)
    places = torch.tensor(FAR)[torch.randint(len(FAR), (count,), generator=generator)]
    every = torch.arange(count)
    for place, kind in ((places[:, 0], first), (places[:, 1], second)):
        x[every, place] = _written(x[every, place], kind, part, generator)
    x = x.view(count, CELLS, CELLS, 3, CELL, CELL).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(count, 3, CELLS * CELL, CELLS * CELL), (first == second).long()


def _cells(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Single cells of training pictures, (count, 3, 16, 16), and which digit they show, (count,) int64."""
    photos = cifar10.pictures("train")[0]
    top, left = torch.randint(2, (2,), generator=generator).tolist()
    x = photos[torch.randint(len(photos), (count,), generator=generator)]
    x = x.unflatten(3, (2, CELL))[:, :, :, left].unflatten(2, (2, CELL))[:, :, top]
    kind = torch.randint(2, (count,), generator=generator)
    return _written(x, kind, "train", generator), kind


@cached(maxsize=1)
def _test() -> tuple[Tensor, Tensor]:
    with torch.inference_mode(mode=False):
        return _draw(4 if rehearsing() else TESTED, "test", torch.Generator().manual_seed(0))


_encoder = partial(
    SwinTransformerV2,
    img_size=CELL,
    patch_size=4,
    num_classes=0,
    embed_dim=24,
    depths=(1, 1),
    num_heads=(2, 4),
    window_size=4,
    drop_path_rate=0.0,
)
ours = partial(
    xt,
    32,
    2,
    region_size=CELL,
    patch_size=4,
    embed_dim=24,
    depths=(1, 1),
    num_heads=(2, 4),
    window_size=4,
    state=8,
    num_classes=2,
)


class Reader(nn.Module):
    """One cell, read by a region encoder, (B, 3, 16, 16) to (B, 2)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        encoder: Any = self.encoder
        out: Tensor = self.head(encoder.forward_features(x).mean((1, 2)))
        return out


class Voting(nn.Module):
    """Each region is read and judged by itself, with xT's encoder and an MLP; the mean of the logits decides."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _encoder()
        self.mlp = Mlp(48, 384, 2)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0] * CELLS**2
        features = self.encoder.forward_features(regions(x, CELL, 0, count)).mean((1, 2))
        return self.mlp(features).unflatten(0, (x.shape[0], -1)).mean(1)


class Downsampled(nn.Module):
    """The whole picture at the side of one region, read by one vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_vit(dim=52, depth=2, num_heads=4, patch=2, img_size=CELL, num_classes=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(F.interpolate(x, (CELL, CELL), mode="area"))
        return out


@cached(maxsize=9)
def _accuracy(build: Callable[[], nn.Module], seed: int) -> float:
    """Percent of the test pictures, after training."""
    generator = torch.Generator().manual_seed(seed)

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(pair[0]), pair[1])

    words: Any = {"lr": RATE, "weight_decay": 0.01, "betas": (0.9, 0.98), "clip": 1.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = build()
        reader = network.net if isinstance(network, Downsampled) else Reader(network.encoder)
        short_run(reader, lambda _: _cells(4 * BATCH, generator), loss, steps=FIRST, **words)
        short_run(network, lambda _: _draw(BATCH, "train", generator), loss, steps=STEPS, **words)
    return cifar10.accuracy(network, _test())


def _gain(build: Callable[[], nn.Module], seed: int) -> float:
    return _accuracy(ours, seed) - _accuracy(build, seed)


REGION, WIDTH = 256, 192


def _large(region: int) -> XT:
    """A network whose activations, not its weights, are what its memory is."""
    torch.manual_seed(0)
    window = min(8, region // 32)
    return xt(
        WIDTH, 2, region_size=region, embed_dim=48, depths=(1, 1, 1, 1), window_size=window, num_classes=0, chunk=1
    ).eval()


def _encode(side: int, region: int) -> Tensor:
    with torch.inference_mode():
        # One pixel seen from everywhere: the picture itself, which is the caller's, takes no memory.
        return _large(region).encode(torch.ones(1, 3, 1, 1).expand(1, 3, side, side))


def _context(tokens: int) -> Tensor:
    with torch.inference_mode():
        return ContextBlock(32).eval()(torch.ones(1, tokens, 32))


def _measured(run: Callable[[], Tensor]) -> float:
    if rehearsing():  # a separate process takes seconds to start
        return float(run().nbytes)
    return float(peak_memory(run, threads=1))


@cached(maxsize=8)
def _memory(side: int, region: int) -> float:
    """Peak bytes of encoding a picture, without the sequence of tokens that it gives and what a first call costs."""
    if rehearsing():
        side, region = side // 8, region // 8
    sequence = 4 * WIDTH * (side // 32) ** 2
    return max(_measured(partial(_encode, side, region)) - _measured(partial(_encode, 32, 32)) - sequence, 1.0)


def _sequence_memory(tokens: int) -> float:
    return max(_measured(partial(_context, tokens)) - _measured(partial(_context, 8)), 1.0)


def _chunked(chunk: int | None) -> Tensor:
    torch.manual_seed(0)
    model, x = ours().eval(), torch.randn(2, 3, 56, 72)
    model.set_chunk(chunk)
    with torch.inference_mode():
        return model(x)


CLAIMS = (
    equal(
        "One region at a time gives the same result as all at once.",
        ours=partial(_chunked, 1),
        theirs=partial(_chunked, None),
        beyond="what bounds the memory",
    ),
    bound(
        "Apart from the sequence, encoding 2048×2048 pixels takes at most twice the memory of 512×512.",
        paper="bounded memory",
        value=lambda: _memory(2048, REGION) / _memory(512, REGION),
        at_most=2.0,
        unit="times",
        clause=1,
    ),
    bound(
        "The same backbone on the whole picture takes more than twice the memory at 1024×1024 as at 512×512.",
        paper="quadratic memory growth",
        value=lambda: _memory(1024, 1024) / _memory(512, 512),
        at_least=2.0,
        unit="times",
        beyond="what it is compared with",
    ),
    grows(
        "A layer of the context encoder takes memory linear in the tokens.",
        paper="near-linear",
        cost=_sequence_memory,
        sizes=(16_384, 32_768, 65_536),
        exponent=(0.9, 1.1),
        beyond="the memory of the sequence",
    ),
    params(
        "With Swin-T and 284 classes: 44 M parameters as printed, to 2 %.",
        paper="44 M",
        model=partial(xt_tiny, num_classes=284),
        expect="44 M",
        tolerance=0.02,
        beyond="the authors' table of sizes",
    ),
    params(
        "With Swin-B and 284 classes: 103 M parameters as printed.",
        paper="103 M",
        model=partial(xt_base, num_classes=284),
        expect="103 M",
        beyond="the authors' table of sizes",
    ),
    params(
        "With Swin-L and 284 classes: 212 M parameters as printed.",
        paper="212 M",
        model=partial(xt_large, num_classes=284),
        expect="212 M",
        beyond="the authors' table of sizes",
    ),
    kept(
        "It tells whether two regions agree for more than 90 % of the pictures.",
        paper="larger context",
        quality=partial(_accuracy, ours),
        at_least=90.0,
        unit="%",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "Regions that are judged one by one and vote are at least 10 points below.",
        paper="larger context",
        quality=partial(_gain, Voting),
        at_least=10.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "A vision transformer on the picture at a quarter of its side is at least 10 points below.",
        paper="down-sampling loses detail",
        quality=partial(_gain, Downsampled),
        at_least=10.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    smaller(
        "The network that is trained has no more parameters than the one whose regions vote.",
        paper="equal parameters",
        ours=lambda: float(count_parameters(ours())),
        theirs=lambda: float(count_parameters(Voting())),
        clause=3,
    ),
    smaller(
        "It has no more parameters than the vision transformer.",
        paper="equal parameters",
        ours=lambda: float(count_parameters(ours())),
        theirs=lambda: float(count_parameters(Downsampled())),
        clause=3,
    ),
)
