from functools import partial

import numpy as np
import pytest
import torch
from documents import ROOT
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import foveal
from foveal.measure.cost import count_macs
from foveal.shrink.step import ShrinkError, noted
from foveal.shrink.steps import step_class
from foveal.shrink.tokens.foveate import METHODS, Foveate, look, picture_shape

vit = partial(VisionTransformer, img_size=32, patch_size=4, embed_dim=12, depth=3, num_heads=2, num_classes=3)
SHAPE = (1, 3, 32, 32)


def network(**words):
    torch.manual_seed(0)
    return vit(**words).eval()


def pictures(batch=2):
    return torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", ["merge", "drop"])
def test_it_spends_what_it_may_and_no_more(method):
    whole = count_macs(network(), SHAPE)
    model = foveal.foveate(network(), 0.7, method=method, multiple=1)
    assert 0.6 < count_macs(model, SHAPE) / whole <= 0.7
    route = look(model, pictures())
    assert route.work.shape == (2, 8, 8)
    # each patch's share of the MLPs: 0 for those that went, divided among those that merged
    assert route.share == pytest.approx((route.work.sum((1, 2)).mean() * 3 + 3) / (3 * 65), abs=1e-5)
    assert route.draw(np.zeros((32, 32, 3), np.uint8)).shape == (32, 32, 3)


@pytest.mark.parametrize("method", ["merge", "drop"])
def test_a_budget_of_1_is_exact_and_works_everywhere(method):
    model = foveal.foveate(network(), 1, method=method)
    assert torch.equal(model(pictures()), network()(pictures()))
    route = look(model, pictures())
    assert route.share == 1
    assert np.all(route.work == 1)


def test_it_is_a_step_that_says_what_it_chose():
    assert step_class("foveate") is Foveate
    with noted() as notes:
        Foveate(0.7, "drop", options={"multiple": 1}).apply(network())
    assert notes[0].startswith("drop keeps 0.")


def test_every_method_is_a_step_with_keep():
    for name in METHODS:
        assert step_class(name)(keep=0.5).keep == 0.5


def test_every_method_is_in_the_docs():
    for page in ("foveate", "shrink"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        assert [name for name in METHODS if f"\n| `{name}` | " not in text] == []


def test_the_size_of_the_pictures():
    assert picture_shape(network(in_chans=1)) == (1, 1, 32, 32)
    assert picture_shape(foveal.create_model("plainmamba_l1", num_classes=2))[2:] == (224, 224)
    with pytest.raises(ShrinkError, match=r"Linear does not say the size of its pictures; give shape=\(1, 3, H, W\)"):
        picture_shape(nn.Linear(2, 2))


def test_what_cannot_be_raises():
    for budget in (0, 1.5, -1):
        with pytest.raises(ValueError, match=rf"budget must be in \(0, 1\], got {budget}"):
            foveal.foveate(network(), budget)
    with pytest.raises(ShrinkError, match="no method is called 'merg'; did you mean 'merge'"):
        foveal.foveate(network(), 0.5, method="merg")
    with pytest.raises(ShrinkError, match=r"budget 0.01 cannot be met by drop: the least that it can is 0\.\d+"):
        foveal.foveate(network(), 0.01, method="drop")
    with pytest.raises(TypeError, match="model must be a vision transformer of timm, got Sequential"):
        foveal.foveate(nn.Sequential(), 0.5, shape=SHAPE)
    with pytest.raises(ShrinkError, match=r"VisionTransformer routes nothing; apply foveal.foveate\(model, budget"):
        look(network(), pictures())
