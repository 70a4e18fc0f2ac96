import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.data import Data
from foveal.shrink.step import note, noted
from foveal.shrink.tune import Tune


def data():
    def batches(step):
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(step))
        return x, (x[:, 0] > x[:, 1]).long()

    x, y = batches(10_000)
    return Data(x, lambda m: 100 * float((m(x).argmax(1) == y).float().mean()), batches=batches, loss=F.cross_entropy)


def test_training_raises_the_quality():
    torch.manual_seed(0)
    given, model = data(), nn.Linear(4, 2)
    before = given.quality(model)
    tuned = Tune(steps=60, lr=0.05).apply(model, given)
    assert tuned is model
    assert not tuned.training
    assert given.quality(tuned) > max(before, 90)


def test_it_needs_labelled_batches():
    with pytest.raises(ValueError, match="Tune trains and needs Data with batches and loss"):
        Tune().apply(nn.Linear(4, 2), torch.randn(2, 4))


@pytest.mark.parametrize(("wrong", "text"), [({"steps": 0}, "steps must be at least 1"), ({"lr": 0.0}, "above 0")])
def test_numbers_in_their_range(wrong, text):
    with pytest.raises(ValueError, match=text):
        Tune(**wrong)


def test_notes_are_collected_once_and_only_where_someone_listens():
    note("nobody hears")
    with noted() as notes:
        note("a")
        note("a")
        note("b")
    assert notes == ["a", "b"]
