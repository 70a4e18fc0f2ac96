import pytest
import torch
from torch import nn

from foveal.evidence.models.backbone.wavemix import TRIAL, _kept_bytes
from foveal.models.backbone.wavemix import WaveBlock, WaveMix, from_authors, haar, haar_reference, inverse_haar

SMALL = {"dim": 8, "depth": 2, "num_classes": 5}


@pytest.mark.parametrize("size", [(2, 2), (6, 14), (10, 4)])
def test_the_transform_is_four_filters(size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    found = [torch.cat([low[:, :, None], details], 2) for low, details in (haar(x), haar_reference(x))]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*(torch.autograd.grad(out.pow(3).sum(), x)[0] for out in found))
    # orthonormal: what is spread over the bands has the length of the map
    torch.testing.assert_close(found[0].square().sum(), x.square().sum())


def test_the_inverse_is_exact_on_bytes():
    x = torch.randint(256, (1, 2, 6, 10)).float()
    low, details = haar(x)
    assert torch.equal(inverse_haar(low, details), x)
    assert not torch.equal(inverse_haar(low, torch.zeros_like(details)), x)


def test_bands_of_a_row_a_column_and_a_diagonal():
    pictures = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[1.0, -1.0], [1.0, -1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
    low, details = haar(pictures[:, None])
    assert not low.any()
    assert torch.equal(details[:, 0, :, 0, 0], 2 * torch.eye(3))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_block_is_the_formula(levels):
    torch.manual_seed(0)
    block = WaveBlock(8, levels=levels).double()
    x = torch.randn(2, 8, 8, 16, dtype=torch.float64)
    map_, bands = torch.einsum("oi,bihw->bohw", block.reduction.weight[:, :, 0, 0], x), []
    map_ = map_ + block.reduction.bias[:, None, None]
    for _ in range(levels):
        map_, details = haar_reference(map_)
        # details of a channel stand together
        bands.append(torch.cat([map_, *details.unbind(1)], 1))
    out = bands[-1].new_zeros(2, 0, *bands[-1].shape[2:])
    for level in reversed(range(levels)):
        out = block.mixers[level](torch.cat([bands[level], out], 1))
        assert out.shape == (2, 8 if level == 0 else 4, 8 // 2**level, 16 // 2**level)
    torch.testing.assert_close(block(x), x + out)


@pytest.mark.parametrize("size", [(5, 7), (9, 16), (1, 1)])
def test_sides_are_filled_up_and_cut(size):
    torch.manual_seed(0)
    block = WaveBlock(4, levels=3).eval()
    x = torch.randn(1, 4, *size)
    padded = nn.functional.pad(x, (0, -size[1] % 8, 0, -size[0] % 8))
    torch.testing.assert_close(block(x), x + block.mixed(padded)[..., : size[0], : size[1]])


def test_maps_keep_their_resolution():
    model = WaveMix(**SMALL).eval()
    last, maps = model.forward_intermediates(torch.randn(2, 3, 44, 32))
    assert [tuple(one.shape) for one in (last, *maps)] == [(2, 8, 11, 8)] * 3
    strided = WaveMix(**SMALL, strided=True, patch_size=1).eval()
    assert strided.forward_features(torch.randn(1, 3, 9, 8)).shape == (1, 8, 9, 8)


def test_names_of_the_authors():
    model = WaveMix(**SMALL, levels=2)
    block = [f"feedforward{level}.{part}.weight" for level in (1, 2) for part in (0, 3, 4, 5)]
    theirs = [f"layers.{i}.{name}" for i in range(2) for name in (*block, "reduction.bias")]
    theirs += ["conv.0.weight", "conv.4.running_mean", "pool.2.bias"]
    assert set(from_authors(dict.fromkeys(theirs))) <= set(model.state_dict())
    lite = from_authors({"layers.1.feedforward.3.bias": None})
    assert set(lite) <= set(WaveMix(**SMALL, levels=1).state_dict())


def test_what_is_kept_is_counted():
    """A linear layer keeps its input, a GELU its own, and weights are not counted."""

    def build(side):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, 10), nn.GELU(), nn.Linear(10, 2))

    assert _kept_bytes(build, 4) == 4 * (48 + 10 + 10)


def test_the_rival_takes_the_same_pictures():
    x = torch.randn(2, 3, 32, 32)
    assert TRIAL.ours()(x).shape == TRIAL.rival()(x).shape == (2, 10)


def test_sizes():
    with pytest.raises(ValueError, match="dim must be a multiple of 4, one part for each band, got 10; take 12"):
        WaveBlock(10)
    with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
        WaveBlock(8, levels=0)
    with pytest.raises(ValueError, match="patch_size is 1, 4 or 9, got 8"):
        WaveMix(8, 1, strided=True, patch_size=8)
    with pytest.raises(ValueError, match="haar needs an even height and width, got 3×4; pad the map"):
        haar(torch.zeros(1, 1, 3, 4))
