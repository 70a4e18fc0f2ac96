import pytest
import torch
import torch.nn.functional as F

from foveal.nn.collapsible import CollapsibleConv2d, identity_kernel


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_identity_kernel_changes_nothing(kernel_size):
    x = torch.rand(2, 4, 7, 9)
    out = F.conv2d(x, identity_kernel(4, kernel_size), padding=kernel_size // 2)
    assert torch.equal(out, x)


def test_identity_kernel_takes_the_dtype_of_another_tensor():
    assert identity_kernel(2, 3, like=torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padding", [None, 0, 2])
@pytest.mark.parametrize("size", [(5, 5), (7, 12)])
def test_one_convolution_equals_two(residual, bias, padding, size):
    torch.manual_seed(0)
    conv = CollapsibleConv2d(6, 6, 3, expand=10, residual=residual, bias=bias, padding=padding).double()
    if bias:
        torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    long_way = conv.expanded(x)
    torch.testing.assert_close(conv(x), long_way, rtol=0, atol=1e-12)
    torch.testing.assert_close(conv.collapse()(x), long_way, rtol=0, atol=1e-12)


def test_expanded_is_what_torch_makes_of_two_convolutions():
    torch.manual_seed(0)
    conv = CollapsibleConv2d(3, 5, 5, expand=7, bias=True)
    wide = torch.nn.Conv2d(3, 7, 5, padding=2, bias=False)
    back = torch.nn.Conv2d(7, 5, 1)
    with torch.no_grad():
        wide.weight.copy_(conv.widen)
        back.weight.copy_(conv.narrow[..., None, None])
        back.bias.copy_(conv.bias)
    x = torch.randn(1, 3, 8, 6)
    torch.testing.assert_close(conv.expanded(x), back(wide(x)))


def test_a_residual_shows():
    conv = CollapsibleConv2d(4, 4, 3, expand=8, residual=True)
    torch.nn.init.zeros_(conv.narrow)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(conv(x), x)


def test_gradients_are_those_of_the_two_convolutions():
    torch.manual_seed(0)
    conv = CollapsibleConv2d(4, 4, 3, expand=8, residual=True).double()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    target = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    gradients = []
    for forward in (conv, conv.expanded):
        conv.zero_grad()
        F.mse_loss(forward(x), target).backward()
        gradients.append([p.grad.clone() for p in conv.parameters()])
    for short, long in zip(*gradients, strict=True):
        torch.testing.assert_close(short, long, rtol=0, atol=1e-12)
        assert short.abs().max() > 0


def test_gradcheck():
    torch.manual_seed(0)
    conv = CollapsibleConv2d(2, 2, 3, expand=3, residual=True).double()
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, x)


def test_collapse_keeps_dtype_and_gives_no_gradient_history():
    plain = CollapsibleConv2d(2, 3, 3, expand=4).double().collapse()
    assert plain.weight.dtype == torch.float64
    assert plain.weight.grad_fn is None


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        CollapsibleConv2d(2, 2, 4)


def test_a_residual_between_different_widths_is_refused():
    with pytest.raises(ValueError, match="residual needs equal channels, got 2 in and 3 out"):
        CollapsibleConv2d(2, 3, 3, residual=True)


def test_without_a_width_the_kernel_itself_is_trained():
    conv = CollapsibleConv2d(4, 4, 3, expand=0, residual=True).double()
    assert [tuple(p.shape) for p in conv.parameters()] == [(4, 4, 3, 3), (4,)]
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(conv(x), conv.expanded(x))
    torch.testing.assert_close(conv.collapse()(x), conv(x))
    torch.manual_seed(0)
    spread = [CollapsibleConv2d(32, 32, 3, expand=expand).weight().std().item() for expand in (0, 256)]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)
