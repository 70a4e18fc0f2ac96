import pytest
import torch
from torch import nn

from foveal.evidence.models.backbone.hyperzzw import OURS, RIVAL, highest_rise
from foveal.measure.cost import count_parameters
from foveal.models.backbone.hyperzzw import (
    Terminator,
    hyperzzw_global,
    hyperzzw_local,
    hyperzzw_reference,
    slow_loss,
)

SMALL = {"factors": (2, 2), "groups": 2, "hidden": 4, "in_channels": 2, "num_classes": 3}


def inputs(sizes, taps):
    torch.manual_seed(0)
    shapes = [(2, *taps), (2, 2, *taps), (2, 2, *sizes)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(
    ("around", "sizes", "taps"),
    [(True, (7,), (7,)), (True, (3, 4), (3, 4)), (False, (6,), (3,)), (False, (3, 4), (3, 5)), (False, (2,), (5,))],
)
def test_both_are_the_loop_over_samples(around, sizes, taps):
    given = inputs(sizes, taps)
    ours = (hyperzzw_global if around else hyperzzw_local)(*given)
    theirs = hyperzzw_reference(*given, around=around)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), given) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_unit_weight_moves_around_the_border():
    kernel, v = torch.ones(1, 5), torch.arange(5.0).view(1, 1, 5)
    z = torch.zeros(1, 1, 5)
    z[..., 2] = 3
    torch.testing.assert_close(hyperzzw_global(kernel, z, v)[0, 0], 3 * torch.tensor([3.0, 4, 0, 1, 2]))


def test_weights_are_those_of_a_sample():
    kernel, z, v = (x.detach() for x in inputs((6,), (6,)))
    before = hyperzzw_global(kernel, z, v)
    z[1] = 0
    after = hyperzzw_global(kernel, z, v)
    torch.testing.assert_close(after[0], before[0])
    assert after[1].abs().max() < 1e-12


@pytest.mark.parametrize(("data_dim", "sizes"), [(1, (11,)), (2, (6, 5)), (3, (3, 4, 2))])
def test_the_network_takes_any_sizes(data_dim, sizes):
    torch.manual_seed(0)
    model = Terminator(data_dim=data_dim, **SMALL)
    out = model(torch.randn(2, 2, *sizes))
    out.square().sum().backward()
    assert out.shape == (2, 3)
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())


def test_a_sample_does_not_depend_on_others_in_eval_mode():
    torch.manual_seed(0)
    model, x = Terminator(data_dim=1, **SMALL), torch.randn(3, 2, 8)
    model(x)
    model.eval()
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_nothing_passes_a_block_unchanged():
    torch.manual_seed(0)
    block = Terminator(data_dim=1, **SMALL).blocks[0].eval()
    nn.init.zeros_(block.bottleneck.weight)
    x = torch.randn(2, 2, 8)
    assert torch.equal(block(x), block(x + 1))


def test_groups_take_turns():
    torch.manual_seed(0)
    norm = Terminator(factors=(4,), groups=4, in_channels=1).blocks[0].norm
    x = torch.randn(3, 4, 10) * torch.tensor([1.0, 2, 3]).view(3, 1, 1) + 1
    out = norm(x)
    torch.testing.assert_close(out[:, 1::2].std(2, correction=0), torch.ones(3, 2), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out.std((0, 2), correction=0), torch.ones(4), rtol=1e-3, atol=1e-3)
    assert out[:, ::2].std(2).std() > 0.1


def test_equal_kernels_have_no_slow_loss():
    kernel = torch.randn(2, 5)
    assert slow_loss([kernel, kernel.repeat(3, 1)]) == 0
    torch.testing.assert_close(slow_loss([kernel, kernel + 2, kernel]), torch.tensor(8.0))
    model = Terminator(data_dim=1, **SMALL)
    assert [tuple(one.shape) for one in model.hyper_kernels((9,))] == [(2, 9), (4, 9)]
    assert slow_loss(model.hyper_kernels((9,))) > 0


def test_groups_must_divide():
    with pytest.raises(ValueError, match=r"groups must be at least 2 and divide .* \[4, 8\], got 3"):
        Terminator(**{**SMALL, "groups": 3})


def test_a_rise_is_above_the_lowest_before():
    falling = [3.0] * 20 + [2.0] * 20 + [1.0] * 20
    assert highest_rise(falling) == 0
    assert highest_rise([*falling, *[1.5] * 20]) == pytest.approx(0.5)
    assert highest_rise([*falling, *[float("nan")] * 20, *[1.0] * 20]) == float("inf")


def test_both_have_as_many_parameters():
    assert 0.95 <= count_parameters(OURS()) / count_parameters(RIVAL()) <= 1.05
    x = torch.randn(2, 1, 196)
    assert RIVAL()(x).shape == OURS()(x).shape == (2, 10)
    assert OURS()(x).isfinite().all()
