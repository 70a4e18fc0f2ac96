import numpy as np
import pytest
import torch

from foveal.vlm.method import VlmError
from foveal.vlm.unibench import (
    Benchmark,
    Samples,
    aggregate,
    distil,
    evaluate,
    kendall,
    match,
    overall,
    representatives,
    zero_shot,
)

PICTURES = np.arange(6 * 2 * 2 * 3, dtype=np.uint8).reshape(6, 2, 2, 3)


class Model:
    """Pictures by their first pixel, texts by their length; counts what it is asked."""

    def __init__(self):
        self.asked = []

    def images(self, pictures):
        self.asked.append(len(pictures))
        return torch.nn.functional.one_hot(torch.from_numpy(pictures[:, 0, 0, 0].astype(np.int64)) // 12 % 3, 3).float()

    def texts(self, texts):
        return torch.nn.functional.one_hot(torch.tensor([len(text) % 3 for text in texts]), 3).float()


def benchmark(name="z", capability="objects", labels=(0, 1, 2, 0, 1, 1), **words):
    samples = Samples(PICTURES, np.array(labels))
    return Benchmark(name, capability, lambda: samples, ("aaa", "bbbb", "ccccc"), ("{}",), **words)


def captions(told, name="c"):
    return Benchmark(name, "relation", lambda: Samples(PICTURES, captions=told))


def test_zero_shot_by_hand():
    prompts = torch.tensor([[[2.0, 0], [0, 9]], [[1, 0], [1, 0]]])  # classes at 45 and at 0 degrees
    images = torch.tensor([[1.0, 1], [5, 0.1], [1, 1], [1, 0.4142136]])
    assert zero_shot(images, prompts, torch.tensor([0, 1, 1, 0])).tolist()[:3] == [True, True, False]


def test_ties_are_wrong():
    alike = torch.ones(2, 3)
    assert not zero_shot(alike, torch.ones(4, 1, 3), torch.tensor([0, 3])).any()
    assert not match(alike, torch.ones(2, 2, 3)).any()


def test_match_by_hand():
    told = torch.tensor([[[1.0, 0], [0, 3]], [[1, 0], [0, 3]]])
    assert match(torch.tensor([[2.0, 1], [1, 2]]), told).tolist() == [True, False]


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_both_kinds_of_benchmarks_run_in_any_batch(batch):
    pairs = (("aaa", "bbbb"),) * 3 + (("bbbb", "aaa"),) * 3
    found = evaluate(Model(), "m", (benchmark(), captions(pairs)), batch=batch)
    assert found["z"].tolist() == [True, True, True, True, True, False]
    assert found["c"].tolist() == [True, False, False, False, True, False]


def test_what_is_cached_is_not_asked_again(tmp_path):
    model, suite = Model(), (benchmark(), captions((("aaa", "bb"),) * 6))
    first = evaluate(model, "m", suite, tmp_path)
    assert model.asked == [6, 6]
    never = Benchmark("z", "objects", lambda: pytest.fail("loaded"), ("aaa", "bbbb", "ccccc"), ("{}",))
    again = evaluate(model, "m", (never, suite[1]), tmp_path)
    assert model.asked == [6, 6]
    assert all((first[name] == again[name]).all() for name in first)
    evaluate(model, "other", suite[:1], tmp_path)
    evaluate(model, "m", [benchmark(version="2")], tmp_path)
    part = evaluate(model, "m", suite[:1], tmp_path, items={"z": [5, 0]})
    assert model.asked == [6, 6, 6, 6, 2]
    assert part["z"].tolist() == [False, True]
    assert not list(tmp_path.glob("*.part*"))


def test_a_whole_is_the_mean_of_capabilities():
    suite = (benchmark("a"), benchmark("b"), captions((), "c"))
    correct = {"a": np.array([True, True]), "b": np.array([False, False]), "c": np.array([True, False, False, False])}
    assert aggregate(correct, suite) == {"objects": 50.0, "relation": 25.0}
    assert overall(correct, suite) == 37.5


def test_kendall_by_hand():
    assert kendall([1, 2, 3], [1, 2, 3]) == 1
    assert kendall([1, 2, 3], [3, 2, 1]) == -1
    assert kendall([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)
    assert kendall([1, 1], [1, 2]) == 0
    with pytest.raises(VlmError, match="an order needs two lists of equal length, at least 2, got 1 and 2"):
        kendall([1], [1, 2])


def test_the_whole_is_read_off_a_part():
    generator, suite = np.random.default_rng(0), (benchmark("a"), benchmark("b", "texture"))
    skills = np.linspace(0.1, 0.9, 12)
    tables = [{name: generator.random(100) < skill for name in "ab"} for skill in skills]
    part = distil(tables[::2], suite, share=0.1)
    assert {name: len(items) for name, items in part.items.items()} == {"a": 10, "b": 10}
    assert part.items["a"] == sorted(set(part.items["a"]))
    asked = [{name: table[name][part.items[name]] for name in "ab"} for table in tables]
    off = [part.score(one) - overall(table, suite) for one, table in zip(asked, tables, strict=True)]
    assert np.abs(off[::2]).mean() < 10  # those that it was fitted to; one who always says the mean is 27 off
    assert kendall([part.score(one) for one in asked[1::2]], skills[1::2]) > 0.8
    assert distil(tables, suite, share=0.1, seed=1).items != part.items
    assert len(distil(tables, suite, share=0.001).items["a"]) == 1


def test_with_all_items_and_little_ridge_the_whole_is_itself():
    generator, suite = np.random.default_rng(0), (benchmark("a"), benchmark("b", "texture"))
    tables = [{name: generator.random(40) < skill for name in "ab"} for skill in (0.2, 0.4, 0.6, 0.8)]
    part = distil(tables, suite, share=1.0, strength=1e-9)
    assert part.items["a"] == list(range(40))
    for table in tables:
        assert part.score(table) == pytest.approx(overall(table, suite))
    alike = distil([tables[0]] * 2, suite, share=1.0)
    assert alike.score(tables[1]) == pytest.approx(overall(tables[0], suite))


def test_a_capability_is_stood_for_by_what_ranks_like_it():
    suite = (benchmark("a"), benchmark("b"), benchmark("d"))
    scores = {"a": (1, 2, 3), "b": (3, 1, 2), "d": (1, 2, 4)}
    tables = [{name: np.arange(5) < values[model] for name, values in scores.items()} for model in range(3)]
    assert representatives(tables, suite) == {"objects": "a"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: Benchmark("a", "x", list, ("cat",)),
            r"a needs at least two classes and templates with \{\}, got .'cat'.",
        ),
        (lambda: Benchmark("a", "x", list, ("cat", "dog"), ("no",)), "leave classes out for caption matching"),
        (
            lambda: evaluate(Model(), "m", ()),
            r"benchmarks must have names of their own, and there must be one, got \[\]",
        ),
        (lambda: evaluate(Model(), "m", (benchmark(), benchmark())), "must have names of their own"),
        (lambda: evaluate(Model(), "m", (benchmark(),), items={"z": []}), "z has no item to ask; give at least one"),
        (
            lambda: evaluate(Model(), "m", [captions((("a",),) * 6)]),
            "c needs equally many captions a picture, at least",
        ),
        (lambda: evaluate(Model(), "m", [captions((("a", "b"),) * 5 + (("a",),))]), "needs equally many captions"),
        (
            lambda: evaluate(Model(), "m", [Benchmark("a", "x", lambda: Samples(PICTURES), ("cat", "dog"))]),
            "a has classes and no labels; give each picture the number of one",
        ),
        (lambda: distil([{}], ()), r"distilling takes at least two models, a share in .* got 1, 0.08 and 0.3"),
        (lambda: distil([{}, {}], (), share=0.0), "got 2, 0.0 and 0.3"),
        (lambda: distil([{}, {}], (), strength=0.0), "got 2, 0.08 and 0.0"),
    ],
)
def test_errors(make, says):
    with pytest.raises(VlmError, match=says):
        make()
