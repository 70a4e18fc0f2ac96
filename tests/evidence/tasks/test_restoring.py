"""The restoration task: seeds, floors and pairs."""

import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.run import run_one
from foveal.evidence.tasks import restoring


@pytest.fixture(autouse=True)
def _drawn():
    with rehearsal():
        yield


def test_batches_follow_step_and_seed():
    load = restoring.batches(("noise", "rain"), 1, patch=24, batch=3)
    given, wanted = load(4)
    assert given.shape == wanted.shape == (3, 3, 24, 24)
    assert torch.equal(given, restoring.batches(("noise", "rain"), 1, patch=24, batch=3)(4)[0])
    assert not torch.equal(given, load(5)[0])


def test_with_each_a_picture_has_one_damage():
    given, wanted = restoring.batches(("holes", "exposure"), 0, patch=24, batch=4, each=True)(0)
    kept = ((given - wanted).abs().amax(1) == 0).float().mean((1, 2))
    assert all(kept[::2] > 0.5)  # the hole's outside
    assert all(kept[1::2] < 0.5)


def test_the_floor_is_the_damaged_picture_and_truth_is_far_above():
    assert restoring.gain(nn.Identity(), ("noise",)) == 0
    truth = iter(restoring.crops().split(1))
    assert restoring.gain_of(lambda _: next(truth), ("noise",)) > 20


def test_a_network_is_not_better_than_itself():
    def build():
        return nn.Conv2d(3, 3, 1)

    claim = restoring.better(build, "Itself.", than=build, names=("noise",), steps=2, paper="-", beyond="a test")
    assert run_one(claim).value == 0
