"""Evidence for xT: memory against the side of a picture, and a task whose answer lies in two regions far apart.

A picture of the task is a composite of four CIFAR-10 photographs, 64×64, in which two of the 16 cells of 16×16 pixels,
never neighbours, are darkened and show stripes two pixels wide, level or upright. The question is whether both lie the
same way; each cell alone says nothing about it, so chance is 50 %, and at a quarter of the side no stripe is left.
Photographs of the test are in no training picture.

As the paper's region encoders are pretrained, one first learns to tell the stripes of single cells. It stays as it is
then, so that a cell needs to be read once: a training picture of xT and of the regions that vote is 16 cells that were
read before, and the test's are read as they are. Each network is first asked how many cells are upright, 0, 1 or 2,
then whether both are the same; asked the second at once, xT of this size learns nothing. The vision transformer learns
all three lessons as a whole.
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
from foveal.evidence.tasks import cifar10
from foveal.measure.cost import count_parameters, peak_memory
from foveal.models.backbone.xt import XT, ContextBlock, join, regions, xt, xt_base, xt_large, xt_tiny
from foveal.record import bound, equal, grows, kept, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

CELL, CELLS, WIDE = 16, 4, 2  # pixels of a cell, cells a side, pixels of a stripe
FIRST, STEPS, BATCH, RATE = 80, 200, 64, 4e-3  # steps on cells, then steps of each lesson on composites
READ, TESTED = 4000, 1000  # cells that are read once, plain and striped, and test pictures
DATA = (
    f"stripes in two cells of 64×64 composites of CIFAR-10; {FIRST} steps of {2 * BATCH} cells, twice {STEPS} steps of "
    f"{BATCH} composites; {TESTED:,} test pictures; chance 50 %"
)
COUNT, AGREE = slice(0, 3), slice(3, 5)  # logits: how many are upright, and whether both are the same

_places = [divmod(i, CELLS) for i in range(CELLS**2)]
FAR = torch.tensor(
    [
        (i, j)
        for i, (top, left) in enumerate(_places)
        for j, (down, right) in enumerate(_places)
        if max(abs(top - down), abs(left - right)) >= 2
    ]
)


def _striped(x: Tensor, upright: Tensor, generator: torch.Generator) -> Tensor:
    """Cells, (n, 3, 16, 16), with stripes that are upright or level, (n,)."""
    begin = torch.randint(2 * WIDE, (len(x), 1), generator=generator)
    line = ((torch.arange(CELL) + begin) % (2 * WIDE) < WIDE).float()
    ink = torch.where(upright.bool()[:, None, None], line[:, None], line[:, :, None])[:, None]
    ink = ink * (0.4 + 0.4 * torch.rand(len(x), 1, 1, 1, generator=generator))
    # darker than the photograph around it, and white 2.5 deviations above the mean
    return (0.6 * x - 0.8) * (1 - ink) + 2.5 * ink


def _cells(count: int, generator: torch.Generator) -> Tensor:
    """Single cells of training photographs, (count, 3, 16, 16)."""
    photos = cifar10.pictures("train")[0]
    top, left = torch.randint(CELL + 1, (2,), generator=generator).tolist()
    rows = torch.randint(len(photos), (count,), generator=generator)
    return photos[rows][:, :, top : top + CELL, left : left + CELL]


def _draw(count: int, part: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Composites, (count, 3, 64, 64), and how many of their cells are upright, (count,) int64."""
    photos = cifar10.pictures(part)[0]
    x = photos[torch.randint(len(photos), (4 * count,), generator=generator)]
    x = x.view(count, 2, 2, 3, 32, 32).permute(0, 3, 1, 4, 2, 5)
    # (count, 3, 64, 64) to (count, 16 cells, 3, 16, 16)
    x = x.reshape(count, 3, CELLS, CELL, CELLS, CELL).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).contiguous()
    upright = torch.randint(2, (count, 2), generator=generator)
    places = FAR[torch.randint(len(FAR), (count,), generator=generator)]
    every = torch.arange(count)
    for i in range(2):
        x[every, places[:, i]] = _striped(x[every, places[:, i]], upright[:, i], generator)
    x = x.view(count, CELLS, CELLS, 3, CELL, CELL).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(count, 3, CELLS * CELL, CELLS * CELL), upright.sum(1)


@cached(maxsize=1)
@torch.inference_mode(mode=False)
def _test() -> tuple[Tensor, Tensor]:
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


class Joined(XT):
    """xT of pictures, (B, 3, 64, 64), or of the features of their cells, (B, 16, 2, 2, 48), to five logits."""

    def __init__(self) -> None:
        super().__init__(_encoder(), 48, region_size=CELL, dim=32, depth=2, state=8, num_classes=5)

    def encode(self, x: Tensor) -> Tensor:
        return join(self.proj(x.flatten(0, 1)), CELLS, CELLS) if x.ndim == 5 else super().encode(x)


class Voting(nn.Module):
    """Each region is read and judged by itself, with xT's encoder and an MLP; the mean of the logits decides."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _encoder()
        self.mlp = Mlp(48, 384, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = self.encoder.forward_features(regions(x, CELL, 0, x.shape[0] * CELLS**2)).unflatten(0, (len(x), -1))
        logits: Tensor = self.mlp(x.mean((2, 3))).mean(1)
        return logits


class Downsampled(nn.Module):
    """The whole picture at the side of one region, read by one vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_vit(dim=52, depth=2, num_heads=4, patch=2, img_size=CELL, num_classes=5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(F.interpolate(x, (CELL, CELL), mode="area"))
        return out


class Reader(nn.Module):
    """One cell, read by a region encoder, (B, 3, 16, 16) to five logits."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        encoder: Any = self.encoder
        out: Tensor = self.head(encoder.forward_features(x).mean((1, 2)))
        return out


def _learn(model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]], logits: slice, steps: int) -> None:
    def loss(model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(given[0])[:, logits], given[1])

    words: Any = {"lr": RATE, "weight_decay": 0.01, "betas": (0.9, 0.98), "clip": 1.0}
    short_run(model, lambda _: batch(), loss, steps=steps, **words)


def _striped_cells(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    upright = torch.randint(2, (count,), generator=generator)
    return _striped(_cells(count, generator), upright, generator), upright


@cached(maxsize=3)
@torch.inference_mode(mode=False)
def _read(seed: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A region encoder that tells stripes; features of plain and striped cells, (n, 2, 2, 48); how these lie, (n,)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(_encoder())
    _learn(reader, lambda: _striped_cells(generator, 2 * BATCH), AGREE, FIRST)
    encoder: Any = reader.encoder.requires_grad_(False)
    found: list[list[Tensor]] = [[], [], []]
    for _ in range(2 if rehearsing() else READ // 100):
        striped, upright = _striped_cells(generator, 100)
        for part, made in zip(found, (_cells(100, generator), striped), strict=False):
            part.append(encoder.forward_features(made))
        found[2].append(upright)
    plain, marked, lie = (torch.cat(part) for part in found)
    return encoder, plain, marked, lie


@cached(maxsize=9)
def _accuracy(build: Callable[[], nn.Module], seed: int) -> float:
    """Percent of the test pictures, after training."""
    encoder, plain, marked, lie = _read(seed)
    generator = torch.Generator().manual_seed(1000 + seed)

    def joined() -> tuple[Tensor, Tensor]:
        x = plain[torch.randint(len(plain), (BATCH, CELLS**2), generator=generator)]
        which = torch.randint(len(marked), (BATCH, 2), generator=generator)
        places = FAR[torch.randint(len(FAR), (BATCH,), generator=generator)]
        x[torch.arange(BATCH)[:, None], places] = marked[which]
        return x, lie[which].sum(1)

    def drawn() -> tuple[Tensor, Tensor]:
        return _draw(BATCH, "train", generator)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = build()
    if isinstance(network, Downsampled):
        _learn(network.net, lambda: _striped_cells(generator, 2 * BATCH), AGREE, FIRST)
        batch = drawn
    else:
        network.encoder, batch = encoder, joined
    _learn(network, batch, COUNT, STEPS)

    def same() -> tuple[Tensor, Tensor]:
        x, upright = batch()
        return x, (upright != 1).long()

    _learn(network, same, AGREE, STEPS)
    x, upright = _test()
    with torch.no_grad():
        said = torch.cat([network(part)[:, AGREE].argmax(1) for part in x.split(50)])
    return 100 * float((said == (upright != 1)).double().mean())


def _gain(build: Callable[[], nn.Module], seed: int) -> float:
    return _accuracy(Joined, seed) - _accuracy(build, seed)


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
    model, x = Joined().eval(), torch.randn(2, 3, 56, 72)
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
        quality=partial(_accuracy, Joined),
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
        ours=lambda: float(count_parameters(Joined())),
        theirs=lambda: float(count_parameters(Voting())),
        clause=3,
    ),
    smaller(
        "It has no more parameters than the vision transformer.",
        paper="equal parameters",
        ours=lambda: float(count_parameters(Joined())),
        theirs=lambda: float(count_parameters(Downsampled())),
        clause=3,
    ),
)
