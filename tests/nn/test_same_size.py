import pytest
import torch
from torch import nn

from foveal.nn.same_size import keeps_size


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({"kernel_size": 3, "padding": 1}, True),
        ({"kernel_size": 3, "padding": 2, "dilation": 2}, True),
        ({"kernel_size": (3, 5), "padding": (1, 2)}, True),
        ({"kernel_size": 5, "padding": "same"}, True),
        ({"kernel_size": 3, "padding": "valid"}, False),
        ({"kernel_size": 3, "padding": 2}, False),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, False),
        ({"kernel_size": (3, 5), "padding": 1}, False),
        ({"kernel_size": 4, "padding": 2}, False),
    ],
)
def test_it_says_what_the_layer_does(options, keeps):
    layer = nn.Conv2d(1, 1, **options)
    assert keeps_size(layer) == keeps
    assert (layer(torch.zeros(1, 1, 9, 9)).shape[2:] == (9, 9)) == keeps
