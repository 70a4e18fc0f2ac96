import pytest
import torch
from torch import nn

from foveal.models.backbone.vim2 import ChannelMixer, MixerStage, ViM2, vim2_tiny
from foveal.nn.ss2d import SS2D

TINY = {"dim": 8, "state": 2, "window": 2, "num_classes": 4}


@pytest.mark.parametrize("size", [(7, 7), (6, 13), (1, 2)])
def test_the_channel_mixer_takes_any_size_and_any_channels(size):
    torch.manual_seed(0)
    mixer = ChannelMixer(3, state=2)
    for dim in (1, 5):
        x = torch.randn(2, dim, *size)
        y = mixer(x)
        assert y.shape == x.shape
        # windows do not see each other
        other = x.clone()
        other[..., 0, 0] += 1
        changed = (mixer(other) - y).abs().amax((0, 1)) > 0
        assert changed[:3, :3].all()
        assert not changed[3:].any()
        assert not changed[:, 3:].any()


def test_channels_reach_each_other_in_both_directions():
    torch.manual_seed(0)
    mixer, x = ChannelMixer(2), torch.randn(1, 6, 2, 2, requires_grad=True)
    for seen, other in ((0, 5), (5, 0)):
        x.grad = None
        mixer(x)[:, seen].sum().backward()
        assert x.grad[:, other].abs().min() > 0


def test_each_mixer_is_fed_the_weighted_sum_of_all_before_it():
    stage, x = MixerStage([nn.Conv2d(2, 2, 1) for _ in range(3)]), torch.randn(1, 2, 3, 3)
    assert [w.tolist() for w in stage.weights] == [[1.0], [0.0, 1.0], [0.0, 0.0, 1.0]]
    with torch.no_grad():
        for weights in stage.weights:
            weights.copy_(torch.rand(len(weights)))
    w, (first, second, third) = stage.weights, stage.mixers
    a = first(w[0][0] * x)
    b = second(w[1][0] * x + w[1][1] * a)
    torch.testing.assert_close(stage(x), third(w[2][0] * x + w[2][1] * a + w[2][2] * b))


def test_a_channel_mixer_follows_every_second_token_mixer():
    model = ViM2(depths=(5, 1), **TINY)
    assert ["T" if isinstance(m.mixer, SS2D) else "C" for m in model.stages[0][0].mixers] == list("TTCTTCTC")
    assert [len(stage[-1].mixers) for stage in model.stages] == [8, 2]
    model = ViM2(depths=(5, 1), mix_channels=False, **TINY)
    assert [len(stage[-1].mixers) for stage in model.stages] == [5, 1]


@pytest.mark.parametrize("size", [(32, 32), (57, 41), (5, 70)])
def test_any_size(size):
    assert vim2_tiny(depths=(1, 1), **TINY).eval()(torch.rand(1, 3, *size)).shape == (1, 4)
