import json

import pytest
from shrunk import tiny

from foveal.shrink import recipe
from foveal.shrink.fold.step import Fold
from foveal.shrink.prune.structure import Prune
from foveal.shrink.quantize.int8 import Quantise
from foveal.shrink.recipe import shrink
from foveal.shrink.search import LADDER, BudgetError, at_strength, frontier, search
from foveal.shrink.step import ShrinkError
from foveal.shrink.tune import Tune

RECIPE = [Prune(keep=0.7, round_to=1), Tune(steps=1)]


@pytest.fixture
def widths(pretend):
    """Time by width; quality falls as width does."""
    pretend.times = lambda model: float(model[0].out_channels)
    pretend.score = lambda model: 90.0 - 4 * (16 / model[0].out_channels - 1)
    return pretend


def test_strength_is_a_power_of_the_shares():
    steps = [Prune(keep=0.5, heads=0.25), Tune(), Quantise(samples=3)]
    milder = at_strength(steps, 0.5, int8=True)
    assert milder[0].keep == pytest.approx(0.5**0.5, abs=5e-4)
    assert milder[0].heads == pytest.approx(0.5)
    assert milder[1:] == [Tune(), Quantise(samples=3)]
    assert at_strength([Fold()], 3.0, int8=False) == [Fold()]


def test_a_budget_is_met_with_the_best_quality(widths, data, tmp_path):
    said = []
    found = search(tiny(), RECIPE, data, budget=0.3, keep=-4.0, folder=tmp_path, tell=said.append)
    assert found.point.latency <= 0.3
    assert found.point.change >= -4.0
    assert found.point.int8
    assert found.chosen.last.untouched.median == pytest.approx(found.point.latency)
    fitting = [p for p in found.points if p.latency <= 0.3]
    assert found.point.change == max(p.change for p in fitting)
    assert all("s left" in line for line in said)
    assert {path.name for path in tmp_path.iterdir()} >= {"journal.jsonl", "frontier.html", "frontier.md"}
    assert json.loads((tmp_path / "frontier.json").read_text())["lines"][0]["step"] == "untouched"


def test_without_a_budget_the_fastest_that_keeps_the_quality(widths, data):
    shrunk = shrink(tiny(), RECIPE, data, keep=-3.0)
    assert shrunk.lost >= -3.0
    assert shrunk.last.untouched.median < 0.4


def test_a_budget_that_cannot_be_met_names_the_nearest(widths, data, tmp_path):
    with pytest.raises(BudgetError, match=r"no recipe of \d+ tried meets latency 0.13 and -1 points") as caught:
        search(tiny(), RECIPE, data, budget=0.13, keep=-1.0, folder=tmp_path)
    text = str(caught.value)
    assert "the fastest that keeps the quality has latency" in text
    assert "the best that is fast enough has latency" in text
    assert caught.value.points
    assert (tmp_path / "frontier.html").is_file()


def test_an_interrupted_search_goes_on(widths, data, tmp_path, monkeypatch):
    calls = []

    def stopping(line):
        calls.append(line)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tiny(), RECIPE, data, budget=0.3, folder=tmp_path, tell=stopping)
    kept = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert len(kept) == 4
    (tmp_path / "journal.jsonl").write_text("\n".join(kept) + '\n{"cut off')
    ran = []
    write = widths.write

    def counted(model, folder, name, example):
        ran.append(name)
        return write(model, folder, name, example)

    monkeypatch.setattr(recipe, "write", counted)
    again = search(tiny(), RECIPE, data, budget=0.3, folder=tmp_path)
    fresh = search(tiny(), RECIPE, data, budget=0.3)
    assert again.point.recipe == fresh.point.recipe
    runs = len({p.strength for p in fresh.points})
    assert ran.count("untouched") == (runs - 2) + runs
    other = search(tiny(), RECIPE, data, budget=0.3, folder=tmp_path, key="another model")
    assert len(other.points) == len(fresh.points)


def test_the_frontier_holds_what_nothing_beats(widths, data):
    points = search(tiny(), RECIPE, data, keep=-100.0).points
    assert len(points) == 2 * len(LADDER)
    best = frontier(points)
    for point in points:
        beaten = any(p.latency <= point.latency and p.change > point.change for p in points)
        assert (point in best) <= (not beaten)
    assert [p.latency for p in best] == sorted(p.latency for p in best)


def test_a_budget_is_a_share(widths, data):
    with pytest.raises(ShrinkError, match=r"in \(0, 1\), got 40"):
        search(tiny(), RECIPE, data, budget=40)
