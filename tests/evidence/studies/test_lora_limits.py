import pytest
import torch

from foveal.evidence.studies import lora_limits
from foveal.evidence.studies.lora_limits import exact_gradients, lora_gradients, low_rank_gradients, setting
from foveal.measure.attention_rank import rank_of


def test_exact_gradients_are_autograds():
    q, k, v, wanted = torch.randn(4, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = torch.softmax(leaves[0] @ leaves[1].T / 4, -1) @ leaves[2]
    expected = torch.autograd.grad(0.5 * (out - wanted).square().sum(), leaves)
    for ours, theirs in zip(exact_gradients(q, k, v, wanted), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_low_rank_chain_comes_as_near_as_wanted():
    given = setting(9, 1.0)
    exact = lora_gradients(given, exact_gradients)
    for degree, tolerance in ((2, 0.1), (6, 1e-5), (12, 1e-11)):
        near = lora_gradients(given, lambda *args: low_rank_gradients(*args, degree=degree))  # noqa: B023
        assert 0 < (near - exact).norm() / exact.norm() < tolerance


def test_entries_are_bounded_as_asked():
    given = setting(20, 0.3)
    for weight in given.weights[:2]:
        assert (given.x @ weight).abs().max().item() == pytest.approx(0.3)


def test_the_rank_rises_with_the_norm(monkeypatch):
    small, large = (lora_limits.needed_rank(entries, tokens=12) for entries in (0.5, 2.5))
    assert small < large
    monkeypatch.setattr(lora_limits, "HIGHEST", 2)
    with pytest.raises(ArithmeticError, match="entries of 3 take a degree above 2"):
        lora_limits.needed_rank(3.0, tokens=12)
    assert small in {rank_of(4, degree) for degree in range(4)}
