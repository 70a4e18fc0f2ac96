from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import autoencoding, features
from foveal.evidence.tasks.autoencoding import Autoencoder, Reconstruction


class Whole(nn.Module):
    """Gives pictures back; their codes are the pictures."""

    def forward(self, x):
        return x

    def encode(self, x):
        return x.flatten(1)


class Flat(Whole):
    """Gives the mean colour of each picture; codes say nothing."""

    def forward(self, x):
        return x.mean((2, 3), keepdim=True).expand_as(x)

    def encode(self, x):
        return x.new_ones(len(x), 3)


@pytest.fixture
def pictures(monkeypatch):
    """Two classes of smooth pictures, dark and bright."""

    def drawn(part, *, limit=None):
        generator = torch.Generator().manual_seed(len(part))
        labels = torch.arange(40) % 2
        coarse = torch.rand(40, 3, 4, 4, generator=generator) * 0.4 + 0.5 * labels.view(-1, 1, 1, 1)
        return F.interpolate(coarse, 32, mode="bilinear").mul(255).round().div(255)[:limit], labels[:limit]

    monkeypatch.setattr(features, "pictures", drawn)


@pytest.mark.usefixtures("pictures")
@pytest.mark.dear("all pictures are coded and probed")
def test_scores_of_a_perfect_and_of_a_useless_network():
    whole, flat = Whole(), Flat()
    assert autoencoding.psnr(whole) > 70 > autoencoding.psnr(flat)
    assert autoencoding.detail(whole) == 1
    assert autoencoding.detail(flat) == 0
    with rehearsal():
        assert autoencoding.agreement(whole) == 100
    assert autoencoding.probe(whole) == 100
    assert autoencoding.probe(flat) == 50


@pytest.mark.usefixtures("pictures")
def test_a_training_is_the_same_for_the_same_seed():
    training = partial(Reconstruction, loss=F.mse_loss)
    with rehearsal():
        first, again, other = (autoencoding.trained.__wrapped__(training, seed) for seed in (0, 0, 1))
    assert torch.equal(first.encode[0].weight, again.encode[0].weight)
    assert not torch.equal(first.encode[0].weight, other.encode[0].weight)


@pytest.mark.usefixtures("pictures")
@pytest.mark.dear("sixty training steps")
def test_a_training_lowers_the_loss(monkeypatch):
    monkeypatch.setattr(autoencoding, "STEPS", 60)
    monkeypatch.setattr(autoencoding, "BATCH", 4)
    trained = autoencoding.trained.__wrapped__(partial(Reconstruction, loss=F.mse_loss), 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = Autoencoder()
    assert autoencoding.psnr(trained) > autoencoding.psnr(fresh) + 1
