import copy

import pytest
import torch
from torch import nn

from foveal.nn.mamba import Mamba
from foveal.shrink.quantize.mamba import Codes, IntegerMamba, Point, Watch, integers_, levels, round_to, watched


def stack(*, bidirectional=True):
    torch.manual_seed(0)
    return nn.Sequential(Mamba(8, state=4, bidirectional=bidirectional), nn.LayerNorm(8), Mamba(8, state=4))


def tokens(count=5, *, batch=3):
    return torch.randn(batch, count, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_taken_apart_it_computes_the_same(bidirectional):
    model = stack(bidirectional=bidirectional)
    whole = copy.deepcopy(model)
    mixers = integers_(model)
    assert [type(m) for m in model] == [IntegerMamba, nn.LayerNorm, IntegerMamba]
    assert mixers == [model[0], model[2]]
    torch.testing.assert_close(model(tokens()), whole(tokens()))
    assert integers_(model) == mixers


def test_a_model_without_mixers_is_refused():
    with pytest.raises(ValueError, match=r"model must hold a mixer of foveal.nn.mamba, got Linear without one; wrap"):
        integers_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got Mamba without one"):
        integers_(Mamba(8, state=2))


def test_rounding():
    assert levels(8) == 127
    assert levels(4) == 7
    x = torch.tensor([-3.0, -0.6, 0.2, 0.5, 0.7, 9.0])
    assert round_to(x, torch.tensor(0.5), bits=3).tolist() == [-4, -1, 0, 1, 1, 3]


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


def test_four_bits_are_packed_in_half_bytes():
    codes = torch.randint(-8, 8, (5, 6), dtype=torch.int8)
    scale = torch.rand(5, 2).half()
    kept = Codes(codes, scale, bits=4, group_size=4)
    assert kept.packed.shape == (5, 3)
    assert kept.nbytes == 5 * 3 + 5 * 2 * 2
    assert torch.equal(kept.codes(), codes)
    torch.testing.assert_close(kept()[:, 3], codes[:, 3] * scale[:, 0].float())
    torch.testing.assert_close(kept()[:, 4], codes[:, 4] * scale[:, 1].float())


def test_eight_bits_keep_any_shape():
    codes = torch.randint(-128, 128, (3, 1, 4), dtype=torch.int8)
    kept = Codes(codes, torch.tensor(0.5))
    assert torch.equal(kept(), codes * 0.5)
    assert kept.nbytes == 12 + 4


def test_an_odd_row_of_four_bits_is_refused():
    with pytest.raises(ValueError, match=r"codes of 4 bits need an even number of columns, got shape \(2, 3\)"):
        Codes(torch.zeros(2, 3, dtype=torch.int8), torch.ones(2, 1), bits=4, group_size=4)
