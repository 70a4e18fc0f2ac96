import numpy as np
import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import turned_digits


@pytest.fixture
def bars(monkeypatch):
    """A vertical bar in every picture."""
    shown = np.zeros((50, 28, 28), np.uint8)
    shown[:, 4:24, 12:16] = 255
    monkeypatch.setattr(turned_digits.mnist, "digits", lambda _: (shown, np.arange(50) % 10))
    monkeypatch.setattr(turned_digits, "COUNT", {"train": 30, "test": 20})


def test_each_digit_is_turned_and_scaled_once(bars):
    # Called past the cache, which other tests share.
    x, labels = turned_digits.pictures.__wrapped__("train")
    assert x.shape == (30, 1, 28, 28)
    assert labels.tolist() == [i % 10 for i in range(30)]
    assert torch.equal(turned_digits.pictures.__wrapped__("train")[0], x)
    assert not torch.equal(turned_digits.pictures.__wrapped__("test")[0], x[:20])
    ink = (0.25 * x + 0.1).sum((1, 2, 3)) / 80  # 80 pixels of the bar at its own size
    assert 0.2 < ink.min() < 0.5
    assert 0.8 < ink.max() < 1.25
    assert len(torch.unique(x.flatten(1), dim=0)) == 30


def test_a_score_is_a_share_of_the_test_pictures():
    with rehearsal():
        found = turned_digits.score(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), steps=2, seed=0)
    assert 0 <= found <= 100
