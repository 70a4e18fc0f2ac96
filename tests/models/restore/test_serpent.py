import pytest
import torch

from foveal.evidence.models.restore import serpent as evidence
from foveal.measure.cost import count_macs
from foveal.models.restore.serpent import Serpent, SerpentBlock, serpent_small


def tiny(**arguments):
    return Serpent(dim=4, depths=(1, 1, 1), state=2, **arguments).eval()


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (8, 16)])
def test_any_size(patch_size, size):
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        assert tiny(patch_size=patch_size)(x).shape == x.shape


def test_it_corrects_its_input():
    network = tiny()
    torch.nn.init.zeros_(network.tail.weight)
    torch.nn.init.zeros_(network.tail.bias)
    x = torch.rand(1, 3, 9, 6)
    assert torch.equal(network(x), x)


def test_widths_double_and_places_shrink():
    network, seen = tiny(), []
    for stage in (*network.encoder, network.deepest, *network.decoder):
        stage.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[1:])))
    with torch.no_grad():
        network(torch.rand(1, 3, 16, 24))
    assert seen == [(4, 8, 12), (8, 4, 6), (16, 2, 3), (8, 4, 6), (4, 8, 12)]


def test_a_block_sees_the_whole_map():
    torch.manual_seed(0)
    block, x = SerpentBlock(4, state=2), torch.rand(1, 4, 6, 5, requires_grad=True)
    block(x)[0, :, 3, 2].sum().backward()
    assert (x.grad[0].abs().sum(0) > 0).all()


def test_a_block_without_its_last_projection_changes_nothing():
    block, x = SerpentBlock(4, state=2), torch.rand(1, 4, 6, 5)
    torch.nn.init.zeros_(block.mixer.out_proj.weight)
    assert torch.equal(block(x), x)


def test_scans_and_convolutions_cost_the_same(monkeypatch):
    scans = []

    def counted(u, delta, decay, *_, **__):
        scans.append(delta.numel() * (9 * decay.shape[1] + 1))
        return u

    monkeypatch.setattr("foveal.nn.ss2d.selective_scan2d", counted)
    pair = [serpent_small(in_channels=1), evidence.small_convolutions(in_channels=1)]
    rest, convolutions = (count_macs(network, (1, 1, 64, 64)) for network in pair)
    assert len(scans) == 6
    assert convolutions == pytest.approx(rest + sum(scans), rel=0.02)


@pytest.mark.parametrize("wrong", [{"depths": ()}, {"patch_size": 0}])
def test_a_level_and_a_pixel_at_least(wrong):
    with pytest.raises(ValueError, match="depths must have a level and patch_size be at least 1, got"):
        Serpent(8, **wrong)
