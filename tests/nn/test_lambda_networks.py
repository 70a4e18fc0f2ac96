import pytest
import torch
from torch import nn

from foveal.nn.lambda_networks import LambdaLayer, lambda_layer, pair_embeddings, stand_in
from foveal.shrink.swap.operators import operator


def _drawn(side, window):
    draw = torch.Generator().manual_seed(0)
    sizes = {"queries": (1, 2, 3), "keys": (1, 3), "values": (1, 4)}
    found = {name: torch.randn(*size, side, side, generator=draw) for name, size in sizes.items()}
    return {**found, "weight": torch.randn(3, window, window, generator=draw)}


def test_embeddings_of_pairs_are_of_their_displacement():
    weight = torch.arange(9.0).view(1, 3, 3) + 1
    pairs = pair_embeddings(weight, 2, 3)[0]
    assert torch.equal(pairs.diagonal(), torch.full((6,), 5.0))
    assert pairs[0, 1] == 6  # one to the right
    assert pairs[0, 3] == 8  # one down
    assert pairs[3, 1] == 3  # one up, one to the right
    assert pairs[0, 2] == 0  # two to the right


def test_one_head_one_key_is_a_convolution():
    given = _drawn(9, 3)
    queries, values, weight = torch.ones(1, 1, 1, 9, 9), given["values"], given["weight"][:1]
    out = lambda_layer(queries, given["keys"][:, :1], values, weight)
    wanted = torch.conv2d(values.transpose(0, 1), weight[:, None], padding=1).transpose(0, 1)
    shares = given["keys"][:, :1].flatten(2).softmax(-1)
    torch.testing.assert_close(out, wanted + (shares * values.flatten(2)).sum(-1)[..., None, None])


def test_a_wide_window_sees_the_whole_picture():
    given = _drawn(5, 9)
    far = torch.nn.functional.pad(given["weight"], (2, 2, 2, 2), value=7.0)  # displacements that no pair has
    torch.testing.assert_close(lambda_layer(**{**given, "weight": far}), lambda_layer(**given))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_heads": 3}, "num_heads must divide the 8 output channels, got 3"),
        ({"num_heads": 0}, "num_heads must divide the 8 output channels, got 0"),
        ({"kernel_size": 4}, "must be odd, got 4; take 5"),
    ],
)
def test_sizes(options, text):
    with pytest.raises(ValueError, match=text):
        LambdaLayer(8, **options)


def test_it_stands_in_for_a_convolution_with_its_bias():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, padding=1)
    stand = stand_in(layer, (1, 6, 2, 3)).eval()
    assert stand[0].conv_lambda.kernel_size == (5, 5)  # all displacements of three pixels
    assert stand(torch.zeros(1, 6, 2, 3)).flatten(2).mean(2).allclose(layer.bias)
    assert operator("lambda").stand_in(layer, (1, 6, 9, 9))(torch.randn(2, 6, 9, 9)).shape == (2, 8, 9, 9)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), "stands in for a dense convolution, got Conv2d"),
        (nn.Linear(4, 4), "got Linear"),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), "needs stride 1"),
        (nn.Conv2d(4, 4, 3), "full padding"),
        (nn.Conv2d(4, 6, 3, padding=1), "num_heads must divide the 6 output channels, got 4"),
    ],
)
def test_layers_that_it_cannot_replace(layer, text):
    with pytest.raises(ValueError, match=text):
        stand_in(layer, (1, 4, 8, 8))
