import pytest
import torch
import torch.nn.functional as F

from foveal.evidence.rivals.shuffle_mixer import ShuffleMixer, _Half
from foveal.measure.cost import count_parameters
from foveal.measure.meta import without_storage


@pytest.mark.parametrize(("scale", "parameters"), [(2, 393_939), (3, 414_739), (4, 410_579)])
def test_parameters(scale, parameters):
    """The paper prints 394 K, 415 K and 411 K."""
    with without_storage():
        assert count_parameters(ShuffleMixer(scale)) == parameters


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_zero_weights_give_bilinear(scale):
    network, x = ShuffleMixer(scale, dim=8, depth=1, kernel_size=3), torch.rand(1, 3, 5, 7)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(network(x), F.interpolate(x, scale_factor=scale, mode="bilinear"))


def test_half_of_the_channels_pass_and_all_are_shuffled():
    torch.manual_seed(0)
    half, x = _Half(16, 2), torch.randn(1, 16, 3, 3)
    normed = F.layer_norm(x.permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2)
    mixed = half.fc(normed[:, :8])
    # Channel i of group g, two channels a group, becomes channel 8 i + g.
    both = torch.cat([mixed, normed[:, 8:]], 1)
    torch.testing.assert_close(half(x), both[:, [*range(0, 16, 2), *range(1, 16, 2)]])
