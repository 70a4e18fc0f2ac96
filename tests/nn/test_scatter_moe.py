import pytest
import torch
import torch.nn.functional as F

from foveal.nn.scatter_moe import ParallelLinear, ScatterAttention, ScatterMoE, scatter_mlp
from foveal.ops.experts import group_rows, top_experts


def test_one_expert_is_an_mlp():
    torch.manual_seed(0)
    layer, x = ScatterMoE(6, hidden=9, num_experts=1, top_k=1), torch.randn(2, 5, 6)
    torch.testing.assert_close(layer(x), F.gelu(x @ layer.fc1.weight[0].T) @ layer.fc2.weight[0].T)


def test_no_rows_are_no_rows():
    layer, x = ScatterMoE(6, hidden=9), torch.zeros(0, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == (0, 6)


def test_experts_without_rows_get_a_gradient_of_zero():
    torch.manual_seed(0)
    w1, w2 = torch.randn(3, 4, 6, requires_grad=True), torch.randn(3, 6, 4, requires_grad=True)
    scatter_mlp(torch.randn(5, 6), w1, w2, torch.ones(5, 1), torch.ones(5, 1, dtype=torch.long)).sum().backward()
    assert not w1.grad[[0, 2]].any()
    assert not w2.grad[[0, 2]].any()
    assert w1.grad[1].any()


def test_four_modes_of_one_layer():
    torch.manual_seed(0)
    layer, x = ParallelLinear(6, 4, 3), torch.randn(7, 6)
    groups = group_rows(torch.randint(3, (7, 2)), 3)
    scattered = layer(x, groups)
    assert scattered.shape == (7, 2, 4)
    grouped = scattered.flatten(0, 1)[groups.order]
    torch.testing.assert_close(layer(x, groups, grouped_out=True), grouped)
    torch.testing.assert_close(layer(x[groups.rows], groups, grouped_in=True), scattered)
    torch.testing.assert_close(layer(x[groups.rows], groups, grouped_in=True, grouped_out=True), grouped)


def test_attention_equals_each_token_and_choice_for_itself():
    torch.manual_seed(0)
    layer, x = ScatterAttention(6, num_heads=2, head_dim=3, num_experts=4, top_k=2), torch.randn(2, 5, 6)
    gates, experts = top_experts(layer.router(x.flatten(0, 1)), 2)
    wanted = torch.zeros_like(x)
    for b in range(2):
        key, value = layer.key_value(x[b]).view(5, 2, 2, 3).unbind(1)
        for t in range(5):
            for j in range(2):
                e = experts[5 * b + t, j]
                query = (layer.query.weight[e] @ x[b, t]).view(2, 3)
                seen = [(key[:, h] @ query[h] / 3**0.5).softmax(0) @ value[:, h] for h in range(2)]
                wanted[b, t] += gates[5 * b + t, j] * (layer.out.weight[e] @ torch.cat(seen))
    torch.testing.assert_close(layer(x), wanted)


def test_every_part_learns():
    torch.manual_seed(0)
    for layer in (ScatterMoE(6, hidden=9), ScatterAttention(6, num_heads=2, head_dim=3)):
        layer(torch.randn(3, 40, 6)).square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_more_choices_than_experts_raise():
    with pytest.raises(ValueError, match="top_k must be in 1…2, the number of experts, got 3"):
        ScatterMoE(6, hidden=9, num_experts=2, top_k=3)(torch.zeros(1, 6))
