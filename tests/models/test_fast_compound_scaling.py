import dataclasses

import pytest
import timm
import torch
from timm.models.regnet import RegNetCfg, model_cfgs
from torch import nn

from foveal.evidence.models.fast_compound_scaling import counted
from foveal.measure.meta import without_storage
from foveal.models.fast_compound_scaling import (
    DEPTH,
    UNIFORM,
    WIDTH,
    AnyNet,
    Stages,
    count,
    fast,
    multipliers,
    roundings,
    scale_stages,
    scaled_regnet,
    stages_of,
)

TINY = RegNetCfg(depth=6, w0=8, wa=8.0, wm=2.0, group_size=4, stem_width=8, se_ratio=0.25)


@pytest.mark.parametrize("shares", [fast(), fast(0.5), UNIFORM, WIDTH, DEPTH])
def test_multiply_adds_grow_by_the_factor(shares):
    depth, width, resolution = multipliers(7.0, shares)
    assert depth * width**2 * resolution**2 == pytest.approx(7)


def test_fast_is_mainly_width():
    assert fast() == pytest.approx((0.1, 0.8, 0.1))
    assert multipliers(4, fast()) == pytest.approx((4**0.1, 4**0.4, 4**0.05))
    assert fast(1 / 3) == pytest.approx(UNIFORM)
    assert fast(1) == WIDTH


@pytest.mark.parametrize("name", ["regnetx_004_tv", "regnetz_005"])
def test_a_factor_of_one_changes_nothing(name):
    cfg = model_cfgs[name]
    stages = stages_of(cfg, 200)
    assert list(roundings(stages, 1, fast())) == [stages]
    assert scale_stages(cfg, 1, img_size=200) == stages
    with without_storage():
        ours, theirs = AnyNet(cfg, stages), timm.create_model(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_with_timms_weights_it_is_timms_network():
    torch.manual_seed(0)
    theirs = timm.models.regnet.RegNet(TINY, num_classes=5).eval()
    ours = AnyNet(TINY, stages_of(TINY), num_classes=5, drop_path_rate=0.1).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 33, 47)
    assert torch.equal(ours(x), theirs(x))


# depths, widths and groups that the authors' code gives for d1_w8_g8_r1 (its resolutions are multiples of 4)
@pytest.mark.parametrize(
    ("name", "factor", "depths", "widths", "group"),
    [
        ("regnety_004", 4, (1, 3, 7, 7), (80, 192, 352, 768), 16),
        ("regnetx_016", 16, (3, 5, 13, 3), (216, 504, 1224, 2736), 72),
    ],
)
def test_the_authors_roundings_are_among_ours(name, factor, depths, widths, group):
    found = {(s.depths, s.widths, s.group_sizes) for s in roundings(stages_of(model_cfgs[name]), factor, fast())}
    assert (depths, widths, (group,) * 4) in found


@pytest.mark.parametrize("shares", [fast(), UNIFORM, WIDTH, DEPTH])
@pytest.mark.parametrize("factor", [0.7, 2, 16])
def test_it_hits_the_multiply_adds(shares, factor):
    cfg = model_cfgs["regnety_008"]
    stages = scale_stages(cfg, factor, shares=shares)
    assert count(cfg, stages).macs == pytest.approx(factor * count(cfg, stages_of(cfg)).macs, rel=0.05)
    assert all(width % group == 0 for width, group in zip(stages.widths, stages.group_sizes, strict=True))


def test_one_direction_leaves_the_other_sizes():
    cfg = model_cfgs["regnetx_006"]
    base, deep, wide = stages_of(cfg), scale_stages(cfg, 4, shares=DEPTH), scale_stages(cfg, 4, shares=WIDTH)
    assert deep == dataclasses.replace(base, depths=deep.depths)
    assert wide == dataclasses.replace(base, widths=wide.widths, group_sizes=wide.group_sizes)


@pytest.mark.parametrize(
    "options", [{}, {"downsample": None, "num_features": 24, "bottle_ratio": 4.0}, {"se_ratio": 0}]
)
def test_counts_are_those_of_a_forward_pass(options):
    cfg = dataclasses.replace(TINY, **options)
    stages = dataclasses.replace(scale_stages(cfg, 3, img_size=64), img_size=51)
    with without_storage():
        model = AnyNet(cfg, stages, num_classes=7)
    found = count(cfg, stages, num_classes=7)
    assert counted(model, 51) == (found.macs, found.activations)


def test_one_convolution_by_hand():
    cfg = dataclasses.replace(TINY, se_ratio=0, downsample=None)
    found = count(cfg, Stages((), (), (), stem_width=8, img_size=9), num_classes=2)
    assert (found.macs, found.activations) == (27 * 8 * 25 + 16, 8 * 25 + 2)


def test_a_scaled_network_trains():
    model, side = scaled_regnet("regnetx_002", 0.5, img_size=64, num_classes=3)
    assert isinstance(model, nn.Module)
    model(torch.randn(2, 3, side, side)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fast(1.2), r"alpha must be in \[0, 1\], got 1.2"),
        (lambda: multipliers(-1, UNIFORM), "factor must be above 0, got -1"),
        (lambda: multipliers(2, (0.5, 0.6, 0.1)), r"must sum to 1, none below 0, got \(0.5, 0.6, 0.1\)"),
        (lambda: multipliers(2, (1.5, -0.5, 0.0)), "none below 0"),
        (lambda: scaled_regnet("resnet50", 2), "a RegNet of timm, such as regnety_004, got 'resnet50'"),
        (
            lambda: scale_stages(model_cfgs["regnetx_080"], 0.5, shares=WIDTH),
            "comes within 5% of 0.5 times its multiply-adds; take another factor",
        ),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
