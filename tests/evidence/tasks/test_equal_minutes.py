from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import STEPS, rehearsal
from foveal.evidence.run import run_one
from foveal.evidence.tasks import equal_minutes, photos
from foveal.evidence.tasks.equal_minutes import Trial


class Clock:
    """Processor time that only networks spend."""

    now = 0.0


class Slow(nn.Module):
    """A 1×1 network that spends `seconds` of the clock at each call."""

    def __init__(self, scale, *, in_channels=3, seconds=1.0):
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(in_channels, in_channels * scale**2, 1), nn.PixelShuffle(scale)
        self.seconds = seconds

    def forward(self, x):
        Clock.now += self.seconds
        return self.shuffle(self.conv(x))


quick = partial(Slow, seconds=0.5)


@pytest.fixture
def clock(monkeypatch):
    def load(step):
        return torch.rand(2, 3, 4, 4), torch.rand(2, 3, 8, 8)

    monkeypatch.setattr(equal_minutes, "time", SimpleNamespace(process_time=lambda: Clock.now))
    monkeypatch.setattr(photos, "batches", lambda *_, **__: load)


def test_a_network_twice_as_fast_takes_twice_the_steps(clock):
    trial = Trial((Slow, quick), 2, 0.5)
    assert (trial.steps(Slow), trial.steps(quick)) == (30, 60)


def test_a_network_slower_than_the_budget_takes_one_step(clock):
    assert Trial((Slow, quick), 2, 0.001).steps(Slow) == 1


def test_the_first_round_and_a_single_slow_round_do_not_count(clock, monkeypatch):
    turns = iter([50.0, 1, 1, 9, 1, 1] + [1.0] * 99)
    plain = equal_minutes.short_run

    def uneven(network, *args, **words):
        plain(network, *args, **words)
        if network.seconds == 1:
            Clock.now += 4 * (next(turns) - 1)

    monkeypatch.setattr(equal_minutes, "short_run", uneven)
    assert Trial((Slow, quick), 2, 0.5).steps(Slow) == 30


def test_each_network_is_trained_once_a_seed_for_its_steps(clock, monkeypatch):
    seen = []

    def trained(build, scale, **words):
        seen.append((build, words["steps"], words["seed"]))
        return build(scale)

    monkeypatch.setattr(photos, "trained", trained)
    monkeypatch.setattr(photos, "gain", lambda model, scale, **_: model.seconds)
    trial = Trial((Slow, quick), 2, 0.5)
    forth = trial.better(Slow, "Better.", than=quick, by=0.4, paper="")
    back = trial.better(quick, "Worse.", than=Slow, by=-0.4, paper="")
    assert [run_one(claim).verdict for claim in (forth, back)] == ["holds", "does not hold"]
    assert seen == [(build, steps, seed) for seed in range(3) for build, steps in ((Slow, 30), (quick, 60))]


def test_a_rehearsal_measures_nothing(monkeypatch):
    monkeypatch.setattr(equal_minutes, "_seconds_of_a_step", None)
    with rehearsal():
        assert Trial((Slow, quick), 2, 0.5).steps(Slow) == STEPS
        claim = equal_minutes.better(Slow, "Better.", than=quick, scale=2, minutes=0.5, by=0, paper="", luminance=True)
        run_one(claim)
    assert "0.5 processor minutes for each network" in claim.check["data"]
    assert claim.needs == photos.NEEDS


def test_a_trial_needs_a_rival():
    with pytest.raises(ValueError, match="compares at least two networks, got 1; add a rival"):
        Trial((Slow,), 2, 0.5)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="minutes must be above 0, got 0"):
        Trial((Slow, quick), 2, 0)


def test_a_network_of_no_trial_is_refused():
    with pytest.raises(ValueError, match="is no network of the trial; add it to builds"):
        Trial((Slow, quick), 2, 0.5).better(Slow, "Better.", than=partial(Slow), by=0.0, paper="")
