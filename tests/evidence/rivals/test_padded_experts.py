import pytest
import torch

from foveal.evidence.rivals.padded_experts import draw, einsum_mlp, loop_mlp, padded_mlp, skewed, with_gradients
from foveal.ops.experts.reference import expert_mlp_reference


@pytest.mark.parametrize("layer", [loop_mlp, padded_mlp, einsum_mlp])
@pytest.mark.parametrize("top_k", [1, 3])
def test_all_equal_the_formula_row_by_row(layer, top_k):
    given = draw(13, 6, 5, 7, top_k, unused=2)
    for ours, theirs in zip(with_gradients(layer, given), with_gradients(expert_mlp_reference, given), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_einsum_drops_what_has_no_place_second_choices_first():
    given = draw(5, 4, 3, 2, 2)
    given["experts"] = torch.tensor([[0, 1], [0, 1], [1, 0], [0, 1], [0, 1]])
    kept = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 0], [0, 0]])  # 3 places: expert 0 is full of first choices
    got = einsum_mlp(**given, capacity=3)
    torch.testing.assert_close(got, expert_mlp_reference(**{**given, "gates": given["gates"] * kept}))


def test_loads_fall_and_some_experts_are_empty():
    _, experts = skewed(4096, 16, 1, unused=3)
    loads = torch.bincount(experts.reshape(-1), minlength=16) / 4096
    wanted = 1 / torch.arange(1, 14)
    torch.testing.assert_close(loads[:13], wanted / wanted.sum(), atol=0.03, rtol=0)
    assert loads[13:].sum() == 0
