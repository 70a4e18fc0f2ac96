import copy

import pytest
import torch
from torch import nn

from foveal.measure.saved import saved_bytes
from foveal.nn.reversible import Reversible, forward_stored, inverse, reversible


def blocks(depth=3, *, dim=6, store=False, dtype=torch.float64):
    torch.manual_seed(0)

    def branch():
        return nn.Sequential(nn.Conv1d(dim // 2, 5, 3, padding=1), nn.Tanh(), nn.Conv1d(5, dim // 2, 1))

    return Reversible([(branch(), branch()) for _ in range(depth)], store=store).to(dtype)


def drawn(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def outputs_and_gradients(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    y.mul(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(value.grad for value in model.parameters())]


@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize("shape", [(2, 6, 7), (1, 6, 1)])
def test_outputs_and_gradients_are_those_of_stored_blocks(depth, shape):
    x = drawn(*shape)
    pairs = zip(
        outputs_and_gradients(blocks(depth), x), outputs_and_gradients(blocks(depth, store=True), x), strict=True
    )
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


def test_a_block_by_hand():
    f, g = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        f.weight.fill_(2)
        g.weight.fill_(-3)
    x = torch.tensor([[5.0, 7.0]], requires_grad=True)
    y = reversible(x, [(f, g)], [f.weight, g.weight])
    assert y.tolist() == [[19, -50]]  # 5 + 2·7, 7 - 3·19
    y[0, 1].backward()
    assert x.grad.tolist() == [[-3, -5]]  # 1 - 3·2
    assert (f.weight.grad.item(), g.weight.grad.item()) == (-21, 19)
    assert inverse(y.detach(), [(f, g)]).tolist() == [[5, 7]]


def test_inputs_come_back():
    model, x = blocks(8, dtype=torch.float32), drawn(2, 6, 9, dtype=torch.float32)
    with torch.no_grad():
        y = model(x)
        assert (y - x).abs().max() > 0.1
        torch.testing.assert_close(inverse(y, model.pairs), x, rtol=0, atol=1e-5)


def test_the_output_alone_is_kept():
    x = drawn(2, 6, 9)
    for depth in (1, 5):
        model = blocks(depth)
        assert saved_bytes(lambda model=model: model(x.requires_grad_()), model.parameters()) == 8 * 2 * 6 * 9
        stored = blocks(depth, store=True)
        assert saved_bytes(lambda stored=stored: stored(x), stored.parameters()) >= depth * 8 * 2 * 2 * 9 * (3 + 5)


def test_weights_that_blocks_share_and_frozen_ones():
    model, x = blocks(2), drawn(2, 6, 5)
    model.f[1] = model.g[0] = model.f[0]
    model.g[1][0].weight.requires_grad_(False)
    other = copy.deepcopy(model)
    other.store = True
    for network in (model, other):
        network(x).square().sum().backward()
    assert model.g[1][0].weight.grad is None
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradcheck():
    model = blocks(2, dim=2)
    weights = list(model.parameters())
    x = drawn(1, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *weights: reversible(x, model.pairs, weights), (x, *weights))


def test_backward_runs_as_forward_did_under_autocast():
    model, seen, x = blocks(1, dtype=torch.float32), [], drawn(2, 6, 5, dtype=torch.float32)
    model.f[0].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x.requires_grad_())
    y.sum().backward()
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert x.grad.isfinite().all()


def test_without_gradients_nothing_is_kept():
    model, x = blocks(2), drawn(2, 6, 5)
    with torch.no_grad():
        assert not model(x).requires_grad
        assert torch.equal(model(x), forward_stored(x, model.pairs))


def test_an_odd_number_of_channels_raises():
    with pytest.raises(ValueError, match="the channels must be two halves, got 3; take an even number"):
        reversible(torch.zeros(1, 3), [], [])


def test_a_branch_without_gradients_adds_its_output_alone():
    x = drawn(1, 2, 3).requires_grad_()
    reversible(x, [(torch.zeros_like, lambda t: t.detach() + 1)], []).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
