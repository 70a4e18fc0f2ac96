import pytest
import torch
from foveal.train.classify import accuracy, train_classifier
from torch import nn


def data(count=200):
    """Two classes: which half of the row is bright."""
    x = torch.rand(count, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 2
    x[labels == 0, ..., :4] += 1
    x[labels == 1, ..., 4:] += 1
    return x, labels


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 2))


def test_learns_and_is_the_same_for_the_same_seed():
    first = train_classifier(build, steps=60, seed=1, data=data(), flip=False)
    assert accuracy(first, data()) > 95
    again = train_classifier(build, steps=60, seed=1, data=data(), flip=False)
    assert torch.equal(first[1].weight, again[1].weight)
    other = train_classifier(build, steps=60, seed=2, data=data(), flip=False)
    assert not torch.equal(first[1].weight, other[1].weight)


def test_flipping_makes_left_and_right_one():
    assert accuracy(train_classifier(build, steps=60, data=data(), flip=True), data()) < 80


def test_a_network_that_always_says_the_same_is_right_half_of_the_time():
    network = build()
    nn.init.zeros_(network[1].weight)
    assert accuracy(network, data()) == 50


def test_time_instead_of_steps():
    assert train_classifier(build, seconds=0.05, data=data()).training is False


def test_steps_or_seconds():
    with pytest.raises(ValueError, match="give exactly one of steps and seconds, got None and None"):
        train_classifier(build, data=data())


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_as_before_even_after_an_error(before):
    def flushed():
        return float(torch.full((), 2e-38).mul(0.1)) == 0

    def broken():
        assert flushed()
        raise ZeroDivisionError

    torch.set_flush_denormal(before)
    try:
        with pytest.raises(ZeroDivisionError):
            train_classifier(broken, steps=1, data=(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)))
        assert flushed() == before
    finally:
        torch.set_flush_denormal(False)
