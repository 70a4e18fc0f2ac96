"""UniBench: one suite of tagged benchmarks for any model with image and text embeddings, cached, and a distilled part.

*Source*: H. Al-Tahan et al., "UniBench: Visual Reasoning Requires Rethinking Vision-Language Beyond Scaling", NeurIPS
2024 Datasets and Benchmarks (arXiv:2408.04810), sections 2 and 5, and the authors' code. With embeddings of length 1,
e of pictures (n, C) and t of texts,

    zero-shot         right if e·w_y > e·w_c for all c ≠ y,  w_c = normalised mean of t over the prompts of class c
    caption matching  right if e·t_0 > e·t_k for all k ≥ 1,  t_0 that of the right caption
    capability        mean over its benchmarks; the whole is the mean over the capabilities
    distilled         a drawn share of each benchmark's items; a model's whole is read off what it answers there, x, by
                      ridge regression on m other models:  ȳ + (x − x̄)·Xᵀ(XXᵀ + λ tr(XXᵀ)/m)⁻¹(y − ȳ)

*Differs from the paper*: a tie is wrong; the authors' code takes the first caption of a tie, the right one, so that a
constant model matches all captions. Pairs of two pictures and two captions are not here. The authors distil by choosing
whole benchmarks; `representatives` chooses one a capability. A tenth of a few small sets takes items of all of them.
*Provenance*: written from the paper and from what the authors' code does. `zero_shot` and `match` say of
3,300 random embeddings, where there is no tie, what the authors' two handlers say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from foveal.cases import Procedure
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    Correct = Mapping[str, NDArray[np.bool_]]

__all__ = [
    "Benchmark", "Distilled", "Embedder", "Samples", "aggregate", "distil", "evaluate", "kendall", "match", "overall",
    "representatives", "zero_shot",
]  # fmt: skip


class Embedder(Protocol):
    """A model with embeddings of pictures and of texts; their lengths do not count."""

    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Pictures, (n, H, W, 3), to embeddings, (n, C)."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to embeddings, (n, C)."""
        ...


@dataclass(frozen=True)
class Samples:
    """Items of a benchmark.

    Args:
        pictures: (n, H, W, 3), uint8.
        labels: numbers of the classes, (n,); None for caption matching.
        captions: for each picture captions, the right one first; () for zero-shot.
    """

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    captions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the suite.

    Args:
        name: name.
        capability: what it asks for: "counting", "relation", …
        load: function that loads its items; not called for what is cached.
        classes: names of the classes of zero-shot classification; () for caption matching.
        templates: prompts with {} for the class.
        version: another word when items change, so that no old result is taken.

    Raises:
        VlmError: one class, or a template without a place for it.
    """

    name: str
    capability: str
    load: Callable[[], Samples]
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}.",)
    version: str = "1"

    def __post_init__(self) -> None:
        if len(self.classes) == 1 or not self.templates or any("{}" not in text for text in self.templates):
            raise VlmError(
                f"{self.name} needs at least two classes and templates with {{}}, got {list(self.classes)} and "
                f"{list(self.templates)}; leave classes out for caption matching"
            )


def zero_shot(images: Tensor, prompts: Tensor, labels: Tensor) -> Tensor:
    """Which pictures are nearest to the prompts of their class.

    Args:
        images: embeddings, (n, C).
        prompts: embeddings of each class's prompts, (classes, templates, C).
        labels: numbers of the classes, (n,).

    Returns:
        Whether each is, (n,); a tie is not.
    """
    weights = F.normalize(F.normalize(prompts, dim=2).mean(1), dim=1)
    scores = F.normalize(images, dim=1) @ weights.T
    own = scores.gather(1, labels[:, None])
    return (own > scores.scatter(1, labels[:, None], -torch.inf)).all(1)


def match(images: Tensor, captions: Tensor) -> Tensor:
    """Which pictures are nearer to their first caption than to the others.

    Args:
        images: embeddings, (n, C).
        captions: embeddings, (n, K, C).

    Returns:
        Whether each is, (n,); a tie is not.
    """
    scores = torch.einsum("nc,nkc->nk", F.normalize(images, dim=1), F.normalize(captions, dim=2))
    return (scores[:, :1] > scores[:, 1:]).all(1)


def _asked(model: Embedder, benchmark: Benchmark, items: Sequence[int] | None, batch: int) -> NDArray[np.bool_]:
    samples = benchmark.load()
    chosen = np.arange(len(samples.pictures)) if items is None else np.asarray(items, np.int64)
    if not len(chosen):
        raise VlmError(f"{benchmark.name} has no item to ask; give at least one picture")
    found = []
    with torch.no_grad():
        if benchmark.classes:
            texts = [text.format(name) for name in benchmark.classes for text in benchmark.templates]
            prompts = model.texts(texts).unflatten(0, (len(benchmark.classes), -1))
        for rows in np.split(chosen, range(batch, len(chosen), batch)):
            images = model.images(samples.pictures[rows])
            if benchmark.classes:
                if samples.labels is None:
                    raise VlmError(f"{benchmark.name} has classes and no labels; give each picture the number of one")
                found.append(zero_shot(images, prompts, torch.from_numpy(samples.labels[rows])))
            else:
                told = [samples.captions[row] for row in rows]
                if len({len(captions) for captions in told}) != 1 or len(told[0]) < 2:
                    raise VlmError(f"{benchmark.name} needs equally many captions a picture, at least two; add some")
                flat = model.texts([text for captions in told for text in captions])
                found.append(match(images, flat.unflatten(0, (len(told), -1))))
    correct: NDArray[np.bool_] = torch.cat(found).numpy()
    return correct


def evaluate(
    model: Embedder,
    name: str,
    benchmarks: Sequence[Benchmark],
    cache: Path | None = None,
    *,
    items: Mapping[str, Sequence[int]] | None = None,
    batch: int = 64,
) -> dict[str, NDArray[np.bool_]]:
    """Run a model through benchmarks; what is cached is read, and neither model nor pictures are touched for it.

    Args:
        model: the model.
        name: name under which results are cached; another one for other weights.
        benchmarks: the suite.
        cache: folder of results; None for none.
        items: benchmark → numbers of the items to ask, those of `distil`; None for all.
        batch: pictures at once.

    Returns:
        Benchmark → whether each item was right, (n,).

    Raises:
        VlmError: benchmarks of one name, or none, or a benchmark that cannot be asked.
    """
    names = [benchmark.name for benchmark in benchmarks]
    if not names or len(set(names)) < len(names):
        raise VlmError(f"benchmarks must have names of their own, and there must be one, got {names}")
    found = {}
    for benchmark in benchmarks:
        part = None if items is None else [int(item) for item in items[benchmark.name]]
        said = [name, benchmark.name, benchmark.version, benchmark.classes, benchmark.templates, part]
        path = None if cache is None else cache / f"{sha256(json.dumps(said).encode()).hexdigest()[:24]}.npz"
        if path is not None and path.is_file():
            with np.load(path) as stored:
                found[benchmark.name] = stored["correct"]
            continue
        found[benchmark.name] = _asked(model, benchmark, part, batch)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part.npz")
            np.savez(unfinished, correct=found[benchmark.name])
            unfinished.replace(path)
    return found


def aggregate(correct: Correct, benchmarks: Sequence[Benchmark]) -> dict[str, float]:
    """Accuracy by capability.

    Args:
        correct: as `evaluate` gives it.
        benchmarks: the suite.

    Returns:
        Capability → mean over its benchmarks, percent.
    """
    by: dict[str, list[float]] = {}
    for benchmark in benchmarks:
        by.setdefault(benchmark.capability, []).append(100 * float(np.mean(correct[benchmark.name])))
    return {capability: float(np.mean(found)) for capability, found in by.items()}


def overall(correct: Correct, benchmarks: Sequence[Benchmark]) -> float:
    """Mean over the capabilities, percent.

    Args:
        correct: as `evaluate` gives it.
        benchmarks: the suite.

    Returns:
        The mean.
    """
    return float(np.mean(list(aggregate(correct, benchmarks).values())))


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's τ_b of two orders: (concordant − discordant pairs) / √(untied in a · untied in b).

    Args:
        a: scores.
        b: other scores of the same things.

    Returns:
        τ_b in [-1, 1]; 0 if all of one are equal.

    Raises:
        VlmError: fewer than two things, or other numbers of them.
    """
    if len(a) != len(b) or len(a) < 2:
        raise VlmError(f"an order needs two lists of equal length, at least 2, got {len(a)} and {len(b)}")
    signs = [np.sign(np.subtract.outer(x, x))[np.triu_indices(len(a), 1)] for x in (np.asarray(a), np.asarray(b))]
    untied = [float(np.abs(sign).sum()) for sign in signs]
    return float((signs[0] * signs[1]).sum()) / (untied[0] * untied[1]) ** 0.5 if all(untied) else 0.0


@dataclass(frozen=True)
class Distilled:
    """Items that stand for the suite, and how the whole is read off them.

    Args:
        items: benchmark → numbers of items, ascending, for `evaluate`.
        weights: benchmark → weight of each of these items, (n,).
        offset: score of a model that is wrong on all, percent.
    """

    items: Mapping[str, list[int]]
    weights: Mapping[str, NDArray[np.float64]]
    offset: float

    def score(self, correct: Correct) -> float:
        """The whole, estimated.

        Args:
            correct: what `evaluate` gave for `items`.

        Returns:
            Mean over the capabilities, percent.
        """
        return self.offset + sum(float(weight @ correct[name]) for name, weight in self.weights.items())


def distil(
    tables: Sequence[Correct],
    benchmarks: Sequence[Benchmark],
    *,
    share: float = 0.08,
    strength: float = 0.3,
    seed: int = 0,
) -> Distilled:
    """Draw items and fit the whole to them.

    Args:
        tables: what `evaluate` gave for at least two models, not those that are to be ranked.
        benchmarks: the suite.
        share: share of the items, in (0, 1]; at least one of each benchmark.
        strength: λ.
        seed: seed of the draw.

    Returns:
        Items and weights.

    Raises:
        VlmError: fewer than two models, a share outside (0, 1], or a strength that is not positive.
    """
    if len(tables) < 2 or not 0 < share <= 1 or not strength > 0:
        raise VlmError(
            "distilling takes at least two models, a share in (0, 1] and a positive strength, got "
            f"{len(tables)}, {share} and {strength}"
        )
    draw, chosen, columns = np.random.default_rng(seed), {}, []
    for benchmark in benchmarks:
        count = len(tables[0][benchmark.name])
        rows = np.sort(draw.permutation(count)[: max(1, int(share * count))])
        chosen[benchmark.name] = [int(row) for row in rows]
        columns.append(np.stack([table[benchmark.name][rows] for table in tables]) / len(rows))
    x, y = np.concatenate(columns, 1), np.array([overall(table, benchmarks) for table in tables])
    middle, sizes = x.mean(0), [column.shape[1] for column in columns]
    gram = (x - middle) @ (x - middle).T
    ridge = strength * np.trace(gram) / len(tables) or 1.0  # models that answer alike
    weights = (x - middle).T @ np.linalg.solve(gram + ridge * np.eye(len(tables)), y - y.mean())
    parts = np.split(weights, np.cumsum(sizes)[:-1])
    return Distilled(
        chosen,
        {name: part / size for name, part, size in zip(chosen, parts, sizes, strict=True)},
        float(y.mean() - middle @ weights),
    )


def representatives(tables: Sequence[Correct], benchmarks: Sequence[Benchmark]) -> dict[str, str]:
    """For each capability the benchmark that ranks models most as the capability does.

    Args:
        tables: what `evaluate` gave for at least two models.
        benchmarks: the suite.

    Returns:
        Capability → name of a benchmark.
    """
    found: dict[str, tuple[float, str]] = {}
    whole = [aggregate(table, benchmarks) for table in tables]
    for benchmark in benchmarks:
        own = [float(np.mean(table[benchmark.name])) for table in tables]
        tau = kendall(own, [scores[benchmark.capability] for scores in whole])
        if tau > found.get(benchmark.capability, (-2.0, ""))[0]:
            found[benchmark.capability] = (tau, benchmark.name)
    return {capability: name for capability, (_, name) in found.items()}


class _Drawn:
    """Random embeddings, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        return torch.randn(len(pictures), 8, generator=self.generator)

    def texts(self, texts: Sequence[str]) -> Tensor:
        return torch.randn(len(texts), 8, generator=self.generator)


def _run(seed: int, *, count: int = 12) -> Any:
    pictures = np.zeros((count, 4, 4, 3), np.uint8)
    zero = Benchmark("z", "objects", lambda: Samples(pictures, np.arange(count) % 3), ("cat", "dog", "cow"))
    pair = Benchmark("c", "relation", lambda: Samples(pictures, captions=(("a on b", "b on a"),) * count))
    tables = [evaluate(_Drawn(seed + i), "drawn", (zero, pair)) for i in range(3)]
    part = distil(tables, (zero, pair), share=0.2, seed=seed)
    return np.array([overall(table, (zero, pair)) for table in tables] + part.items["z"])


METHOD = Method(
    id=328,
    name="UniBench",
    kind="benchmark",
    summary="One suite of tagged zero-shot and caption benchmarks for any model with embeddings, cached and distilled.",
    paper=Paper(
        "UniBench: Visual Reasoning Requires Rethinking Vision-Language Beyond Scaling",
        "H. Al-Tahan et al.",
        2024,
        "arXiv:2408.04810",
    ),
    cases={"drawn": Procedure(_run, lambda: _run(0, count=0), refuses="has no item to ask; give at least one picture")},
)
