import pytest
import torch
import torch.nn.functional as F

from foveal.nn.unet import ResidualBlock, UNet, sinusoids, upsampled


def test_sinusoids_by_the_formula():
    out = sinusoids(torch.tensor([0, 3]), 4)
    assert torch.equal(out[0], torch.tensor([1.0, 1, 0, 0]))
    torch.testing.assert_close(out[1], torch.tensor([3.0, 0.03, 3.0, 0.03]).cos() * torch.tensor([1.0, 1, 0, 0])
                               + torch.tensor([3.0, 0.03, 3.0, 0.03]).sin() * torch.tensor([0.0, 0, 1, 1]))  # fmt: skip


def test_enlarging_keeps_a_ramp_and_a_picture_of_the_same_size():
    ramp = torch.arange(12.0, dtype=torch.float64).expand(1, 1, 12, 12)
    large = upsampled(ramp, (24, 24))
    torch.testing.assert_close(large[0, 0, 12, 6:18], torch.arange(2.75, 8.5, 0.5, dtype=torch.float64))
    assert upsampled(ramp, (12, 12)) is ramp


def test_a_block_by_the_formula():
    torch.manual_seed(0)
    block = ResidualBlock(4, 6, 5, groups=2).double()
    x, embedded = torch.randn(2, 4, 3, 5).double(), torch.randn(2, 5).double()
    scale, shift = block.time(F.silu(embedded)).view(2, 2, 6, 1, 1).unbind(1)
    z = F.group_norm(block.conv1(F.silu(F.group_norm(x, 2, block.norm1.weight, block.norm1.bias))), 2)
    expected = block.skip(x) + block.conv2(F.silu(z * (1 + scale) + shift))
    torch.testing.assert_close(block(x, embedded), expected)


@pytest.mark.parametrize(("multiples", "depth", "patch"), [((1,), 1, 1), ((1, 2), 2, 2), ((1, 2, 3), 1, 1)])
def test_shape_zero_and_gradients(multiples, depth, patch):
    torch.manual_seed(0)
    network = UNet(2, condition=3, dim=4, multiples=multiples, depth=depth, patch=patch, groups=2)
    noisy, t, condition = torch.randn(2, 2, 8, 12), torch.tensor([0, 7]), torch.rand(2, 3, 4, 6)
    out = network(noisy, t, condition)
    assert out.shape == noisy.shape
    assert not out.any()
    other = UNet(2, condition=3, dim=4, multiples=multiples, depth=depth, patch=patch, groups=2, skip=True)
    assert torch.equal(other(noisy, t, condition), noisy)
    torch.nn.init.normal_(network.head.weight)
    network(noisy, t, condition).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in network.parameters())


def test_time_and_condition_matter():
    torch.manual_seed(0)
    network = UNet(1, condition=1, dim=4, multiples=(1,), groups=2)
    torch.nn.init.normal_(network.head.weight)
    noisy, t, condition = torch.randn(1, 1, 4, 4), torch.tensor([5]), torch.rand(1, 1, 2, 2)
    out = network(noisy, t, condition)
    assert not torch.equal(out, network(noisy, t + 1, condition))
    assert not torch.equal(out, network(noisy, t, condition + 1))
    torch.testing.assert_close(out, network(noisy, t, upsampled(condition, (4, 4))))
    assert UNet(1, condition=0, dim=4, multiples=(1,), groups=2)(noisy, t).shape == noisy.shape


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="dim must be even and a multiple of groups = 4, got 6"):
        UNet(dim=6)
    with pytest.raises(ValueError, match="H and W must be multiples of 4, got 8 and 6; pad with"):
        UNet(dim=4)(torch.rand(1, 3, 8, 6), torch.tensor([0]), torch.rand(1, 3, 4, 3))
