"""Evidence for the dynamic image pyramid: handwritten digits on coloured discs, lost in canvases of 2,048 pixels.

A canvas shows eight discs, one of each colour, with a digit of MNIST at its own 28 pixels, and 24 digits without a
disc; asked is which digit is on the disc of a colour. Discs are seen at every level, digits can be read at the finest
alone. The encoder, a small network of convolutions, has learnt from tiles of all levels which colours a quarter of them
shows, and from the finest ones which digit; it then stays as it is. The reader, two layers whose words attend to visual
tokens, has learnt on the coarse level, on full tiling and on what is not empty of it, so that it knows full tiling, the
rival, and has never seen what the pyramid chooses. It stays as it is too: the pyramid is a way to ask it. Seeds are
those of the reader and the module. A tile of nothing but background is encoded once for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.trained_once import trained_once
from foveal.measure import benchmarks
from foveal.record import bound, equal, kept
from foveal.vlm.lrs_vqa_dip import Level, Look, RegionFocus, cut, distillation, levels, look

benchmarks.SETS.setdefault("mnist", ("mnist.npz",))
NEEDS = ("minutes", "mnist")
SIDE, TILE, BASE, CELL = 2048, 128, 512, 64  # pixels of a canvas, a tile, the coarse level and a cell
PYRAMID = levels((SIDE, SIDE), tile=TILE, base=BASE)
FULL = 1 + PYRAMID[-1].grid[0] * PYRAMID[-1].grid[1]  # tiles of full tiling, with the overview
COLOURS = torch.tensor([
    [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0.5, 0], [0.6, 0.6, 0.6],
])  # fmt: skip
MARKED, PLAIN, DIGITS = len(COLOURS), 24, 10
DIM, HEADS, DEPTH, PICKED = 64, 4, 2, (1,)
SEEN = 400  # steps of the encoder
LESSON = ((2, 20, 0.8), (4, 5, 0.3), (8, 5, 0.1))  # cells of a side, tiles of a step, share of cells with digits
READ, FOCUS = (400, 32), (150, 32)  # of the reader and of the module
COUNT = {"train": 200, "test": 80}  # canvases
DATA = (
    f"{COUNT['test']} canvases of 2,048×2,048 with {MARKED} marked handwritten digits of MNIST's test part; reader "
    f"{READ[0]} steps of {READ[1]} canvases, module {FOCUS[0]}"
)


@cached(maxsize=2)
@torch.inference_mode(False)
def _digits(part: str) -> tuple[Tensor, Tensor]:
    """MNIST from an `mnist.npz` as Keras distributes it: (n, 28, 28) in [0, 1], labels."""
    if rehearsing():
        return torch.rand(20, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    with np.load(benchmarks.find("mnist")) as data:
        x, labels = data[f"x_{part}"], data[f"y_{part}"]
    return torch.from_numpy(x).float() / 255, torch.from_numpy(labels).long()


def _cells(which: Tensor, colours: Tensor, part: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits on discs, or without one for colour 8, anywhere in their cells, (n, 3, 64, 64), and which they are."""
    digits, labels = _digits(part)
    shifts = torch.randint(-6, 7, (2, len(which), 1), generator=generator)
    at = torch.arange(CELL) - CELL / 2 + 0.5
    down, along = (at - shift for shift in shifts)  # (n, 64)
    disc = (down[:, :, None] ** 2 + along[:, None] ** 2 < 24**2)[:, None]
    made = disc * torch.cat((0.7 * COLOURS, torch.zeros(1, 3)))[colours][:, :, None, None]
    spots = digits[which][:, None]
    for cell, spot, (top, left) in zip(made, spots, (18 + shifts[..., 0].T).tolist(), strict=True):
        under = cell[:, top : top + 28, left : left + 28]
        under.copy_(under * (1 - spot) + spot)  # white strokes
    return made, labels[which]


def _assembled(cells: Tensor, colours: Tensor, part: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Squares of cells, (n, 3, 64 · k, 64 · k), and what is where.

    Args:
        cells: mask of those that show a digit, (n, k, k).
        colours: of their discs, one for each that does.
        part: of MNIST.
        generator: draws the digits.

    Returns:
        Pixels, and the digit on each colour's disc or on none, −1 elsewhere, (n, k, k, 9).
    """
    count = len(_digits(part)[0])
    made, labels = _cells(torch.randint(count, colours.shape, generator=generator), colours, part, generator)
    found = torch.zeros(*cells.shape, 3, CELL, CELL)
    found[cells] = made
    said = torch.full((*cells.shape, MARKED + 1), -1)
    said[(*cells.nonzero(as_tuple=True), colours)] = labels
    # (n, k, k, 3, 64, 64) to (n, 3, k · 64, k · 64)
    return found.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3), said


class _Encoder(nn.Module):
    """Tiles, (n, 3, 128, 128), to four tokens each, (n, 4, 64)."""

    def __init__(self) -> None:
        super().__init__()

        def step(before: int, behind: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(before, behind, 3, 2, 1), nn.BatchNorm2d(behind), nn.ReLU())

        self.body = nn.Sequential(step(3, 16), step(16, 32), step(32, 48), step(48, DIM), step(DIM, DIM))
        self.out = nn.Sequential(nn.Conv2d(DIM, DIM, 2, 2), nn.BatchNorm2d(DIM), nn.ReLU(), nn.Conv2d(DIM, DIM, 1))
        self.head = nn.Linear(DIM, MARKED + DIGITS)  # for its own lessons only

    def forward(self, tiles: Tensor) -> Tensor:
        tokens: Tensor = self.out(self.body(tiles)).flatten(2).transpose(1, 2)
        return tokens


def _lesson(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles of all levels, (n, 3, 128, 128), colours of a quarter, (n, 4, 8), and its digit, (n, 4), −1 if not one."""
    generator = torch.Generator().manual_seed(step)
    tiles, colours, digits = [], [], []
    for cells, count, often in LESSON:  # of a tile's side at the fine, middle and coarse level
        there = torch.rand(1 if rehearsing() else count, cells, cells, generator=generator) < often
        drawn = torch.randint(2 * MARKED, (int(there.sum()),), generator=generator).clamp(max=MARKED)
        canvas, said = _assembled(there, drawn, "train", generator)
        if cells > 2:
            canvas = F.interpolate(canvas, (TILE, TILE), mode="bilinear", antialias=True)
        tiles.append(canvas)
        half = cells // 2
        # (n, k, k, 9) to (n, 4, k² / 4, 9)
        said = said.unflatten(2, (2, half)).unflatten(1, (2, half)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        one = (said >= 0).flatten(2).sum(2) == 1
        digits.append(said.flatten(2).amax(2).where(one & (cells == 2), -1))
        colours.append((said.amax(2) >= 0)[..., :MARKED])
    return torch.cat(tiles), torch.cat(colours).float(), torch.cat(digits)


@cached(maxsize=1)
@torch.inference_mode(False)
def _encoder() -> _Encoder:
    """Taught what colours of discs a quarter of a tile shows, and at the finest level which digit."""

    def loss(net: Any, given: tuple[Tensor, ...]) -> Tensor:
        said = net.head(net(given[0]))
        colours = F.binary_cross_entropy_with_logits(said[..., :MARKED], given[1])
        return 4 * colours + F.cross_entropy(said[..., MARKED:].flatten(0, 1), given[2].flatten(), ignore_index=-1)

    def train() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _Encoder()
        return short_run(model, _lesson, loss, steps=SEEN, lr=4e-3, weight_decay=0.01)

    key = f"encoder of tiles, {SEEN} steps of {LESSON}"
    made: Any = trained_once(_Encoder, train, modules=["foveal.evidence.vlm.lrs_vqa_dip"], key=key)
    return made.requires_grad_(False).eval()  # type: ignore[no-any-return]


def _tokens(tiles: Tensor) -> Tensor:
    """Encode tiles, (n, 3, 128, 128); those of nothing once for all."""
    net, some = _encoder(), tiles.flatten(1).any(1)
    with torch.no_grad():
        made = net(torch.cat((tiles[some], torch.zeros(1, 3, TILE, TILE))))
    found = made[-1].expand(len(tiles), -1, -1).clone()
    found[some] = made[:-1]
    return found


@cached(maxsize=2)
@torch.inference_mode(False)
def _canvases(part: str) -> tuple[list[Tensor], Tensor]:
    """Tokens of the overview, (n, 4, 64), and of each level's tiles, (n, rows, columns, 4, 64); digits, (n, 8)."""
    count = 2 if rehearsing() else COUNT[part]
    generator, overview = torch.Generator().manual_seed(len(part)), Level((TILE, TILE), TILE)
    found: list[list[Tensor]] = [[] for _ in range(1 + len(PYRAMID))]
    said, k = [], SIDE // CELL
    for _ in range(count):
        cells = torch.rand(k * k, generator=generator).argsort() < MARKED + PLAIN
        colours = torch.rand(MARKED + PLAIN, generator=generator).argsort().clamp(max=MARKED)
        canvas, there = _assembled(cells.view(1, k, k), colours, part, generator)
        for kept_, level in zip(found, (overview, *PYRAMID), strict=True):
            tiles = cut(canvas, level)[0]
            kept_.append(_tokens(tiles.flatten(0, 1)).unflatten(0, level.grid))
        said.append(there[..., :MARKED].amax((0, 1, 2)))
    made = [torch.stack(each) for each in found]
    return [made[0][:, 0, 0], *made[1:]], torch.stack(said)


class _Layer(nn.Module):
    """A word attends to visual tokens and is worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.before = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.query, self.key, self.value, self.out = (nn.Linear(DIM, DIM) for _ in range(4))
        self.mlp = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
        for net in (self.query, self.key):  # at first, like attends to like
            nn.init.eye_(net.weight)
            nn.init.zeros_(net.bias)

    def forward(self, words: Tensor, tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.before(tokens)
        q, k, v = (
            net(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for net, x in ((self.query, self.norm(words)), (self.key, tokens), (self.value, tokens))
        )
        scores = q @ k.transpose(2, 3) / (DIM // HEADS) ** 0.5
        attention = scores.masked_fill(~real[:, None, None], -torch.inf).softmax(3)  # (B, H, Q, N)
        words = words + self.out((attention @ v).transpose(1, 2).flatten(2))
        return words + self.mlp(words), attention


class _Reader(nn.Module):
    """Eight words, one for each colour, that attend to tokens, each for itself, and say digits."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(MARKED, DIM))
        self.layers = nn.ModuleList(_Layer() for _ in range(DEPTH))
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIGITS))

    def asked(self, batch: int) -> Tensor:
        return self.words.expand(batch, -1, -1)

    def forward(self, words: Tensor, tokens: Tensor, real: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Words, (B, Q, C), to digits, (B, Q, 10), and attention of the layers, (B, H, Q, N) each."""
        seen = []
        for layer in self.layers:
            words, attention = layer(words, tokens, real)
            seen.append(attention)
        return self.head(words), seen


def _batch(seed: int, step: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that are shown of canvases, those of the coarse view, and digits: coarse, in full, or what is not empty.

    Full tiling is shown in every eighth step, to an eighth of the canvases, for it is long.
    """
    made, said = _canvases("train")
    generator = torch.Generator().manual_seed(100_000 * seed + step)
    full = step % 8 == 7
    count = 4 if rehearsing() else rows // 8 if full else rows
    which = torch.randint(len(said), (count,), generator=generator)
    overview, coarse, fine = made[0][which], made[1][which].flatten(1, 3), made[-1][which].flatten(1, 3)
    rough = torch.cat((overview, coarse), 1)
    if step % 8 in (2, 5):
        return rough, rough, said[which]
    if not full:
        empty = fine.median(1, keepdim=True).values  # most tiles are
        most = int(torch.randint(MARKED + PLAIN, 3 * (MARKED + PLAIN), (1,), generator=generator))
        found = (fine - empty).norm(dim=2).topk(most, 1).indices
        fine = fine.gather(1, found[..., None].expand(-1, -1, DIM))
    return torch.cat((overview, fine), 1), rough, said[which]


@cached(maxsize=4)
@torch.inference_mode(False)
def _reader(seed: int) -> _Reader:
    def loss(net: Any, given: tuple[Tensor, ...]) -> Tensor:
        real = torch.ones(given[0].shape[:2], dtype=torch.bool)
        answers, _ = net(net.asked(len(real)), given[0], real)
        return F.cross_entropy(answers.flatten(0, 1), given[2].flatten())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Reader()
    # words begin where the encoder's own lessons put colours, as those of CLIP's texts would
    colours = _encoder().head.weight[:MARKED]
    model.words.data.copy_(8 * F.normalize(colours, dim=1))
    short_run(model, lambda step: _batch(seed, step, READ[1]), loss, steps=READ[0], lr=3e-3, clip=1.0)
    return model.requires_grad_(False)


@cached(maxsize=4)
@torch.inference_mode(False)
def _focus(seed: int) -> RegionFocus:
    """The module, taught the reader's attention to the coarse view."""
    reader = _reader(seed)
    module = RegionFocus(list(reader.layers), PICKED)

    def loss(net: Any, given: tuple[Tensor, ...]) -> Tensor:
        rough = given[1]
        words, real = reader.asked(len(rough)), torch.ones(rough.shape[:2], dtype=torch.bool)
        with torch.no_grad():
            _, theirs = reader(words, rough, real)
        ours = []
        for layer in net.layers:
            words, attention = layer(words, rough, real)
            ours.append(attention.flatten(1, 2)[..., 4:])
        return distillation(ours, [theirs[n].flatten(1, 2)[..., 4:] for n in PICKED])

    return short_run(  # type: ignore[return-value]
        module, lambda step: _batch(seed, step, FOCUS[1]), loss, steps=FOCUS[0], lr=2e-3, clip=1.0
    ).requires_grad_(False)


@cached(maxsize=32)
def _asked(seed: int, *, how: str = "", keep: float = 0.25) -> tuple[float, float]:
    """Digits named, percent, and tiles encoded, percent of full tiling's: by the module or another way.

    Ways are "full", all tiles at their finest; "coarse", the first level alone; "random", the pyramid with scores that
    are drawn.
    """
    reader, (made, said) = _reader(seed), _canvases("test")
    right, spent = [], []
    generator = torch.Generator().manual_seed(seed)
    for number, digits in enumerate(said):
        overview, *tiles = (x[number : number + 1].expand(MARKED, *x.shape[1:]) for x in made)
        words = reader.words[:, None]  # (8, 1, C): a question a row
        if how in ("full", "coarse"):
            dense = tiles[-1 if how == "full" else 0].flatten(1, 3)
            tokens = torch.cat((overview, dense), 1)
            found = Look(
                tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), torch.tensor([dense.shape[1] // 4 + 1])
            )
        else:
            module = _focus(seed)

            def score(tokens: Tensor, real: Tensor, words: Tensor = words, module: RegionFocus = module) -> Tensor:
                if how == "random":
                    return torch.rand(real.shape, generator=generator)
                return module.score(words, tokens, real)

            found = look(overview, tiles, PYRAMID, lambda x: x, score, keep=keep)
        with torch.no_grad():
            answers, _ = reader(words, found.tokens, found.real)
        right.append((answers[:, 0].argmax(1) == digits).double())
        spent.append(found.encoded.double())
    return 100 * float(torch.cat(right).mean()), 100 * float(torch.cat(spent).mean()) / FULL


def _share_read(keep: float) -> float:
    """Tokens read, with the overview's, percent of full tiling's."""
    tiles = [torch.zeros(1, *level.grid, 4, 2) for level in PYRAMID]
    drawn = torch.Generator().manual_seed(0)
    found = look(
        torch.zeros(1, 4, 2), tiles, PYRAMID, lambda x: x,
        lambda _, real: torch.rand(real.shape, generator=drawn), keep=keep,
    )  # fmt: skip
    return 100 * found.tokens.shape[1] / (4 * FULL)


def _whole(*, plainly: bool) -> Tensor:
    """A small picture whose every token is kept: what is read, or all tiles of the finest level in reading order."""
    picture, pyramid = (
        torch.rand(2, 1, 24, 40, generator=torch.Generator().manual_seed(0)),
        levels((24, 40), tile=4, base=10),
    )
    if plainly:
        return picture.flatten(1)[..., None]
    tiles = [cut(picture, level) for level in pyramid]
    found = look(
        picture[:, 0, :0, :1], tiles, pyramid, lambda x: x.flatten(2).transpose(1, 2), lambda x, _: x[..., 0], keep=1.0
    )
    return found.tokens


WORDS: dict[str, Any] = {"data": DATA, "needs": NEEDS}
CLAIMS = (
    kept(
        "Coarse to fine, the reader names at most 2 points fewer of the digits than with full tiling.",
        paper="more accurate than full tiling",
        quality=lambda seed: _asked(seed)[0] - _asked(seed, how="full")[0],
        at_least=-2.0,
        unit="points",
        clause=1,
        **WORDS,
    ),
    kept(
        "With full tiling it names at least 75 % of them, so there is something to lose.",
        paper="",
        quality=lambda seed: _asked(seed, how="full")[0],
        at_least=75.0,
        unit="%",
        clause=1,
        **WORDS,
    ),
    kept(
        "The coarse level alone does not do: the pyramid names 20 points more.",
        paper="",
        quality=lambda seed: _asked(seed)[0] - _asked(seed, how="coarse")[0],
        at_least=20.0,
        unit="points",
        clause=1,
        **WORDS,
    ),
    kept(
        "More than 80 % of full tiling's tiles, overview and all levels counted, are never encoded.",
        paper="",
        quality=lambda seed: 100 - _asked(seed)[1],
        at_least=80.0,
        unit="%",
        clause=2,
        **WORDS,
    ),
    kept(
        "As many tokens that are chosen at random on every level answer 20 points less.",
        paper="more accurate than other reductions",
        quality=lambda seed: _asked(seed)[0] - _asked(seed, how="random")[0],
        at_least=20.0,
        unit="points",
        beyond="higher efficiency than other token reduction at high resolution",
        **WORDS,
    ),
    bound(
        "The reader reads at most 7 % of full tiling's tokens.",
        paper="",
        value=lambda: _share_read(0.25),
        at_most=7.0,
        unit="%",
        beyond="avoids processing the whole gigapixel image",
    ),
    equal(
        "Where every token is kept, what is read is full tiling, in reading order.",
        ours=lambda: _whole(plainly=False).sort(1).values,
        theirs=lambda: _whole(plainly=True).sort(1).values,
        beyond="avoids processing the whole gigapixel image",
    ),
)
