import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.measure.attention_rank import (
    attention_rank,
    degree_for,
    paying_bound,
    polynomial_features,
    rank_of,
    taylor_error,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("degree", [0, 1, 2, 5])
def test_products_of_features_are_the_polynomial(degree):
    q, k = normal(2, 5, 3), normal(2, 4, 3, seed=1)
    made = polynomial_features(q, degree) @ polynomial_features(k, degree).mT
    scores = q @ k.mT / 3
    torch.testing.assert_close(made, sum(scores**j / math.factorial(j) for j in range(degree + 1)))
    assert polynomial_features(q, degree).shape == (2, 5, rank_of(3, degree))
    scaled = polynomial_features(q, degree, scale=0.5) @ polynomial_features(k, degree, scale=0.5).mT
    torch.testing.assert_close(scaled, sum((q @ k.mT / 2) ** j / math.factorial(j) for j in range(degree + 1)))


def test_monomials_by_hand():
    root = 2**-0.5
    made = polynomial_features(torch.tensor([[2.0, 3.0]]), 2, scale=1.0)
    torch.testing.assert_close(made, torch.tensor([[1.0, 2.0, 3.0, 4 * root, 6.0, 9 * root]]))


@pytest.mark.parametrize("bound", [0.1, 1.0, 4.0])
def test_the_error_is_bounded_and_the_bound_is_tight(bound):
    scores = torch.linspace(-bound, bound, 401, dtype=torch.float64)
    for degree in range(7):
        near = sum(scores**j / math.factorial(j) for j in range(degree + 1))
        error = (near / scores.exp() - 1).abs().max().item()
        allowed = taylor_error(bound, degree)
        assert allowed / (1 + bound / (degree + 2)) / 1.5 < error <= allowed * (1 + 1e-9)
    least = degree_for(bound, 1e-3)
    assert taylor_error(bound, least) <= 1e-3 < taylor_error(bound, least - 1)


def test_scores_of_nothing_take_a_constant():
    assert degree_for(0.0, 1e-9) == 0
    assert taylor_error(2000.0, 1) == math.inf


def test_the_rank_passes_the_tokens_at_the_paying_bound():
    bound = paying_bound(256, 6, 0.1)
    assert rank_of(6, degree_for(bound * 0.999, 0.1)) <= 256 < rank_of(6, degree_for(bound * 1.001, 0.1))


class Attention(nn.Module):
    """Attention of given queries and keys, called in one way or another."""

    def __init__(self, **how):
        super().__init__()
        self.how = how

    def forward(self, q, k):
        return F.scaled_dot_product_attention(q, k, k, **self.how)


def test_a_model_is_measured():
    q, k = 0.2 * normal(2, 3, 7, 4), 0.2 * normal(2, 3, 9, 4, seed=1)
    model = Attention().train()
    (found,) = attention_rank(model, q, k)
    scores = q @ k.mT / 2
    assert (found.tokens, found.dim, found.side) == (9, 4, "below")
    assert found.scores == pytest.approx(scores.abs().max().item())
    assert found.entries == pytest.approx(max(q.abs().max(), k.abs().max()).item() * 2**0.5)
    assert found.threshold == pytest.approx(math.log(9) ** 0.5)
    assert found.degree == degree_for(found.scores, 0.01)
    assert found.rank == rank_of(4, found.degree)
    assert found.pays == (found.rank < 9)
    assert model.training


def test_the_scale_and_shared_keys_count():
    q, k = normal(1, 4, 5, 4), normal(1, 2, 5, 4, seed=1)
    (given,) = attention_rank(Attention(scale=0.25, enable_gqa=True), q, k)
    assert given.scores == pytest.approx((q @ k.repeat_interleave(2, 1).mT / 4).abs().max().item())
    assert given.entries == pytest.approx(max(q.abs().max(), k.abs().max()).item())


def test_large_entries_lie_above_the_threshold_and_do_not_pay():
    q, k = 4 * normal(1, 1, 12, 4), normal(1, 1, 12, 4, seed=1)
    (found,) = attention_rank(Attention(), q, k)
    assert found.side == "above"
    assert not found.pays


def test_the_least_rank_is_that_of_the_best_approximation():
    same = torch.ones(1, 1, 6, 4)
    (found,) = attention_rank(Attention(), same, same)
    assert found.least_rank == 1
    sharp = 30 * torch.eye(6)[None, None]
    (found,) = attention_rank(Attention(), sharp, sharp)
    assert found.least_rank == 6


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: degree_for(1.0, 0.0), "error must be above 0 and the bound finite, got 0.0 and 1.0"),
        (lambda: degree_for(math.inf, 0.1), "got 0.1 and inf"),
        (lambda: degree_for(5000.0, 0.1), "scores of up to 5000 take a degree above 10,000; a polynomial is of no use"),
        (lambda: attention_rank(nn.Identity(), torch.ones(1)), "Identity called no torch.nn.functional.scaled_dot_"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
