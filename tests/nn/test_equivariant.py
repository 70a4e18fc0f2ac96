import pytest
import torch
import torch.nn.functional as F

from foveal.nn.equivariant import MOVES, Alike, back, fields, moved, phases, still


def test_moves_are_the_eight_of_a_square():
    picture = torch.arange(6).view(2, 3)
    results = [moved(picture, move).tolist() for move in MOVES]
    turned = [torch.rot90(picture, k).tolist() for k in range(4)]
    mirrored = [torch.rot90(picture.flip(-1), k).tolist() for k in range(4)]
    assert sorted(map(str, results)) == sorted(map(str, turned + mirrored))


@pytest.mark.parametrize("move", MOVES)
def test_back_undoes_a_move(move):
    picture = torch.arange(6).view(2, 3)
    assert torch.equal(moved(moved(picture, move), back(move)), picture)


@pytest.mark.parametrize("move", MOVES)
def test_layers_move_with_the_picture(move):
    torch.manual_seed(0)
    scale, hidden, out = 3, fields(16), phases(3)
    first = Alike(hidden, still(3), 3)(torch.randn(16, 3, 3, 3))
    second = Alike(hidden, hidden, 5)(torch.randn(16, 16, 5, 5))
    last = Alike(out, hidden, 3)(torch.randn(scale**2, 16, 3, 3))

    def network(x):
        x = F.leaky_relu(F.conv2d(x, first, padding=1), 0.1)
        x = F.leaky_relu(F.conv2d(x, second, padding=2), 0.1)
        return F.pixel_shuffle(F.conv2d(x, last, padding=1), scale)

    x = torch.randn(2, 3, 9, 12)
    y = network(x)
    assert (y - y.flip(-1)).abs().max() > 1, "the picture is not symmetrical itself"
    torch.testing.assert_close(network(moved(x, move)), moved(y, move), atol=1e-4, rtol=1e-5)


def test_what_is_alike_stays():
    tie = Alike(fields(16), fields(8), 3)
    once = tie(torch.randn(16, 8, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(tie(once), once)
    assert once.round(decimals=9).unique().numel() == once.numel() // 8


def test_gradient_is_that_of_a_mean():
    tie = Alike(fields(8), phases(2), 3).double()
    weight = torch.randn(8, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tie, (weight,))


def test_channels_out_of_fields():
    with pytest.raises(ValueError, match="a multiple of 8 channels, got 20; take 24"):
        fields(20)
