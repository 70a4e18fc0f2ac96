"""Evidence for UniBench: oracles and chance on nine sets of six capabilities, the cache, and a distilled tenth."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import capabilities
from foveal.evidence.tasks.capabilities import NEEDS, Probe, suite, zoo
from foveal.record import bound, equal, faster, kept
from foveal.vlm.unibench import Benchmark, Distilled, Samples, distil, evaluate, kendall, match, overall, zero_shot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

SHARE = 0.08  # of the items; texts cost the same for a part as for all
DRAWN = 3  # random models
TIMED = ("stage6", 1200)


class _Oracle:
    """Knows the right text of each item of a benchmark, by the order in which they are asked."""

    def __init__(self, benchmark: Benchmark) -> None:
        samples = benchmark.load()
        if samples.labels is not None:
            self.told = [benchmark.templates[0].format(benchmark.classes[label]) for label in samples.labels.tolist()]
        else:
            self.told = [captions[0] for captions in samples.captions]
        self.at = 0

    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        self.at += len(pictures)
        return self.texts(self.told[self.at - len(pictures) : self.at])

    def texts(self, texts: Sequence[str]) -> Tensor:
        return capabilities.embed(texts)


class _Drawn:
    """Random embeddings; `alike` gives the same for everything."""

    def __init__(self, seed: int, *, alike: bool = False) -> None:
        self.generator, self.alike = torch.Generator().manual_seed(seed), alike

    def _some(self, count: int) -> Tensor:
        found = torch.randn(count, 64, generator=self.generator)
        return torch.ones_like(found) if self.alike else found

    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        return self._some(len(pictures))

    def texts(self, texts: Sequence[str]) -> Tensor:
        return self._some(len(texts))


def _least_of_the_oracle() -> float:
    each = [evaluate(_Oracle(benchmark), "oracle", (benchmark,))[benchmark.name] for benchmark in suite()]
    return 100 * min(float(correct.mean()) for correct in each)


def _off_chance() -> float:
    """Largest distance of a random model's accuracy from chance on a benchmark, in standard deviations."""
    found = []
    for seed in range(DRAWN):
        for benchmark, correct in zip(suite(), evaluate(_Drawn(seed), "drawn", suite()).values(), strict=True):
            samples = benchmark.load()
            chance = 1 / (len(benchmark.classes) or len(samples.captions[0]))
            found.append(abs(correct.mean() - chance) / (chance * (1 - chance) / len(correct)) ** 0.5)
    return float(max(found))


def _most_of_a_constant() -> float:
    found = evaluate(_Drawn(0, alike=True), "constant", suite())
    return 100 * max(float(correct.mean()) for correct in found.values())


def _asked_again() -> float:
    """Pictures and texts that are embedded, and sets that are loaded, when results are cached."""
    calls = 0

    class Counted(_Drawn):
        def _some(self, count: int) -> Tensor:
            nonlocal calls
            calls += 1
            return super()._some(count)

    def load() -> Samples:
        nonlocal calls
        calls += 1
        return Samples(np.zeros((6, 4, 4, 3), np.uint8), np.arange(6) % 2)

    benchmarks = (Benchmark("a", "x", load, ("cat", "dog")), Benchmark("b", "y", load, ("cat", "dog")))
    with tempfile.TemporaryDirectory() as folder:
        first = evaluate(Counted(0), "counted", benchmarks, Path(folder))
        calls = 0
        again = evaluate(Counted(1), "counted", benchmarks, Path(folder))
    return float(calls) if all((first[name] == again[name]).all() for name in first) else float("inf")


def _rerun(*, stored: bool) -> Callable[[], Any]:
    model, folder = Probe(*TIMED, keep=False), Path(tempfile.mkdtemp())
    evaluate(model, "timed", suite(), folder)
    return partial(evaluate, model, "timed", suite(), folder if stored else None)


@cached(maxsize=1)
def _tables() -> dict[str, Mapping[str, NDArray[np.bool_]]]:
    """What each model of the zoo answers rightly."""
    return {name: evaluate(Probe(*given), name, suite()) for name, given in zoo().items()}


@cached(maxsize=8)
def _split(seed: int) -> tuple[list[str], list[str]]:
    """Half of the zoo to distil on, and the other half to rank."""
    names = list(zoo())
    order = np.random.default_rng(seed).permutation(len(names))
    return [names[i] for i in order[: len(names) // 2]], [names[i] for i in order[len(names) // 2 :]]


@cached(maxsize=8)
def _part(seed: int) -> Distilled:
    return distil([_tables()[name] for name in _split(seed)[0]], suite(), share=SHARE, seed=seed)


def _tau(seed: int, *, weighed: bool) -> float:
    """τ of the distilled items with the whole suite, on the models that they do not know; or of their plain mean."""
    part, found, whole = _part(seed), [], []
    for name in _split(seed)[1]:
        table = _tables()[name]
        asked = {name: table[name][np.array(items)] for name, items in part.items.items()}
        found.append(part.score(asked) if weighed else overall(asked, suite()))
        whole.append(overall(table, suite()))
    return kendall(found, whole)


def _ranked() -> float:
    """Number of models that are ranked, of accuracies that differ."""
    return float(len({overall(_tables()[name], suite()) for name in _split(0)[1]}))


def _timed(*, part: bool) -> Callable[[], Any]:
    model, items = Probe(*TIMED, keep=False), None
    for benchmark in suite():
        benchmark.load()
    if part:
        items = _part(0).items
    return partial(evaluate, model, "timed", suite(), items=items)


def _embeddings() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, prompts = torch.randn(57, 9, generator=generator), torch.randn(7, 3, 9, generator=generator)
    captions, labels = torch.randn(57, 4, 9, generator=generator), torch.randint(7, (57,), generator=generator)
    return images.double(), prompts.double(), captions.double(), labels


def _handled(*, plainly: bool) -> Tensor:
    """Both handlers on random embeddings: ours, or from the definition one picture at a time."""
    images, prompts, captions, labels = _embeddings()
    if not plainly:
        return torch.cat((zero_shot(images, prompts, labels), match(images, captions))).long()
    found = []
    classes = [sum(t / t.norm() for t in prompts[c]) / prompts.shape[1] for c in range(len(prompts))]
    for image, label in zip(images, labels.tolist(), strict=True):
        near = [float(F.cosine_similarity(image, w, dim=0)) for w in classes]
        found.append(near.index(max(near)) == label)
    for image, told in zip(images, captions, strict=True):
        near = [float(F.cosine_similarity(image, t, dim=0)) for t in told]
        found.append(near.index(max(near)) == 0)
    return torch.tensor(found).long()


DATA = f"nine sets of up to 800 items, {len(zoo()) // 2} models ranked, distilled on the others to {SHARE:.0%}"
CLAIMS = (
    equal(
        "Both handlers give what the definition gives, one picture at a time.",
        ours=partial(_handled, plainly=False),
        theirs=partial(_handled, plainly=True),
        tolerance=0.0,
        clause=1,
    ),
    bound(
        "Nine local sets of six capabilities have items for both handlers.",
        paper="53 benchmarks, 17 capabilities",
        value=lambda: float(min(len({b.name for b in suite() if len(b.load().pictures)}), 9)),
        at_least=5.0,
        unit="sets",
        needs=NEEDS,
        clause=1,
    ),
    bound(
        "Oracle embeddings are right on every set.",
        paper="",
        value=_least_of_the_oracle,
        at_least=100.0,
        unit="%",
        needs=NEEDS,
        clause=2,
    ),
    bound(
        "Three random models are within 3.5 standard deviations of chance on every set.",
        paper="",
        value=_off_chance,
        at_most=3.5,
        unit="deviations",
        needs=NEEDS,
        clause=2,
    ),
    bound(
        "A constant model is right on nothing: ties are wrong.",
        paper="the authors' code gives it all captions",
        value=_most_of_a_constant,
        at_most=0.0,
        unit="%",
        needs=NEEDS,
        clause=2,
    ),
    bound(
        "A rerun with cached results embeds nothing, loads nothing, and gives the same.",
        paper="",
        value=_asked_again,
        at_most=0.0,
        unit="calls",
        clause=3,
    ),
    faster(
        "A rerun with cached results takes at most a hundredth of the time.",
        paper="",
        ours=partial(_rerun, stored=True),
        theirs=partial(_rerun, stored=False),
        at_least=100.0,
        threads=1,
        needs=NEEDS,
        clause=3,
    ),
    bound(
        "At least twenty models are ranked, and their accuracies differ.",
        paper="59 models",
        value=_ranked,
        at_least=20.0,
        unit="models",
        needs=NEEDS,
        clause=4,
    ),
    kept(
        "What is distilled on half of the zoo ranks the other half as the whole suite does.",
        paper="a representative set",
        quality=partial(_tau, weighed=True),
        at_least=0.9,
        unit="τ",
        data=DATA,
        needs=NEEDS,
        clause=4,
    ),
    faster(
        "They take at most a tenth of the time of the whole suite.",
        paper="5 minutes on one GPU",
        ours=partial(_timed, part=True),
        theirs=partial(_timed, part=False),
        at_least=10.0,
        threads=1,
        needs=NEEDS,
        clause=4,
    ),
    kept(
        "They rank better than the mean over the same items.",
        paper="",
        quality=lambda seed: _tau(seed, weighed=True) - _tau(seed, weighed=False),
        at_least=0.0,
        unit="τ",
        data=DATA,
        needs=NEEDS,
        beyond="the distilled set is representative",
    ),
)
