import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import photos, routed
from foveal.measure.cost import count_macs


@pytest.fixture(autouse=True)
def _rehearsal():
    with rehearsal():
        yield


class Upscale(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x):
        return torch.pixel_shuffle(self.conv(x), 2)


def test_gain_and_cost_are_those_of_the_test_pictures():
    network, lows = Upscale(), routed.pictures(2)
    found = routed.measured(network, 2)
    assert len(lows) == len(photos.HELD_OUT)
    assert found.macs == sum(count_macs(network, tuple(x.shape)) for x in lows)
    assert found.gain == photos.gain(network, 2)


def test_a_photograph_has_the_size_asked_for():
    x = routed.photograph(31, 17)
    (low,) = {tuple(x.shape) for x in routed.pictures(2, ("BSD100",))}
    assert x.shape == (1, 3, 31, 17)
    torch.testing.assert_close(x[..., : low[2], : low[3]], routed.pictures(2, ("BSD100",))[0])


def test_what_is_timed_runs_on_a_photograph():
    seen = []

    def prepare(x):
        seen.append(x.shape)
        return Upscale()

    run = routed.timed(prepare, 9, 11)()
    assert seen == [(1, 3, 9, 11)]
    assert run().shape == (1, 3, 18, 22)
