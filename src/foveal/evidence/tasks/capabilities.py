"""Nine benchmarks of six capabilities from real pictures on this machine, and small models with embeddings.

    objects     imagenette, ten classes; cifar10, ten classes
    corruption  imagenette_noise, imagenette_blur: pictures that no model was trained on in this form
    medical     bccd: cells cut from smears, three kinds
    rotation    imagenette turned by 0, 90, 180 or 270 degrees
    counting    how many of four pictures show the class that is asked for, 1 to 4
    relation    left_of: which of two pictures is on the left, two captions; coco: two things that are there, or one of
                them beside one that is not, two captions

All pictures are 64×64. Texts are embedded by what is made: a fixed random vector for each word, each pair of words and
each word in a half of the text. Models are ridge regressions from frozen features to the embedding of a caption:
EfficientNet-Lite0's stages, small pixels, and random convolutions, each with several numbers of pairs.
"""

from __future__ import annotations

import io
from functools import partial
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import mosaics
from foveal.measure import benchmarks
from foveal.vlm.unibench import Benchmark, Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["EXTRACTORS", "NEEDS", "Probe", "embed", "suite", "zoo"]

benchmarks.SETS.setdefault("coco256", ("coco256",))
NEEDS = ("minutes", "imagenette", "lite0", "cifar10_train", "cifar10_test", "bccd", "coco256")
SIDE, DIM = 64, 256
COUNT = {"train": 800, "val": 800}  # pictures of a set, where there are as many
PAIRS = (40, 120, 400, 1200, 6000)  # of a training
THINGS = (
    "tench", "springer", "cassette player", "chain saw", "church", "horn", "garbage truck", "gas pump", "golf ball",
    "parachute",
)  # fmt: skip
ANIMALS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CELLS = {"RBC": "red blood cell", "WBC": "white blood cell", "Platelets": "platelet"}
TURNS = ("upright", "turned to the left", "upside down", "turned to the right")
NUMBERS = ("one", "two", "three", "four")


def _drawn(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


@cached(maxsize=4)
def _jpegs(name: str, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures and classes of imagenette or cifar10."""
    if rehearsing():
        return _drawn(24, len(part)), np.arange(24) % 10
    path = benchmarks.find("imagenette") / f"{part}.npz"
    if name == "cifar10":
        path = benchmarks.find(f"cifar10_{'test' if part == 'val' else part}")
    with np.load(path) as data:
        ends, packed, labels = data["offsets"], data["jpeg"], data["labels"]
    count = min(len(labels), 2000 if name == "imagenette" else COUNT[part])
    made = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for i in range(count):
        whole = Image.open(io.BytesIO(packed[ends[i] : ends[i + 1]].tobytes())).convert("RGB")
        made[i] = np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return made, labels[:count].astype(np.int64)


def _count(part: str) -> int:
    return 12 if rehearsing() else COUNT[part]


def _plain(name: str, part: str) -> Samples:
    pictures, labels = _jpegs(name, part)
    return Samples(pictures[: _count(part)], labels[: _count(part)])


@cached(maxsize=4)
def _spoilt(part: str, *, blur: bool) -> Samples:
    clean, generator = _plain("imagenette", part), np.random.default_rng(1)
    if blur:
        made = [Image.fromarray(p).filter(ImageFilter.GaussianBlur(1.5)) for p in clean.pictures]
        return Samples(np.stack([np.asarray(p) for p in made]), clean.labels)
    noisy = clean.pictures + generator.normal(0, 40, clean.pictures.shape)
    return Samples(noisy.clip(0, 255).astype(np.uint8), clean.labels)


@cached(maxsize=4)
def _turned(part: str) -> Samples:
    pictures, _ = _jpegs("imagenette", part)
    pictures = pictures[-_count(part) :]
    made = [np.rot90(picture, i % 4) for i, picture in enumerate(pictures)]
    return Samples(np.stack(made), np.arange(len(made)) % 4)


@cached(maxsize=2)
def _cells(part: str) -> Samples:
    """Cells of blood smears, cut out square."""
    if rehearsing():
        return Samples(_drawn(12, 5), np.arange(12) % 3)
    folder = benchmarks.find("bccd")
    split = "trainval" if part == "train" else "test"
    found: dict[int, list[NDArray[np.uint8]]] = {0: [], 1: [], 2: []}
    each = COUNT[part] // 3
    for name in (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
        smear = Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB")
        root = ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot()  # noqa: S314 - a file of the set
        for thing in root.iter("object"):
            kind = list(CELLS).index(str(thing.findtext("name")))
            left, top, right, bottom = (
                int(thing.findtext(f"bndbox/{e}") or 0) for e in ("xmin", "ymin", "xmax", "ymax")
            )
            if len(found[kind]) < each and min(right - left, bottom - top) > 8:
                cut = smear.crop((left, top, right, bottom)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                found[kind].append(np.asarray(cut))
    labels = np.concatenate([np.full(len(cuts), kind) for kind, cuts in found.items()])
    order = np.random.default_rng(2).permutation(len(labels))
    return Samples(np.concatenate([np.stack(cuts) for cuts in found.values()])[order], labels[order])


def _halved(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 64, 64, 3) to (n, 32, 32, 3), the mean of 2×2 pixels."""
    means = pictures.reshape(len(pictures), SIDE // 2, 2, SIDE // 2, 2, 3).mean((2, 4))
    return means.round().astype(np.uint8)


@cached(maxsize=4)
def _counted(part: str) -> tuple[Samples, tuple[str, ...]]:
    """Four pictures in a square, of which one to four show a golf ball or a parachute; captions."""
    pictures, labels = _jpegs("imagenette", part)
    small, generator = _halved(pictures), np.random.default_rng(3)
    count = _count(part)
    made, numbers = np.empty((count, SIDE, SIDE, 3), np.uint8), np.arange(count) % 4
    balls, others = np.flatnonzero(labels == 8), np.flatnonzero(labels != 8)
    for i, number in enumerate(numbers):
        rows = np.concatenate((generator.choice(balls, number + 1), generator.choice(others, 3 - number)))
        quarters = small[generator.permutation(rows)]
        made[i] = np.concatenate([np.concatenate(quarters[r : r + 2], 1) for r in (0, 2)], 0)
    return Samples(made, numbers), tuple(f"a square of pictures, {NUMBERS[n]} with golf balls." for n in numbers)


@cached(maxsize=4)
def _beside(part: str) -> Samples:
    """Two pictures beside each other, of two classes, the whole squeezed to a square."""
    pictures, labels = _jpegs("imagenette", part)
    generator, count = np.random.default_rng(4), _count(part)
    made, told = np.empty((count, SIDE, SIDE, 3), np.uint8), []
    for i in range(count):
        left = int(generator.integers(len(labels)))
        right = int(generator.choice(np.flatnonzero(labels != labels[left])))
        both = np.concatenate((pictures[left], pictures[right]), 1)  # (64, 128, 3)
        made[i] = np.asarray(Image.fromarray(both).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        a, b = THINGS[labels[left]], THINGS[labels[right]]
        told.append((f"a {a} to the left of a {b}.", f"a {b} to the left of a {a}."))
    return Samples(made, captions=tuple(told))


@cached(maxsize=4)
def _coco(part: str) -> Samples:
    """Pictures of COCO with two things in them; in the wrong caption one of the two is another thing."""
    if rehearsing():
        return Samples(_drawn(6, 7), captions=(("a photo of a dog and a cat.", "a photo of a dog and a cow."),) * 6)
    folder, split = benchmarks.find("coco256"), f"{part}2017"
    lines = (folder / "classes.yaml").read_text(encoding="utf-8").splitlines()
    names = {int(a): b.strip() for a, _, b in (x.partition(":") for x in lines) if a.strip().isdigit()}
    generator, made, told = np.random.default_rng(6), [], []
    for path in sorted((folder / "images" / split).iterdir()):
        boxes = folder / "boxes" / split / f"{path.stem}.txt"
        rows = [line.split() for line in boxes.read_text().splitlines()] if boxes.is_file() else []
        area: dict[int, float] = {}
        for kind, *_, width, height in rows:
            area[int(kind)] = area.get(int(kind), 0.0) + float(width) * float(height)
        there = sorted(area, key=lambda kind: -area[kind])[:2]
        if len(there) < 2:
            continue
        whole = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for swapped in (0, 1, 0, 1):
            other = int(generator.choice([kind for kind in names if kind not in area]))
            wrong = [other if place == swapped else kind for place, kind in enumerate(there)]
            made.append(np.asarray(whole))
            told.append(tuple(f"a photo of a {names[a]} and a {names[b]}." for a, b in (there, wrong)))
    return Samples(np.stack(made), captions=tuple(told))


@cached(maxsize=1)
def suite() -> tuple[Benchmark, ...]:
    """The benchmarks, of pictures that nothing is trained on.

    Returns:
        Nine of six capabilities.
    """
    photo = ("a photo of a {}.", "a picture with a {}.")
    kinds = tuple(CELLS.values())
    return (
        Benchmark("imagenette", "objects", partial(_plain, "imagenette", "val"), THINGS, photo),
        Benchmark("cifar10", "objects", partial(_plain, "cifar10", "val"), ANIMALS, photo),
        Benchmark("imagenette_noise", "corruption", partial(_spoilt, "val", blur=False), THINGS, photo),
        Benchmark("imagenette_blur", "corruption", partial(_spoilt, "val", blur=True), THINGS, photo),
        Benchmark("bccd", "medical", partial(_cells, "val"), kinds, ("a smear with a {}.",)),
        Benchmark("rotation", "rotation", partial(_turned, "val"), TURNS, ("a picture {}.",)),
        Benchmark(
            "counting", "counting", lambda: _counted("val")[0], NUMBERS, ("a square of pictures, {} with golf balls.",)
        ),
        Benchmark("left_of", "relation", partial(_beside, "val")),
        Benchmark("coco", "relation", partial(_coco, "val")),
    )


@cached(maxsize=1)
def _pairs() -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Pictures and captions that models are trained on, shuffled."""
    told: list[str] = []
    made = []
    for samples, names, text in (
        (_plain("imagenette", "train"), THINGS, "a photo of a {}."),
        (_plain("cifar10", "train"), ANIMALS, "a picture with a {}."),
        (_cells("train"), tuple(CELLS.values()), "a smear with a {}."),
        (_turned("train"), TURNS, "a picture {}."),
        (_counted("train")[0], NUMBERS, "a square of pictures, {} with golf balls."),
    ):
        made.append(samples.pictures)
        told += [text.format(names[label]) for label in samples.labels.tolist()] if samples.labels is not None else []
    for samples in (_beside("train"), _coco("train")):
        made.append(samples.pictures)
        told += [captions[0] for captions in samples.captions]
    order = np.random.default_rng(8).permutation(len(told))
    return np.concatenate(made)[order], tuple(told[i] for i in order)


@cached(maxsize=4096)
def _word(word: str) -> Tensor:
    seed = int.from_bytes(sha256(word.encode()).digest()[:4], "big")
    return torch.randn(DIM, generator=torch.Generator().manual_seed(seed)) * DIM**-0.5


def embed(texts: Sequence[str]) -> Tensor:
    """Texts by their words, pairs of words, and words in a half.

    Args:
        texts: n texts.

    Returns:
        (n, 256), of length 1.
    """
    found = []
    for text in texts:
        words = text.lower().strip(".").split()
        halves = [f"{word} in half {2 * place // len(words)}" for place, word in enumerate(words)]
        pairs = [f"{a} before {b}" for a, b in pairwise(words)]
        found.append(torch.stack([_word(word) for word in (*words, *halves, *pairs)]).sum(0))
    return F.normalize(torch.stack(found), dim=1)


def _stages(pictures: Tensor) -> list[Tensor]:
    """Lite0's features behind stages 1 to 6, their mean in 2×2 parts: (n, 3, 64, 64) to (n, 4C) each."""
    net: Any = mosaics.lite0()
    found: list[list[Tensor]] = [[] for _ in range(6)]
    for part in (2 * pictures - 1).contiguous(memory_format=torch.channels_last).split(50):
        x = net.blocks[0](net.bn1(net.conv_stem(part)))
        for made, block in zip(found, net.blocks[1:], strict=True):
            x = block(x)
            made.append(F.adaptive_avg_pool2d(x, 2).flatten(1))
    return [torch.cat(made) for made in found]


def _pixels(side: int, pictures: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(pictures, side).flatten(1)


def _convolutions(pictures: Tensor) -> Tensor:
    """Random convolutions, rectified, their mean in 2×2 parts."""
    kernel = torch.randn(64, 3, 7, 7, generator=torch.Generator().manual_seed(9)) * 147**-0.5
    return F.adaptive_avg_pool2d(F.conv2d(pictures - 0.5, kernel, stride=4).relu(), 2).flatten(1)


STAGES = tuple(f"stage{number}" for number in range(1, 7))
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "pixels4": partial(_pixels, 4),
    "pixels8": partial(_pixels, 8),
    "convolutions": _convolutions,
}
EXTRACTORS = (*STAGES, *OTHERS)
_FOUND: dict[tuple[str, str], Tensor] = {}  # features of pictures that several models of the zoo see


def _extracted(extractor: str, pictures: NDArray[np.uint8]) -> dict[str, Tensor]:
    """Features of an extractor, and those that come with them."""
    x = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        if extractor in OTHERS:
            return {extractor: OTHERS[extractor](x)}
        return dict(zip(STAGES, _stages(x), strict=True))


def _features(extractor: str, pictures: NDArray[np.uint8], *, keep: bool) -> Tensor:
    if not keep:
        return _extracted(extractor, pictures)[extractor]
    key = sha256(pictures.tobytes()).hexdigest()
    if (extractor, key) not in _FOUND:
        _FOUND.update({(name, key): found for name, found in _extracted(extractor, pictures).items()})
    return _FOUND[extractor, key]


class Probe:
    """A model: ridge regression from frozen features to the embedding of the caption.

    Args:
        extractor: name of the features.
        pairs: number of pairs that it is fitted to.
        keep: whether features are kept between calls, for a zoo in which models share them.
    """

    def __init__(self, extractor: str, pairs: int, *, keep: bool = True) -> None:
        self.extractor, self.keep = extractor, keep
        pictures, texts = _pairs()
        x, wanted = _features(extractor, pictures, keep=True)[:pairs], embed(texts[:pairs])
        self.mean, self.deviation = x.mean(0), x.std(0).clamp(min=1e-3)
        x, self.bias = (x - self.mean) / self.deviation, wanted.mean(0)
        gram = x @ x.T + 0.1 * x.shape[1] ** 0.5 * len(x) ** 0.5 * torch.eye(len(x))
        if len(x) > x.shape[1]:
            gram = x.T @ x + 0.1 * x.shape[1] ** 0.5 * len(x) ** 0.5 * torch.eye(x.shape[1])
            self.weight = torch.linalg.solve(gram, x.T @ (wanted - self.bias))
        else:
            self.weight = x.T @ torch.linalg.solve(gram, wanted - self.bias)

    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Pictures, (n, 64, 64, 3), to embeddings, (n, 256)."""
        x = _features(self.extractor, pictures, keep=self.keep)
        return (x - self.mean) / self.deviation @ self.weight + self.bias

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to embeddings, (n, 256)."""
        return embed(texts)


def zoo() -> dict[str, tuple[str, int]]:
    """The small models.

    Returns:
        Name → arguments of `Probe`.
    """
    return {f"{name} {pairs}": (name, pairs) for name in EXTRACTORS for pairs in PAIRS}
