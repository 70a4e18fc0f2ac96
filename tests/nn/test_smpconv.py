import pytest
import torch
from torch import nn

from foveal.evidence.nn.smpconv import OURS, RIVAL, MLPConv
from foveal.nn.smpconv import SMPConv, draw_kernel, draw_kernel_reference, to_conv


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("sizes", [(7,), (6, 5), (3, 4, 2)])
def test_kernels_are_the_formula(sizes, average):
    torch.manual_seed(0)
    inputs = [torch.rand(9, len(sizes)) * 2 - 1, torch.rand(9) + 0.3, torch.randn(2, 9)]
    inputs = [value.double().requires_grad_() for value in inputs]
    ours = draw_kernel(*inputs, sizes, average=average)
    theirs = draw_kernel_reference(*inputs, sizes, average=average)
    assert ours.shape == (2, *sizes)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), inputs) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


def test_one_point_is_a_hat_of_its_radius():
    place, weight = torch.tensor([[0.5]]), torch.tensor([[2.0]])
    kernel = draw_kernel(place, torch.tensor([0.5]), weight, (9,))
    # the taps are a quarter apart
    torch.testing.assert_close(kernel, torch.tensor([[0.0, 0, 0, 0, 0, 1, 2, 1, 0]]))


def test_points_in_reach_are_averaged_and_others_are_not_counted():
    places, radii = torch.tensor([[0.0], [0.0], [1.0]]), torch.full((3,), 0.5)
    weights = torch.tensor([[2.0, 4.0, 5.0]])
    assert draw_kernel(places, radii, weights, (3,)).tolist() == [[0.0, 3.0, 5.0]]
    assert draw_kernel(places, radii, weights, (3,), average=False).tolist() == [[0.0, 6.0, 5.0]]


def test_axes_are_those_of_the_picture():
    layer = SMPConv(1, (5, 9), num_points=1, radius=0.3)
    with torch.no_grad():
        layer.places.copy_(torch.tensor([[1.0, 0.0]]))
    row, column = (layer.kernel()[0] != 0).nonzero().T
    assert (row.tolist(), column.tolist()) == ([4, 4, 4], [3, 4, 5])


def test_points_of_a_causal_kernel_start_near_the_present():
    torch.manual_seed(0)
    places = SMPConv(1, (100,), num_points=200, spread=0.1, causal=True).places
    assert -1 <= places.min() <= places.max() <= 1
    assert (places > 0.5).float().mean() > 0.9


@pytest.mark.parametrize("causal", [False, True])
def test_a_layer_sees_the_past_only_if_causal(causal):
    torch.manual_seed(0)
    layer = SMPConv(2, (9,), radius=0.7, causal=causal, small_kernel_size=3)
    x = torch.randn(1, 2, 9, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[..., 4].sum(), x)
    assert (gradient[..., :5] != 0).all()
    assert bool((gradient[..., 5:] != 0).any()) is not causal


@pytest.mark.parametrize("sizes", [(9,), (5, 7), (3, 5, 3)])
def test_a_trained_layer_becomes_a_plain_convolution(sizes):
    torch.manual_seed(0)
    layer = SMPConv(3, sizes, small_kernel_size=3, radius=0.5).eval()
    nn.init.normal_(layer.bias)
    conv, x = to_conv(layer), torch.randn(2, 3, *[6] * len(sizes))
    assert conv.groups == 3
    assert not conv.training
    torch.testing.assert_close(conv(x), layer(x))


@pytest.mark.parametrize("sizes", [(31,), (9, 13)])
def test_kernels_start_with_unit_energy(sizes):
    torch.manual_seed(0)
    kernel = SMPConv(6, sizes, num_points=20).kernel()
    torch.testing.assert_close(kernel.square().flatten(1).sum(1).mean(), torch.tensor(1.0))
    assert SMPConv(2, (101,), num_points=1, radius=1e-3).weights.isfinite().all()


def test_radii_below_zero_do_not_turn_hats_over():
    layer = SMPConv(2, (5,))
    nn.init.constant_(layer.radii, -1)
    assert (layer.kernel() == 0).float().mean() > 0.5
    assert layer.kernel().isfinite().all()


def test_every_part_learns():
    torch.manual_seed(0)
    layer = SMPConv(2, (7, 7), small_kernel_size=3, radius=0.8)
    layer(torch.randn(1, 2, 8, 8)).square().sum().backward()
    assert all(value.grad.abs().max() > 0 for value in layer.parameters())


@pytest.mark.parametrize(
    ("sizes", "options", "text"),
    [
        ((3, 3, 3, 3), {}, "must name 1, 2 or 3 axes"),
        ((3, 3), {"causal": True}, r"and 1 if causal, got \(3, 3\)"),
        ((5, 4), {}, r"odd and at least 3 on each axis, or causal, got \(5, 4\)"),
        ((1,), {}, r"at least 3 on each axis, or causal, got \(1,\)"),
        ((5, 5), {"small_kernel_size": 2}, "small_kernel_size must be odd, or causal, and at most 5, got 2"),
        ((5, 5), {"small_kernel_size": 7}, "at most 5, got 7"),
    ],
)
def test_sizes(sizes, options, text):
    with pytest.raises(ValueError, match=text):
        SMPConv(2, sizes, **options)


def test_a_causal_layer_does_not_become_a_convolution():
    with pytest.raises(ValueError, match="to_conv needs a kernel with a middle, got a causal layer"):
        to_conv(SMPConv(1, (4,), causal=True))


def test_the_twin_differs_in_its_mixer_only():
    ours, twin = OURS(), RIVAL()
    assert [type(block.mixer) for block in ours.blocks] == [SMPConv] * 3
    assert [type(block.mixer) for block in twin.blocks] == [MLPConv] * 3
    assert ours.stem.weight.shape == twin.stem.weight.shape
    x = torch.randn(1, 2, 196, requires_grad=True)
    (gradient,) = torch.autograd.grad(MLPConv(2)(x)[..., 50].sum(), x)
    assert gradient[..., 51:].abs().max() < 1e-5 < gradient[..., :51].abs().min(-1).values.max()
