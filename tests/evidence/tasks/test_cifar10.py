import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.run import run_one
from foveal.evidence.tasks import cifar10
from foveal.measure import benchmarks


def data(count=200):
    """Two classes: which half of the row is bright."""
    x = torch.rand(count, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 2
    x[labels == 0, ..., :4] += 1
    x[labels == 1, ..., 4:] += 1
    return x, labels


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 2))


class Always(nn.Module):
    """Names one class, whatever it sees; a parameter so that it can be trained."""

    def __init__(self, label, classes=10):
        super().__init__()
        self.scores = nn.Parameter(torch.eye(classes)[label])

    def forward(self, x):
        return self.scores.expand(len(x), -1)


def test_learns_and_is_the_same_for_the_same_seed():
    first = cifar10.train_classifier(build, steps=60, seed=1, data=data(), flip=False)
    assert cifar10.accuracy(first, data()) > 95
    again = cifar10.train_classifier(build, steps=60, seed=1, data=data(), flip=False)
    assert torch.equal(first[1].weight, again[1].weight)
    other = cifar10.train_classifier(build, steps=60, seed=2, data=data(), flip=False)
    assert not torch.equal(first[1].weight, other[1].weight)


def test_flipping_makes_left_and_right_one():
    assert cifar10.accuracy(cifar10.train_classifier(build, steps=60, data=data(), flip=True), data()) < 80


def test_a_network_that_always_says_the_same_is_at_the_floor():
    assert cifar10.accuracy(Always(0, classes=2), data()) == 50
    with rehearsal():
        assert cifar10.accuracy(Always(3)) == cifar10.FLOOR


def test_time_instead_of_steps():
    assert cifar10.train_classifier(build, seconds=0.05, data=data()).training is False


def test_steps_or_seconds():
    with pytest.raises(ValueError, match="give exactly one of steps and seconds, got None and None"):
        cifar10.train_classifier(build, data=data())


def test_pictures_are_decoded_and_normalised(tmp_path, monkeypatch):
    packed, ends = b"", [0]
    for value in (0, 255):
        file = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(file, "JPEG")
        packed += file.getvalue()
        ends.append(len(packed))
    where = tmp_path / "part.npz"
    np.savez(where, offsets=np.array(ends), jpeg=np.frombuffer(packed, np.uint8), labels=np.array([7, 2], np.uint8))
    monkeypatch.setattr(benchmarks, "find", lambda _: where)
    x, labels = cifar10.pictures.__wrapped__("test")
    assert labels.tolist() == [7, 2]
    assert x.shape == (2, 3, 32, 32)
    assert x[0, 0, 5, 5] == pytest.approx(-0.4914 / 0.2470)
    assert x[1, 2, 5, 5] == pytest.approx((1 - 0.4465) / 0.2616)
    assert len(cifar10.pictures.__wrapped__("test", limit=1)[1]) == 1


def test_the_claim_turns_against_a_worse_network(monkeypatch):
    class Knows(nn.Module):
        """Names the class that the drawn pictures have in their order."""

        def forward(self, x):
            return torch.eye(10)[torch.arange(len(x)) % 10]

    monkeypatch.setattr(cifar10, "trained", lambda build, **_: build())
    with rehearsal():
        verdicts = [
            run_one(cifar10.better(ours, "Better.", than=theirs, steps=1, paper="", by=50.0)).verdict
            for ours, theirs in ((Knows, lambda: Always(0)), (lambda: Always(0), Knows))
        ]
    assert verdicts == ["holds", "does not hold"]


def test_a_rehearsal_draws_its_pictures_and_trains():
    with rehearsal():
        model = cifar10.trained(lambda: Always(0), steps=1000, seed=0)
    assert not torch.equal(model.scores, Always(0).scores)
