import pytest
import torch
from torch import nn

from foveal.nn.mamba import Mamba
from foveal.shrink.quantize.mamba import integers_
from foveal.shrink.quantize.points import Point, Watch, watched


def stack():
    torch.manual_seed(0)
    return nn.Sequential(Mamba(8, state=4, bidirectional=True), nn.LayerNorm(8), Mamba(8, state=4))


def tokens(count=5, *, batch=3):
    return torch.randn(batch, count, 8, generator=torch.Generator().manual_seed(1))


def test_a_point_rounds_by_channel():
    point, x = Point(axis=1), torch.randn(2, 3, 50)
    assert torch.equal(point(x), x)
    point.set(x.abs().amax((0, 2)))
    step = x.abs().amax((0, 2)) / 127
    assert ((point(x) - x).abs() <= step[:, None] / 2 + 1e-7).all()
    assert (point(x) - x).abs().max() > 0
    point.set(torch.tensor(0.1))
    assert point(x).abs().max() == pytest.approx(0.1 * 128 / 127)


def test_a_watch_keeps_maxima_products_and_the_percentile():
    first, second = torch.arange(1.0, 101).view(50, 2), -torch.arange(1.0, 201).view(100, 2)
    watch = Watch(percentile=0.9, gram=True)
    watch.update(first)
    watch.update(second)
    assert watch.largest.tolist() == [199, 200]
    assert watch.clip() == pytest.approx((90 + 180) / 2)
    assert watch.count == 150
    torch.testing.assert_close(watch.gram, (first.mT @ first + second.mT @ second).double())
    every = Watch()
    every.update(first)
    every.update(second)
    assert every.clip() == 200


def test_points_see_what_the_mixer_computes():
    model = stack()
    mixer = integers_(model)[0]
    watches = {mixer.point(name): Watch(gram=True) for name in mixer.points}
    assert watched(model, tokens(batch=40), watches) is watches
    seen = {name: watches[mixer.point(name)] for name in mixer.points}
    assert set(seen) == {"tokens", "x", "z", "y"} | {
        n + w for n in ("u", "step", "B", "C", "delta") for w in ("", "_b")
    }
    assert len(seen["tokens"].clips) == 2  # 32 and 8
    assert seen["tokens"].clip() == tokens(batch=40).abs().max()
    assert {name: len(watch.largest) for name, watch in seen.items() if not name.endswith("_b")} == {
        "tokens": 8, "x": 16, "z": 16, "y": 16, "u": 16, "step": 1, "B": 4, "C": 4, "delta": 16,
    }  # fmt: skip
    assert all(point.watch is None for point in watches)


def test_calibration_must_give_something():
    model = stack()
    watches = {mixer.point("u"): Watch() for mixer in integers_(model)}
    with pytest.raises(ValueError, match="calibration must give at least one batch that reaches every mixer, got none"):
        watched(model, [], watches)


def test_watching_leaves_the_mode_alone():
    model = stack().train()
    watched(model, tokens(), {mixer.point("u"): Watch() for mixer in integers_(model)})
    assert model.training
