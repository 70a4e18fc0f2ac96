import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.espcn import ESPCN, transposed_kernel


def test_parameters_by_hand():
    # 5·5·1·64 + 64, 3·3·64·32 + 32, 3·3·32·9 + 9
    assert sum(p.numel() for p in ESPCN(3, in_channels=1).parameters()) == 1600 + 64 + 18432 + 32 + 2592 + 9


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 13)])
def test_shape(scale, size):
    out = ESPCN(scale)(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, scale * size[0], scale * size[1])


@pytest.mark.parametrize(("kernel_size", "scale", "channels"), [(1, 2, 1), (3, 2, 3), (3, 3, 1), (5, 4, 2)])
def test_sub_pixel_convolution_is_a_transposed_convolution(kernel_size, scale, channels):
    torch.manual_seed(0)
    weight = torch.randn(channels * scale**2, 6, kernel_size, kernel_size, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    pad = kernel_size // 2
    shuffled = F.pixel_shuffle(F.conv2d(x, weight, padding=pad), scale)
    strided = F.conv_transpose2d(x, transposed_kernel(weight, scale=scale), stride=scale, padding=scale * pad)
    torch.testing.assert_close(strided, shuffled, rtol=0, atol=1e-12)


def test_transposed_kernel_by_hand():
    # 1×1, scale 2: the four channels are the four pixels of the block.
    weight = torch.arange(4.0).view(4, 1, 1, 1)
    assert transposed_kernel(weight, scale=2).tolist() == [[[[0, 1], [2, 3]]]]


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = ESPCN(2)
    model(torch.rand(1, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_margin_is_the_receptive_field():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 21, 21, requires_grad=True)
    model = ESPCN(2, in_channels=1)
    model(x)[..., 20:22, 20:22].sum().backward()  # the block of input pixel (10, 10)
    rows = x.grad[0, 0].abs().sum(1).nonzero()
    assert (int(rows.min()), int(rows.max())) == (10 - model.margin, 10 + model.margin)


def test_a_scale_below_one_is_refused():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        ESPCN(0)
