import pytest
import torch

from foveal.nn.acla import ACLA, Insertion, cross_layer_attention, cross_layer_attention_plain, hard_gate


def drawn(batch=1, layers=2, dim=3, keys=2, size=(5, 4), seed=0):
    draw = torch.Generator().manual_seed(seed)
    shape = (batch, layers, keys, *size)
    return {
        "values": torch.randn(batch, layers, dim, *size, generator=draw).double(),
        "offset": 2 * torch.randn(batch, layers, keys, 2, *size, generator=draw).double(),
        "scores": torch.randn(shape, generator=draw).double(),
        "kept": (torch.rand(shape, generator=draw) < 0.5).double(),
    }


@pytest.mark.parametrize("words", [{}, {"size": (1, 1)}, {"batch": 2, "layers": 1, "keys": 5, "size": (3, 7)}])
def test_equals_the_sum_over_all_pixels(words):
    inputs = {name: x.requires_grad_() for name, x in drawn(**words).items()}
    ours, theirs = cross_layer_attention(**inputs), cross_layer_attention_plain(**inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(ours.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), list(inputs.values())) for out in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_key_read_by_hand():
    x = torch.arange(12.0).view(1, 1, 1, 3, 4)
    offset = torch.zeros(1, 1, 1, 2, 3, 4)
    offset[..., 0, 1, 1], offset[..., 1, 1, 1] = 0.5, 1.25  # row 1.5, column 2.25
    ones = torch.ones(1, 1, 1, 3, 4)
    out = cross_layer_attention(x, offset, ones, ones)
    expected = x[:, 0].clone()
    expected[..., 1, 1] = 4 * 1.5 + 2.25
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(cross_layer_attention_plain(x, offset, ones, ones), expected)


def test_keys_that_are_not_kept_do_not_count():
    inputs = drawn(layers=1, keys=3)
    inputs["kept"] = torch.tensor([1.0, 0, 1]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 5, 4).double()
    fewer = {name: x[:, :, [0, 2]] for name, x in inputs.items() if name != "values"}
    out = cross_layer_attention(**inputs)
    torch.testing.assert_close(out, cross_layer_attention(inputs["values"], **fewer))
    inputs["kept"] = torch.zeros(1, 1, 3, 5, 4).double()
    assert not cross_layer_attention(**inputs).any()


def test_large_scores_do_not_overflow():
    inputs = drawn()
    inputs["scores"] = inputs["scores"] + 1e4
    torch.testing.assert_close(cross_layer_attention(**inputs), cross_layer_attention(**drawn()), rtol=0, atol=1e-9)
    inputs["scores"] = torch.where(inputs["kept"] > 0, drawn()["scores"], 1e4)
    torch.testing.assert_close(cross_layer_attention(**inputs), cross_layer_attention(**drawn()), rtol=0, atol=1e-9)


def test_a_gate_that_is_shut_gets_a_bounded_gradient():
    inputs = drawn()
    inputs["scores"] = 1e4 * inputs["scores"]
    kept = inputs["kept"].requires_grad_()
    cross_layer_attention(**inputs).sum().backward()
    bound = 2 * inputs["values"].abs().sum(2).max()
    assert kept.grad.abs().max() <= bound


def test_gates_are_hard_and_their_gradient_is_soft():
    logits = torch.tensor([-2.0, -0.1, 0.3], requires_grad=True)
    gate = hard_gate(logits, temperature=0.5)
    assert gate.tolist() == [0, 0, 1]
    soft = (logits / 0.5).sigmoid()
    (expected,) = torch.autograd.grad(soft.sum(), logits)
    (got,) = torch.autograd.grad(gate.sum(), logits)
    torch.testing.assert_close(got, expected)


def test_a_noisy_gate_is_open_with_the_probability_of_a_sigmoid():
    torch.manual_seed(0)
    gate = hard_gate(torch.full((20_000,), 0.8), noisy=True)
    assert set(gate.unique().tolist()) == {0, 1}
    assert abs(float(gate.mean()) - float(torch.tensor(0.8).sigmoid())) < 0.02


def test_a_new_layer_changes_nothing_and_learns():
    torch.manual_seed(0)
    layer, x = ACLA(4, 2, keys=3), torch.randn(1, 4, 6, 5)
    earlier = [torch.randn_like(x, requires_grad=True) for _ in range(2)]
    assert torch.equal(layer(x, earlier), x)
    torch.nn.init.normal_(layer.out.weight)
    layer(x, earlier).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
    assert all(one.grad.abs().sum() > 0 for one in earlier)


def test_keys_start_on_a_ring_that_widens():
    offset, scores, kept = ACLA(4, 2, keys=4).eval().choices(torch.zeros(1, 4, 2, 3))
    assert (offset.shape, scores.shape, kept.shape) == ((1, 2, 4, 2, 2, 3), (1, 2, 4, 2, 3), (1, 2, 4, 2, 3))
    reach = offset[0, :, :, :, 0, 0].norm(dim=2)
    torch.testing.assert_close(reach, torch.tensor([1, 1.5, 2, 2.5]).expand(2, 4))


def test_gates_are_noisy_in_training_only():
    torch.manual_seed(0)
    layer, x = ACLA(4, 1, keys=8), torch.randn(1, 4, 8, 8)
    assert 0.7 < layer.choices(x)[2].mean().item() < 1
    assert torch.equal(layer.eval().choices(x)[2], layer.choices(x)[2])


def test_places_that_do_not_pay_are_closed():
    torch.manual_seed(0)
    search = Insertion([1, 3])
    torch.testing.assert_close(search.cost(), torch.tensor(0.5))
    optimizer = torch.optim.SGD(search.parameters(), lr=5)
    for _ in range(20):
        optimizer.zero_grad()
        (search.cost() - 2 * search()[1]).backward()
        optimizer.step()
    assert search.eval()().tolist() == [0, 1]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="layers and keys must be at least 1, got 0 and 4"):
        ACLA(4, 0)
    with pytest.raises(ValueError, match="features of 2 earlier layers wanted, got 1"):
        ACLA(4, 2)(torch.rand(1, 4, 3, 3), [torch.rand(1, 4, 3, 3)])
