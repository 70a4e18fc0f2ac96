import pytest
import torch
from torch import nn

from foveal.nn.sic_layer import (
    SIC,
    SpatialBottleneck,
    channel_blocks,
    project_blocks,
    sic,
    spatial_bottleneck,
    stand_in,
)


def test_blocks_wrap_round_the_torus():
    # channels 0 1 2 / 3 4 5; the block of the first has its own row and the column before it
    blocks = channel_blocks((2, 3), (1, 2))
    assert blocks[0].tolist() == [0, 2]
    assert blocks[4].tolist() == [3, 4]
    assert torch.equal(blocks.flatten().bincount(), torch.full((6,), 2))  # each input is read as often as any other


def test_more_outputs_read_the_block_at_their_scaled_place():
    assert channel_blocks((4,), (1,), (8,)).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_connections_that_do_not_exist_are_not_read():
    blocks = channel_blocks((2, 3), (1, 2))
    x = torch.zeros(1, 6, 2, 2)
    x[:, 1] = 1
    out = project_blocks(x, torch.ones(6, 2), blocks)
    assert (out.amax((0, 2, 3)) > 0).tolist() == [1 in row for row in blocks.tolist()]


def test_the_whole_grid_is_a_projection_of_all_channels():
    torch.manual_seed(0)
    x = torch.randn(2, 12, 5, 3)
    whole, local = SIC(12, grid=(3, 4), span=(3, 4)), SIC(12, grid=(3, 4), span=(3, 2))
    plain = SIC(12)
    plain.load_state_dict({k: v for k, v in whole.state_dict().items() if k != "blocks"})
    torch.testing.assert_close(whole(x), plain(x))
    assert local.projection.numel() == whole.projection.numel() // 2


def test_unit_filter_and_projection_keep_the_input():
    x = torch.randn(1, 4, 6, 5)
    spatial = nn.init.dirac_(torch.empty(4, 1, 3, 3), groups=4)
    eye = torch.eye(4)[..., None, None]
    torch.testing.assert_close(sic(x, spatial, eye), x)
    layer = SIC(4)
    nn.init.zeros_(layer.projection)
    assert torch.equal(layer(x), x)  # residual


def test_a_bottleneck_is_constant_in_each_cell_for_a_flat_kernel():
    torch.manual_seed(0)
    x, projection = torch.randn(2, 3, 4, 6), torch.randn(5, 3, 1, 1)
    out = spatial_bottleneck(x, torch.full((3, 1, 2, 2), 0.25), projection, torch.ones(5, 1, 2, 2))
    mean = torch.nn.functional.avg_pool2d(x, 2)
    wanted = torch.conv2d(mean, projection).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(out, wanted)


def test_a_bottleneck_of_scale_one_is_a_projection():
    torch.manual_seed(0)
    layer, x = SpatialBottleneck(4, 6, scale=1), torch.randn(1, 4, 3, 5)
    wanted = torch.conv2d(x * layer.down[:, 0], layer.projection) * layer.up[:, 0]
    torch.testing.assert_close(layer(x), wanted)
    same = SpatialBottleneck(4)
    nn.init.zeros_(same.projection)
    x = torch.randn(1, 4, 2, 4)
    assert torch.equal(same(x), x)


def test_a_stand_in_is_equal_to_a_separable_convolution_and_near_to_others():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 0), dilation=(1, 2), padding_mode="reflect")
    x = torch.randn(2, 4, 9, 11)
    apart = (stand_in(layer, x.shape)(x) - layer(x)).square().mean().sqrt()
    assert 0.01 < apart < layer(x).std()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(6, 4, 1, 1) * torch.randn(1, 4, 3, 5))
    torch.testing.assert_close(stand_in(layer, x.shape)(x), layer(x))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: SIC(4, kernel_size=2), "kernel_size must be odd, got 2; take 3"),
        (lambda: SIC(6, grid=(2, 2), span=(1, 1)), r"grids must hold 6 channels in and 6 out, got \(2, 2\)"),
        (lambda: channel_blocks((2, 3), (1,)), r"the same number of sides, got \(2, 3\), \(1,\)"),
        (lambda: channel_blocks((2, 3), (1, 4)), r"must fit into the grid \(2, 3\), got span \(1, 4\)"),
        (lambda: SpatialBottleneck(4, scale=0), "scale must be at least 1, got 0"),
        (lambda: SpatialBottleneck(4)(torch.zeros(1, 4, 4, 5)), "must be multiples of 2, got 4×5; pad them"),
        (lambda: stand_in(nn.Conv2d(4, 4, 3, groups=2), (1, 4, 8, 8)), "sic stands in for a dense convolution"),
    ],
)
def test_what_does_not_fit_raises(build, text):
    with pytest.raises(ValueError, match=text):
        build()
