import pytest
import torch

from foveal.nn.mamba import Mamba
from foveal.nn.mixture_of_mamba import MixtureOfMamba, modality_linear, rows_of


def pair(modalities=2):
    torch.manual_seed(0)
    dense = Mamba(6, state=3, kernel_size=3, dt_rank=2).double()
    return dense, MixtureOfMamba.from_dense(dense, modalities)


def test_a_hand_computed_product():
    x, weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[[1.0, 1.0]], [[2.0, 0.0]]])
    bias = torch.tensor([[10.0], [20.0]])
    assert modality_linear(x, weight, None, torch.tensor([1, 0])).flatten().tolist() == [2, 7]
    assert modality_linear(x, weight, bias, torch.tensor([0, 1])).flatten().tolist() == [13, 26]


@pytest.mark.parametrize("length", [1, 7, 12])
def test_equal_sets_are_the_dense_mixer(length):
    dense, mixed = pair(3)
    tokens, modality = torch.randn(2, length, 6, dtype=torch.float64), torch.randint(3, (2, length))
    torch.testing.assert_close(mixed(tokens, modality), dense(tokens), rtol=0, atol=1e-14)


def test_each_projection_follows_its_tokens_modality():
    _, mixed = pair()
    tokens, modality = torch.randn(1, 8, 6, dtype=torch.float64), torch.tensor([[0, 0, 0, 1, 1, 0, 0, 0]])
    before = mixed(tokens, modality)
    for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        weight = getattr(mixed, name).weight
        with torch.no_grad():
            weight[1] *= 1.5
        after = mixed(tokens, modality)
        assert torch.equal(after[:, :3], before[:, :3]), name  # nothing looks ahead
        assert not torch.isclose(after[:, 3:5], before[:, 3:5]).all(2).any(), name
        # only what goes through convolution and state reaches later tokens of the other modality
        assert torch.isclose(after[:, 5:], before[:, 5:]).all() == (name == "out_proj"), name
        with torch.no_grad():
            weight[1] = weight[0]


def test_one_modality_alone_leaves_the_other_set_without_gradient():
    _, mixed = pair()
    mixed(torch.randn(1, 5, 6, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.long)).square().sum().backward()
    for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        grad = getattr(mixed, name).weight.grad
        assert grad[0].abs().sum() > 0
        assert grad[1].abs().sum() == 0


def test_no_tokens_are_no_tokens():
    none = modality_linear(torch.zeros(0, 3), torch.ones(2, 4, 3), None, torch.zeros(0, dtype=torch.long))
    assert none.shape == (0, 4)


def test_initial_steps_differ_by_modality_and_are_small():
    torch.manual_seed(0)
    mixed = MixtureOfMamba(32, modalities=3)
    step = torch.nn.functional.softplus(mixed.dt_proj.bias)
    assert step.shape == (3, 64)
    assert 0.00099 < step.min() < step.max() < 0.101
    assert not torch.equal(step[0], step[1])


def test_wrong_modalities_raise():
    x, weight = torch.zeros(2, 5, 3), torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match=r"modality must be \(2, 5\), one for each token, got \(5,\)"):
        modality_linear(x, weight, None, torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"modality must be \(2, 5\), one for each token, got \(2, 4\)"):
        MixtureOfMamba(3)(x, torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"modality must be in 0…1, got \[0, 2\]; build the layer with more"):
        rows_of(torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match="must read in one direction, got a bidirectional one; build it without"):
        MixtureOfMamba.from_dense(Mamba(4, bidirectional=True), 2)
