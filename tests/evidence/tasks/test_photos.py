import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.run import run_one
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos
from foveal.images.resize import imresize
from foveal.measure import benchmarks
from foveal.models.restore.sesr import sesr_m3


class Nearest(nn.Module):
    def forward(self, x):
        return F.interpolate(x, scale_factor=2)


class Bicubic(nn.Module):
    """The floor itself, as a network of one picture."""

    def forward(self, x):
        low = x[0].mul(255).round().byte().permute(1, 2, 0).numpy()
        return torch.from_numpy(imresize(low, 2)).permute(2, 0, 1)[None] / 255


class Grey(nn.Module):
    def forward(self, x):
        return torch.full_like(Nearest()(x), 0.5)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Smooth pictures under every name, and nothing cached of them."""
    rng = np.random.default_rng(0)
    for i in range(3):
        small = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(imresize(small, size=(140, 150))).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(benchmarks, "find", lambda _: tmp_path)
    monkeypatch.setattr(photos, "_held_out", photos._held_out.__wrapped__)
    return tmp_path


def test_wrong_networks_lose_to_bicubic_and_bicubic_gains_nothing(data):
    assert photos.gain(Bicubic(), 2, sets=("any",)) == 0
    assert photos.gain(Nearest(), 2, sets=("any",)) < -1
    assert photos.gain(Grey(), 2, sets=("any",)) < photos.gain(Nearest(), 2, sets=("any",))


@pytest.mark.parametrize("luminance", [False, True])
def test_training_helps(data, luminance):
    torch.manual_seed(0)
    model = sesr_m3(2, in_channels=1 if luminance else 3, expand=16)
    nn.init.zeros_(model.last.narrow)  # nearest neighbour
    before = photos.gain(model, 2, luminance=luminance, sets=("any",))
    load = photos.batches(2, 0, luminance=luminance, patch=16, batch=4)
    short_run(model, load, photos.absolute_error, steps=30)
    assert photos.gain(model, 2, luminance=luminance, sets=("any",)) > before + 0.5


def test_batches_depend_on_seed_and_step_alone(data):
    low, high = photos.batches(2, 0, patch=8, batch=2)(3)
    assert low.shape == (2, 3, 8, 8)
    assert high.shape == (2, 3, 16, 16)
    assert torch.equal(photos.batches(2, 0, patch=8, batch=2)(3)[1], high)
    for seed, step in ((1, 3), (0, 4)):
        assert not torch.equal(photos.batches(2, seed, patch=8, batch=2)(step)[1], high)


def test_claims_about_one_network_share_its_training(data, monkeypatch):
    def build(scale, *, in_channels):
        return nn.Sequential(nn.Conv2d(in_channels, in_channels * scale**2, 1), nn.PixelShuffle(scale))

    state = torch.random.get_rng_state()
    model = photos.trained(build, 2, steps=1, seed=0)
    assert photos.trained(build, 2, steps=1, seed=0) is model
    assert photos.trained(build, 2, steps=1, seed=1) is not model
    with rehearsal():
        assert photos.trained(build, 2, steps=1, seed=0) is not model
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("network", "verdict"), [(Bicubic, "holds"), (Nearest, "does not hold")])
def test_claims_turn_against_a_wrong_network(monkeypatch, network, verdict):
    monkeypatch.setattr(photos, "trained", lambda build, *_, **__: build())
    words = {"scale": 2, "steps": 1, "paper": ""}
    with rehearsal():
        above = run_one(photos.above_bicubic(network, "Above bicubic.", by=0.0, **words))
        better = run_one(photos.better(network, "As good as bicubic.", than=Bicubic, **words))
    assert [above.verdict, better.verdict] == [verdict, verdict]
