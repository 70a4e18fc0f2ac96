"""The zoo trial: the rival is the width of nearest latency, and a worse network does not pass."""

from functools import partial

import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import zoo
from foveal.evidence.tasks.zoo import MixerNet, Zoo, widths


class Ours(nn.Module):
    pass


def test_the_scaffold_and_its_gradients():
    torch.manual_seed(0)
    net = MixerNet(lambda dim: nn.Conv2d(dim, dim, 3, padding=1, groups=dim), 8, depths=(1, 2))
    out = net(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 10)
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_widths_builds_each():
    assert [build().out_features for build in widths(lambda dim: nn.Linear(1, dim), (2, 5))] == [2, 5]


def test_the_nearest_latency_is_taken(monkeypatch):
    rivals = widths(lambda dim: nn.Linear(1, dim), (2, 5, 9))
    monkeypatch.setattr(zoo, "interleaved", lambda functions, **_: ([1.0] * 5, [0.5] * 5, [1.04] * 5, [1.5] * 5))
    trial = Zoo(Ours, rivals, "lines")
    assert trial.rival is rivals[1]


def test_unmatched_the_first_is_taken():
    rivals = widths(lambda dim: nn.Linear(1, dim), (2, 5))
    assert Zoo(Ours, rivals, "lines", matched=False).rival is rivals[0]


def test_none_near_enough_is_an_error(monkeypatch):
    monkeypatch.setattr(zoo, "interleaved", lambda functions, **_: ([1.0] * 5, [0.5] * 5))
    with pytest.raises(ValueError, match=r"no width of lines is within 5% .* the nearest differs by 100%"):
        _ = Zoo(Ours, (Ours,), "lines").rival


@pytest.mark.parametrize(("values", "holds"), [([1.0, -1.0, -0.5], True), ([-1.0, -1.2, -0.8], False)])
def test_the_bar_allows_one_standard_error(monkeypatch, values, holds):
    trial = Zoo(Ours, (Ours,), "lines")
    monkeypatch.setattr(zoo, "_difference", lambda _, seed: values[seed])
    above, distance = trial.claims(clause=3)
    assert (above.check["value"]() >= 0) == holds
    assert [distance.check["quality"](seed) for seed in range(3)] == values
    assert above.clause == 3


def test_a_rehearsal_runs_it():
    build = partial(MixerNet, lambda dim: nn.Conv2d(dim, dim, 3, padding=1, groups=dim), 4, depths=(1, 1))
    with rehearsal():
        trial = Zoo(build, (build,), "itself")
        assert trial.steps == (2, 2)
        assert trial.difference(0) == 0.0


@pytest.mark.parametrize(
    ("options", "text"),
    [({"rivals": ()}, "compares a network with a rival, got none"), ({"minutes": 0}, "minutes must be above 0, got 0")],
)
def test_errors(options, text):
    with pytest.raises(ValueError, match=text):
        Zoo(**({"ours": Ours, "rivals": (Ours,), "name": "x"} | options))
