"""Swapping layers: which are taken, what is put back, and what is refused."""

import pytest
import timm
import torch
from torch import nn

import foveal
from foveal.shrink.rebuild import load, origin_of, save
from foveal.shrink.step import ShrinkError, noted
from foveal.shrink.swap import swap as module
from foveal.shrink.swap.operators import LAYERS, OPERATORS, operator
from foveal.shrink.swap.swap import Swap, try_all

SHAPE = (1, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions, one depthwise, one that runs twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.narrow = nn.Conv2d(8, 4, 3, stride=2)

    def forward(self, x):
        x = self.second(self.depthwise(self.first(x)))
        return self.narrow(self.twice(self.twice(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The stand-in takes half of the time, so that no test depends on a clock."""

    def interleaved(functions, **_):
        return tuple([1.0 / (i + 1)] * 5 for i in range(len(functions)))

    monkeypatch.setattr(module, "interleaved", interleaved)


def halved(layer, shape):
    return nn.Sequential(layer, nn.Identity())


def test_an_own_operator_that_is_equal_leaves_the_outputs_unchanged(net):
    x = torch.randn(2, 3, 8, 8)
    swapped = foveal.swap(net, halved, of="conv", shape=SHAPE)
    assert torch.equal(swapped.model(x), net(x))
    assert [line.kept for line in swapped.layers] == [True, True, False, True]
    assert swapped.count == 3
    assert isinstance(net.second, nn.Conv2d)  # a copy was changed
    assert isinstance(swapped.model.second, nn.Sequential)
    assert swapped.layers[0].difference == 0
    assert "it runs more than once" in str(swapped)
    assert str(swapped).endswith("3 of 4 layers replaced")


def test_where_takes_a_pattern_or_a_function(net):
    assert [line.name for line in foveal.swap(net, "pconv", where="s*", shape=SHAPE).layers] == ["second"]
    found = foveal.swap(net, "pconv", where=lambda name, layer: layer.in_channels == 3, shape=SHAPE)
    assert [line.name for line in found.layers] == ["first"]


def test_a_layer_that_an_operator_refuses_stays(net):
    line = foveal.swap(net, "pconv", where="narrow", shape=SHAPE).layers[0]
    assert not line.kept
    assert line.ratio is None
    assert "needs stride 1" in line.why


def test_a_slower_stand_in_is_not_kept(net, monkeypatch):
    monkeypatch.setattr(module, "interleaved", lambda functions, **_: ([1.0] * 5, [2.0] * 5))
    swapped = foveal.swap(net, halved, of="conv", shape=SHAPE)
    assert swapped.count == 0
    assert isinstance(swapped.model.second, nn.Conv2d)
    assert "left: not faster" in str(swapped)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_leaves_a_network_that_runs_and_can_be_saved(name, tmp_path):
    torch.manual_seed(0)
    kind = OPERATORS[name].of
    model = timm.create_model({"conv": "test_resnet", "depthwise": "test_convnext", "attention": "test_vit"}[kind])
    x = torch.randn(2, *model.default_cfg["input_size"])
    swapped = foveal.swap(model, name, keep_if="always", data=x)
    assert swapped.count
    out = swapped.model(x)
    assert out.shape == (2, 1000)
    save(swapped.model, tmp_path, origin_of(model))
    assert torch.equal(load(tmp_path)(x), out)


class Masked(nn.Module):
    """A layer that is called with a mask, which may be None."""

    def __init__(self, mask):
        super().__init__()
        self.layer, self.mask = timm.layers.Attention(8, 2), mask

    def forward(self, x):
        return self.layer(x, attn_mask=self.mask)


def test_what_is_off_is_dropped_and_what_is_not_is_left_or_refused():
    x = torch.randn(2, 5, 8)
    masked = Masked(torch.zeros(2, 1, 5, 5))
    assert "more than one tensor" in foveal.swap(masked, "fftnet", data=x).layers[0].why
    model = foveal.swap(Masked(None), "fftnet", keep_if="always", data=x).model
    assert model(x).shape == x.shape
    model.mask = masked.mask
    with pytest.raises(ShrinkError, match="takes its input alone, got a mask or another argument too"):
        model(x)


def test_always_asks_no_clock(net, monkeypatch):
    monkeypatch.delattr(module, "interleaved")
    swapped = foveal.swap(net, halved, of="conv", shape=SHAPE, keep_if="always")
    assert swapped.count == 3
    assert str(swapped).startswith("first  3×8×8  apart by 0  halved")


def test_fitting_brings_a_stand_in_nearer(net):
    data = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    far, near = (foveal.swap(net, "pconv", where="second", data=data, fit=steps).layers[0] for steps in (0, 60))
    assert near.difference < 0.9 * far.difference


def test_pconv_is_equal_on_flat_pictures():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, padding=1)
    x = torch.randn(1, 8, 1, 1).expand(1, 8, 7, 7)
    torch.testing.assert_close(operator("pconv").stand_in(conv, x.shape)(x)[..., 1:-1, 1:-1], conv(x)[..., 1:-1, 1:-1])


def test_the_step_says_what_it_did(net):
    with noted() as notes:
        out = Swap("pconv", where="*c*").apply(net, torch.randn(2, *SHAPE[1:]))
    assert isinstance(out.second, nn.Sequential)
    assert notes == ["swap: pconv replaced 1 of 2 layers", "swap: left 1: it runs more than once"]


def test_try_all_leaves_out_operators_without_a_layer(net):
    assert "pconv" in try_all(net, shape=SHAPE)
    with pytest.raises(ShrinkError, match="Linear has no layer that an operator can stand in for"):
        try_all(nn.Linear(3, 3), shape=(1, 3))


def test_kinds_of_layers():
    assert LAYERS["conv"](nn.Conv2d(3, 8, 3))
    assert not LAYERS["conv"](nn.Conv2d(3, 8, 1))
    assert not LAYERS["conv"](nn.Conv2d(8, 8, 3, groups=8))
    assert LAYERS["depthwise"](nn.Conv2d(8, 8, 3, groups=8))
    assert not LAYERS["depthwise"](nn.Conv2d(8, 8, 3, groups=4))
    assert not LAYERS["attention"](nn.MultiheadAttention(8, 2))
    assert {item.of for item in OPERATORS.values()} <= set(LAYERS)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"to": "pcon"}, "no operator is called 'pcon'; did you mean 'pconv'"),
        ({"to": "pconv", "of": "linear"}, "of must be a class of layers or one of conv, depthwise, attention, got"),
        ({"to": "pconv", "of": nn.LSTM}, "Net has no layer of kind LSTM; nothing to replace"),
        ({"to": "pconv", "where": "x*"}, "has no layer of kind conv where 'x\\*'"),
        ({"to": "pconv", "keep_if": "smaller"}, "keep_if must be one of faster, always, got 'smaller'"),
        ({"to": halved}, "a function as `to` needs `of`"),
        ({"to": "pconv", "fit": -1}, "fit must be at least 0 steps, got -1"),
        (
            {"to": lambda layer, shape: nn.Flatten(), "of": "depthwise"},
            r"must give \(1, 8, 8, 8\) for .* got \(1, 512\)",
        ),
    ],
)
def test_errors(net, options, text):
    with pytest.raises(ValueError, match=text):
        foveal.swap(net, shape=SHAPE, **options)


def test_what_is_no_network_is_refused():
    with pytest.raises(ShrinkError, match=r"swap takes an nn.Module, got int"):
        foveal.swap(3, "pconv")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"to": "x"}, "no operator is called"),
        ({"to": "pconv", "of": "linear"}, "of must be one of conv"),
        ({"to": "pconv", "keep_if": "x"}, "keep_if must be one of"),
        ({"to": "pconv", "fit": -1}, "fit must be at least 0 steps"),
    ],
)
def test_errors_of_the_step(options, text):
    with pytest.raises(ValueError, match=text):
        Swap(**options)
