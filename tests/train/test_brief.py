import numpy as np
import pytest
import torch
from foveal.train.brief import brief, gain, quantized, trained
from PIL import Image

from foveal.images.resize import imresize
from foveal.measure import benchmarks
from foveal.models.restore.espcn import espcn
from foveal.models.restore.quicksrnet import quicksrnet_small
from foveal.models.restore.sesr import sesr_m3
from foveal.train import brief as module


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("FOVEAL_BRIEF_STEPS", raising=False)
    trained.cache_clear()
    module._held_out.cache_clear()
    yield
    trained.cache_clear()
    module._held_out.cache_clear()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Smooth pictures under every name."""
    rng = np.random.default_rng(0)
    for i in range(3):
        small = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(imresize(small, size=(140, 150))).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(benchmarks, "find", lambda _: tmp_path)
    return tmp_path


def test_the_same_arguments_give_the_same_weights(data):
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = brief(espcn(2), 2, steps=3, seed=seed, folder=data, patch=16, batch=2)
        assert not model.training
        results.append(model.last.weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("luminance", [False, True])
def test_it_learns(data, luminance):
    torch.manual_seed(0)
    model = sesr_m3(2, in_channels=1 if luminance else 3, expand=16)
    torch.nn.init.zeros_(model.last.narrow)  # nearest neighbour
    before = gain(model, 2, luminance=luminance, sets=("any",))
    brief(model, 2, steps=30, folder=data, luminance=luminance, patch=16, batch=4)
    assert gain(model, 2, luminance=luminance, sets=("any",)) > before + 0.5


def test_bicubic_is_no_gain_and_worse_is_less(data):
    class Nearest(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.interpolate(x, scale_factor=2)

    assert gain(Nearest(), 2, sets=("any",)) < -1


def test_seconds_end_it(data):
    model = brief(espcn(2), 2, seconds=0.05, folder=data, patch=16, batch=2)
    assert torch.isfinite(model.last.weight).all()


def test_steps_can_be_overridden(data, monkeypatch):
    torch.manual_seed(0)
    short = brief(espcn(2), 2, steps=2, folder=data, patch=16, batch=2).last.weight.detach()
    monkeypatch.setenv("FOVEAL_BRIEF_STEPS", "2")
    torch.manual_seed(0)
    assert torch.equal(brief(espcn(2), 2, steps=1000, folder=data, patch=16, batch=2).last.weight, short)


@pytest.mark.parametrize("wrong", [{}, {"steps": 1, "seconds": 1.0}])
def test_steps_or_seconds(wrong):
    with pytest.raises(ValueError, match="give exactly one of steps and seconds, got"):
        brief(espcn(2), 2, **wrong)


def test_claims_about_one_network_share_its_training(data):
    state = torch.random.get_rng_state()
    model = trained(quicksrnet_small, 2, steps=1, seed=0)
    assert trained(quicksrnet_small, 2, steps=1, seed=0) is model
    assert trained(quicksrnet_small, 2, steps=1, seed=1) is not model
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_eight_bits_are_near_and_not_equal(data):
    model = quicksrnet_small(2).eval()
    eight = quantized(model, 2, folder=data, pictures=4, patch=32)
    x = torch.rand(1, 3, 21, 34)
    with torch.inference_mode():
        difference = (eight(x) - model(x)).abs()
    assert 0 < difference.mean() < 0.03
