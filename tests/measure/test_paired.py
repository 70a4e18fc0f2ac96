"""The clock notices a difference that is there, and none that is not."""

import gc
import random

import pytest

from foveal.measure.paired import interleaved, paired, ratio


class Machine:
    """A machine whose functions take seconds of an own clock, with noise and busy moments."""

    def __init__(self, seed, noise):
        self.now, self.random, self.noise = 0.0, random.Random(seed), noise

    def clock(self):
        return self.now

    def function(self, seconds):
        def run():
            busy = 3.0 if self.random.random() < 0.05 else 1.0
            self.now += seconds * busy * (1 + self.random.uniform(0, self.noise))

        return run

    def compare(self, ours, theirs):
        return ratio(*paired(self.function(ours), self.function(theirs), least=0.0, clock=self.clock))


@pytest.mark.parametrize("seed", range(20))
def test_a_planted_slow_down_of_ten_percent_is_noticed(seed):
    found = Machine(seed, 0.06).compare(1.1, 1.0)
    assert found.slower
    assert not found.faster
    assert found.median == pytest.approx(1.1, abs=0.04)


@pytest.mark.parametrize("seed", range(20))
def test_equal_functions_are_neither_slower_nor_faster(seed):
    found = Machine(seed, 0.06).compare(1.0, 1.0)
    assert not found.slower
    assert not found.faster


def test_a_saving_is_noticed():
    found = Machine(0, 0.02).compare(0.8, 1.0)
    assert found.faster
    assert not found.slower


def test_a_difference_below_the_spread_is_none():
    assert not ratio([1.0, 1.3, 0.9, 1.5, 1.04], [1.0] * 5).slower
    assert not ratio([1.01] * 5, [1.0] * 5).slower
    assert ratio([1.05] * 5, [1.0] * 5).slower


def test_three_functions_are_run_in_turn():
    calls, now = [], [0.0]

    def of(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds

        return run

    times = interleaved([of("a", 1), of("b", 2), of("c", 3)], pairs=2, warm_up=1, clock=lambda: now[0])
    assert "".join(calls) == "abc" * 3
    assert times == ([1, 1], [2, 2], [3, 3])
    assert gc.isenabled()


def test_a_cold_first_call_is_not_timed_where_functions_settle():
    now, last = [0.0], [""]

    def of(name, seconds):
        def run():
            now[0] += seconds + (last[0] != name) * 1.0  # the caches hold another function's data
            last[0] = name

        return run

    def compare(settle):
        pair = of("a", 0.001), of("b", 0.001)
        times = interleaved([pair[0], pair[1]], least=0.01, settle=settle, clock=lambda: now[0])
        return times[0][0]

    assert compare(0) > 0.1
    assert compare(1) == pytest.approx(0.001)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0])])
def test_a_ratio_needs_pairs(ours, theirs):
    with pytest.raises(ValueError, match="as many times of one as of the other"):
        ratio(ours, theirs)
