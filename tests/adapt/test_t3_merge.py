import math

import pytest
import torch
from torch import nn

from foveal.adapt import AdaptError, Delta
from foveal.adapt.attach import difference
from foveal.adapt.delta import Replaced
from foveal.adapt.t3_merge import T3Merge, coefficient, jensen_shannon


def pair(seed=0):
    torch.manual_seed(seed)
    generalist, expert = (
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
        for _ in range(2)
    )
    for model in (generalist, expert):
        model(torch.randn(16, 1, 5, 5))  # running statistics of their own
        model.eval()
    return generalist, expert


@torch.no_grad()
def by_hand(generalist, expert, x, share):
    """Every tensor of the state interpolated, one picture."""
    one, two = generalist.state_dict(), expert.state_dict()
    middle = {name: (1 - share) * one[name] + share * two[name] for name in one}
    return torch.func.functional_call(generalist, middle, (x[None],))[0]


def test_the_divergence_by_its_definition():
    first, second = torch.randn(2, 7, 5, dtype=torch.float64)
    p, q = first.softmax(-1), second.softmax(-1)
    m = (p + q) / 2
    wanted = 0.5 * (p * (p / m).log() + q * (q / m).log()).sum(-1)
    torch.testing.assert_close(jensen_shannon(first, second), wanted)
    torch.testing.assert_close(jensen_shannon(second, first), wanted)
    assert (jensen_shannon(first, first) < 1e-15).all()


def test_certain_and_opposite_answers_are_ln_2_apart():
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf]]), torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    torch.testing.assert_close(jensen_shannon(*logits), torch.tensor([math.log(2)]))


@pytest.mark.parametrize("gamma", [3.0, -3.0])
def test_the_sign_of_gamma_says_whom_to_trust(gamma):
    found = coefficient(torch.tensor([0.0, 0.3, 0.6]), low=0.2, high=0.8, gamma=gamma)
    assert found[0] == 0.5
    assert (found.diff() * gamma > 0).all()
    assert ((found > 0.2) & (found < 0.8)).all()


@pytest.mark.parametrize("count", [1, 7])
def test_each_sample_meets_its_own_weights(count):
    generalist, expert = pair()
    x = torch.randn(count, 1, 5, 5)
    merge = T3Merge(generalist, difference(generalist, expert), gamma=-6, levels=0)
    shares = merge.shares(x)
    wanted = torch.stack([by_hand(generalist, expert, x[i], float(shares[i])) for i in range(count)])
    torch.testing.assert_close(merge(x), wanted, atol=1e-5, rtol=1e-5)
    assert count == 1 or len(shares.unique()) == count


def test_rounding_shares_merges():
    generalist, expert = pair()
    x = torch.randn(20, 1, 5, 5)
    merge = T3Merge(generalist, difference(generalist, expert), gamma=-6, levels=8)
    shares = merge.shares(x)
    assert len(shares.unique()) <= 5  # λ is in [0, 0.5] for a negative γ
    assert torch.equal(shares * 8, (shares * 8).round())
    wanted = torch.stack([by_hand(generalist, expert, row, float(s)) for row, s in zip(x, shares, strict=True)])
    torch.testing.assert_close(merge(x), wanted, atol=1e-5, rtol=1e-5)


def test_a_batch_shares_the_mean():
    generalist, expert = pair()
    x, delta = torch.randn(6, 1, 5, 5), difference(generalist, expert)
    mean = T3Merge(generalist, delta, levels=0, gamma=2).shares(x).mean()
    shares = T3Merge(generalist, delta, levels=0, gamma=2, per="batch").shares(x)
    torch.testing.assert_close(shares, mean.expand(6))


def test_the_ends_and_identical_models():
    generalist, expert = pair()
    x = torch.randn(5, 1, 5, 5)
    delta = difference(generalist, expert)
    before = {name: tensor.clone() for name, tensor in generalist.state_dict().items()}
    assert torch.equal(T3Merge(generalist, delta, high=0.0)(x), generalist(x))
    torch.testing.assert_close(T3Merge(generalist, delta, low=1.0)(x), expert(x).detach(), atol=1e-5, rtol=1e-5)
    assert torch.equal(T3Merge(generalist, difference(generalist, generalist))(x), generalist(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in generalist.state_dict().items())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"low": 0.6, "high": 0.4}, r"low and high must be ordered in \[0, 1\], got 0.6 and 0.4"),
        ({"per": "class"}, 'per must be "sample" or "batch", got \'class\''),
        ({"levels": -1}, "levels must be at least 0, got -1"),
    ],
)
def test_what_it_refuses(words, text):
    with pytest.raises(ValueError, match=text):
        T3Merge(nn.Linear(2, 2), Delta({}), **words)


def test_models_of_different_shapes():
    with pytest.raises(AdaptError, match="'weight' is replaced, not changed"):
        T3Merge(nn.Linear(2, 2), Delta({"weight": Replaced(torch.zeros(3, 2))}))
    with pytest.raises(AdaptError, match="changes 'weight', which the generalist does not have in this shape"):
        T3Merge(nn.Linear(2, 2), difference(nn.Linear(3, 2), nn.Linear(3, 2)))
