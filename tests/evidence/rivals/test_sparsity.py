import pytest
import torch

from foveal.evidence.rivals.sparsity import erk, erk_shares, lamp, lamp_scores, uniform


def weights():
    torch.manual_seed(0)
    return {"a": torch.randn(4, 3, 3, 3), "b": torch.randn(20, 4, 3, 3), "c": torch.randn(10, 20)}


@pytest.mark.parametrize("rule", [uniform, erk, lamp])
@pytest.mark.parametrize("keep", [0.1, 0.5])
def test_each_rule_keeps_as_many_as_asked(rule, keep):
    found = rule(weights(), keep)
    count = sum(w.numel() for w in weights().values())
    assert sum(int(mask.sum()) for mask in found.values()) == pytest.approx(keep * count, abs=1.5)
    for name, mask in found.items():
        magnitude = weights()[name].abs()
        assert mask.all() or magnitude[mask].min() >= magnitude[~mask].max()


def test_erk_follows_the_sum_of_the_sides():
    found = erk_shares(weights(), 0.1)
    assert found["a"] / found["b"] == pytest.approx((13 / 108) / (30 / 720))


def test_erk_leaves_layers_dense_that_are_owed_more():
    found = erk_shares(weights(), 0.7)
    assert found["a"] == 1.0
    assert all(0 < share <= 1 for share in found.values())


def test_lamp_divides_by_what_is_larger():
    found = lamp_scores(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[1 / 14, 4 / 13], [1.0, 0.0]], dtype=torch.float64))


def test_lamp_never_empties_a_layer():
    tensors = {"small": 1e-3 * torch.randn(6), "large": torch.randn(600)}
    assert lamp(tensors, 0.05)["small"].any()
