import gc
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from toys import holding

from foveal.catalogue.collect import records
from foveal.evidence import run as module
from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.run import RUNNERS, VERDICTS, key, run, run_one
from foveal.measure.paired import paired
from foveal.record import bound, equal, faster, grows, kept, macs, params, smaller


def outcome(claim, **options):
    found = run_one(claim, **options)
    assert found.verdict in VERDICTS
    return found


def verdict(claim, **options):
    return outcome(claim, **options).verdict


def linear():
    return nn.Conv2d(3, 4, 1)  # 16 parameters, 12 multiply-adds a pixel


@pytest.mark.parametrize(("expect", "tolerance", "holds"), [(16, 0, True), (17, 0, False), (17, 0.06, True)])
def test_params_are_counted_within_the_tolerance(expect, tolerance, holds):
    found = outcome(params("P", paper="16", model=linear, expect=expect, tolerance=tolerance))
    assert (found.verdict, found.here, found.value) == ("holds" if holds else "does not hold", "16", 16)


@pytest.mark.parametrize(("expect", "tolerance", "holds"), [(600, 0, True), (601, 0, False), (590, 0.02, True)])
def test_macs_are_counted_at_the_shape(expect, tolerance, holds):
    claim = macs("M", paper="600", model=linear, shape=(1, 3, 5, 10), expect=expect, tolerance=tolerance)
    assert outcome(claim).value == 600
    assert verdict(claim) == ("holds" if holds else "does not hold")


@pytest.mark.parametrize(
    ("ours", "theirs", "holds"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.00001], [1.0, 2.0], True),
        ([1.0, 2.01], [1.0, 2.0], False),
        ([float("nan"), 2.0], [1.0, 2.0], False),
        ([0.0, 0.1], [0.0, 0.0], False),
        ([[1.0, 2.0]], [1.0, 2.0], False),
    ],
)
def test_equal_compares_relative_to_the_largest_value(ours, theirs, holds):
    claim = equal("E", ours=lambda: torch.tensor(ours, requires_grad=True), theirs=lambda: np.array(theirs))
    assert verdict(claim) == ("holds" if holds else "does not hold")


def test_equal_says_how_far_apart():
    found = outcome(equal("E", ours=lambda: np.array([9.0, 1.0]), theirs=lambda: np.array([10.0, 1.0])))
    assert (found.here, found.value) == ("largest difference 0.1 of the largest value", pytest.approx(0.1))
    assert outcome(equal("E", ours=lambda: np.ones(2), theirs=lambda: np.ones(2))).here == "exactly equal"
    shapes = outcome(equal("E", ours=lambda: np.ones(2), theirs=lambda: np.ones(3)))
    assert (shapes.here, shapes.value) == ("shapes (2,) and (3,) differ", None)


def test_equal_refuses_what_it_cannot_compare():
    assert "gave nothing to compare" in outcome(equal("E", ours=lambda: np.ones(0), theirs=lambda: np.ones(0))).reason
    uneven = equal("E", ours=lambda: np.array([1, "a", None], dtype=object), theirs=lambda: np.ones(3))
    assert "compares one tensor or array with another" in outcome(uneven).reason


@pytest.mark.parametrize(("at_least", "holds"), [(2.0, True), (2.01, False)])
def test_smaller_is_theirs_over_ours(at_least, holds):
    found = outcome(smaller("S", paper="", ours=lambda: 50, theirs=lambda: 100, at_least=at_least))
    assert (found.here, found.value) == ("2× (50 against 100)", 2.0)
    assert found.verdict == ("holds" if holds else "does not hold")


def test_smaller_refuses_a_size_of_zero():
    found = outcome(smaller("S", paper="", ours=lambda: 0, theirs=lambda: 100))
    assert (found.verdict, found.value) == ("could not run", None)
    assert "sizes must be above 0, got 0 for ours and 100 for theirs" in found.reason


@pytest.mark.parametrize(
    ("at_least", "said"), [(0.05, "holds"), (0.35, "does not hold"), (0.1, "undecided"), (0.3, "undecided")]
)
def test_kept_is_the_mean_over_the_seeds_and_undecided_within_two_standard_errors(at_least, said):
    seeds = []
    claim = kept(
        "K", paper="", quality=lambda s: seeds.append(s) or s / 10, at_least=at_least, seeds=5, data="toys", unit="%"
    )
    found = outcome(claim)
    assert found.verdict == said
    assert seeds == [0, 1, 2, 3, 4]
    assert found.here == "0.200 % (0.000 to 0.400 over 5 seeds, sees 0.14) on toys"
    assert found.detail["standard_deviation"] == pytest.approx(math.sqrt(0.025))
    assert found.detail["sees"] == pytest.approx(2 * math.sqrt(0.025 / 5))
    assert outcome(claim, quick=True).here == "0.000 %, one seed on toys"


def test_equal_seeds_decide_at_the_bound():
    assert verdict(kept("K", paper="", quality=lambda _: 1.0, at_least=1.0)) == "holds"


def test_a_quality_that_is_not_a_number_does_not_hold():
    assert verdict(kept("K", paper="", quality=lambda seed: math.nan, at_least=-1e9)) == "does not hold"


@pytest.mark.parametrize(("power", "holds"), [(1.0, True), (1.3, False), (0.5, False)])
def test_grows_fits_a_power_of_the_size(power, holds):
    claim = grows("G", paper="", cost=lambda side: side ** (2 * power), sizes=(8, 16, 32), of=lambda side: side**2)
    found = outcome(claim)
    assert found.value == pytest.approx(power)
    assert found.verdict == ("holds" if holds else "does not hold")
    assert found.here == f"exponent {power:.3f} from 64 to 1,024"


def test_grows_takes_the_median_of_rounds_over_all_sizes_in_turn():
    calls = []

    def cost(size):
        calls.append(size)
        return size * (100 if len(calls) == 2 else 1)  # one disturbed measurement

    found = outcome(grows("G", paper="", cost=cost, sizes=(1, 2, 4), rounds=3))
    assert calls == [1, 2, 4] * 3
    assert found.value == pytest.approx(1.0)
    assert "costs must be above 0, got 0" in outcome(grows("G", paper="", cost=lambda _: 0, sizes=(1, 2, 3))).reason


@pytest.mark.parametrize(
    ("bounds", "holds"),
    [({"at_least": 2}, True), ({"at_least": 2.1}, False), ({"at_most": 2}, True), ({"at_most": 1.9}, False)],
)
def test_bound_compares_one_number(bounds, holds):
    found = outcome(bound("B", paper="", value=lambda: 2.0, unit="dB", **bounds))
    assert (found.here, found.verdict) == ("2 dB", "holds" if holds else "does not hold")
    assert "the value is not a number" in outcome(bound("B", paper="", value=lambda: math.nan, **bounds)).reason


def test_a_rehearsal_takes_one_seed_and_is_marked():
    seeds = []
    claim = kept("K", paper="", quality=lambda s: seeds.append(s) or 0.0, at_least=0, needs=("minutes", "Set99"))
    with rehearsal():
        found = outcome(claim)
    assert (seeds, found.rehearsed) == ([0], True)
    assert not outcome(holding()).rehearsed
    assert outcome(holding(), quick=True).rehearsed


@pytest.fixture
def clock(monkeypatch):
    """Time passes only when told."""
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def spend(clock, seconds):
    def function():
        clock[0] += next(seconds) if hasattr(seconds, "__next__") else seconds

    return function


def test_paired_runs_the_two_in_turn_after_a_warm_up():
    calls, now = [], [0.0]

    def of(name, seconds):
        def function():
            calls.append(name)
            now[0] += seconds

        return function

    ours, theirs = paired(of("a", 1.0), of("b", 3.0), pairs=3, warm_up=2, clock=lambda: now[0])
    assert "".join(calls) == "abab" + "ab" * 3
    assert (ours, theirs) == ([1.0] * 3, [3.0] * 3)
    assert gc.isenabled()


@pytest.mark.parametrize(("seconds", "pairs"), [(1.0, 15), (2.0, 10), (100.0, 5)])
def test_paired_times_fewer_pairs_of_slow_functions(seconds, pairs):
    now = [0.0]

    def slow():
        now[0] += seconds / 2

    ours, theirs = paired(slow, slow, most=20.0, clock=lambda: now[0])
    assert len(ours) == len(theirs) == pairs


def test_paired_repeats_short_functions_within_one_timing():
    calls, now = [], [0.0]

    def short():
        calls.append(0)
        now[0] += 0.001

    ours, theirs = paired(short, lambda: None, pairs=2, warm_up=1, least=0.01, clock=lambda: now[0])
    assert len(calls) == 1 + 2 * 10
    assert ours == pytest.approx([0.001] * 2)
    assert theirs == [0.0] * 2


@pytest.mark.parametrize(("at_least", "holds"), [(1.99, True), (2.1, False)])
def test_faster_is_the_median_of_paired_ratios(clock, at_least, holds):
    # A busy moment slows the third pair as a whole, and one call of theirs.
    a = itertools.chain([0.1, 0.1, 0.1, 0.1, 0.5, 0.1, 0.1], itertools.repeat(0.1))
    b = itertools.chain([0.2, 0.2, 0.2, 0.2, 1.0, 0.9, 0.2], itertools.repeat(0.2))
    claim = faster("F", paper="", ours=lambda: spend(clock, a), theirs=lambda: spend(clock, b), at_least=at_least)
    found = outcome(claim)
    assert found.value == pytest.approx(2.0)
    assert found.verdict == ("holds" if holds else "does not hold")
    assert found.detail["pairs"] == 15
    assert (found.detail["smallest"], found.detail["largest"]) == (pytest.approx(2.0), pytest.approx(9.0))
    assert found.here == "2.00× (quartiles 2.00–2.00; 100 ms against 200 ms)"
    assert outcome(claim, quick=True).detail["pairs"] == 5


@pytest.mark.parametrize("breaks", [False, True])
def test_faster_sets_torch_threads_and_puts_them_back(clock, breaks):
    before, seen = torch.get_num_threads(), set()

    def work():
        seen.add(torch.get_num_threads())
        clock[0] += 1
        if breaks:
            raise RuntimeError("broken")

    found = outcome(faster("F", paper="", ours=lambda: work, theirs=lambda: work, threads=before + 1))
    assert seen == {before + 1}
    assert torch.get_num_threads() == before
    assert gc.isenabled()
    assert found.verdict == ("could not run" if breaks else "holds")
    if not breaks:
        assert found.threads == before + 1


def test_an_exception_is_reported_with_its_trace_and_the_others_go_on():
    def broken():
        raise ZeroDivisionError("a toy broke")

    first, second = run((holding("First.", ours=broken), holding("Second.")), source="abc")
    assert (first.verdict, first.here, first.value) == ("could not run", "", None)
    assert first.reason == "ZeroDivisionError: a toy broke"
    assert "in broken" in first.trace
    assert (second.verdict, second.source) == ("holds", "abc")


def test_each_outcome_is_handed_over_as_it_comes():
    claims, seen = (holding("First."), holding("Second.")), []
    assert run(claims, done=seen.append) == seen


def test_a_claim_that_wants_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert outcome(holding(needs=("gpu",))).reason == "needs a GPU; run it on a machine that has one"


def test_missing_data_is_told_and_counts_as_not_passed(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEAL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    called = []
    claim = holding(ours=lambda: called.append(1) or 1.0, needs=("minutes", "Set5"))
    found = outcome(claim)
    assert found.verdict == "could not run"
    assert "'Set5' is not on this machine" in found.reason
    assert not called
    (tmp_path / "Set5").mkdir()
    assert verdict(claim) == "holds"
    assert "no benchmark set is called 'Set99'" in outcome(holding(needs=("Set99",))).reason


def test_quick_skips_what_needs_minutes():
    found = outcome(holding(needs=("minutes",)), quick=True)
    assert (found.verdict, found.reason) == ("skipped", "needs minutes of training; run without --quick")


def test_only_one_kind_and_each_is_announced():
    claims, announced = (holding(), params("P", paper="16", model=linear, expect=16)), []
    assert [o.kind for o in run(claims, only="params", announce=announced.append)] == ["params"]
    assert announced == [claims[1]]
    with pytest.raises(ValueError, match=r"no kind of claim is called 'fast'; the kinds are params, macs, equal"):
        run(claims, only="fast")


def test_an_outcome_says_when_where_and_with_what():
    found = outcome(holding())
    assert found.machine["processor"]
    assert found.machine["cores"] >= 1
    assert found.threads >= 1
    assert {"python", "foveal", "torch"} <= set(found.versions)
    assert len(found.date) == 10


def test_key_changes_with_words_and_bounds_but_not_with_code():
    plain = key(holding())
    assert plain == key(holding(ours=lambda: 7.0))
    for changed in ({"says": "Other."}, {"paper": "3 times"}, {"at_least": 1.5}, {"needs": ("Set5",)}):
        assert key(holding(**changed)) != plain


def test_every_kind_of_claim_has_a_runner():
    built = {bound, equal, faster, grows, kept, macs, params, smaller}
    assert set(RUNNERS) == {constructor.__name__ for constructor in built}
    assert all(claim.kind in RUNNERS for item in records().values() for claim in item.claims)
