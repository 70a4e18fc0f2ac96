from functools import partial

import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import blobs


def test_pictures_depend_on_the_seed_alone():
    (x, masks), (again, _), (others, _) = (blobs.pictures(5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(x, again)
    assert not torch.equal(x, others)
    assert x.shape == (5, 1, 32, 32)
    assert set(masks.unique().tolist()) == {0, 1}
    inside, outside = x[:, 0][masks == 1].mean(), x[:, 0][masks == 0].mean()
    assert inside > outside + 0.4


def test_dice_by_hand():
    found, filled = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
    assert blobs.dice(found, filled) == 50
    assert blobs.dice(filled, filled) == 100


def test_the_floor_is_far_below_what_can_be_reached():
    assert blobs.floor() == pytest.approx(30.8, abs=0.1)


def test_a_rehearsed_claim_compares_two_networks():
    def build(in_channels, num_classes, kernel_size):
        return nn.Conv2d(in_channels, num_classes, kernel_size, padding=kernel_size // 2)

    one, nine = (partial(build, kernel_size=k) for k in (1, 9))
    claim = blobs.better(nine, "Better.", than=one, steps=10, paper="", beyond="a test")
    same = blobs.better(one, "Equal.", than=one, steps=10, paper="", beyond="a test")
    with rehearsal():
        assert claim.check["quality"](0) != 0
        assert same.check["quality"](0) == 0
    assert claim.check["data"] == "10 steps on drawn pictures of 32×32, 400 others for the score"
