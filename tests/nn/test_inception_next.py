import pytest
import timm
import torch
from torch import nn

from foveal.evidence.nn.inception_next import TRIAL, ours, twin
from foveal.nn.inception_next import (
    InceptionDepthwise,
    inception_depthwise,
    inception_depthwise_reference,
    stand_in,
    use_inception_,
)
from foveal.shrink.swap.operators import operator

SMALL = {"dims": (24, 32), "depths": (1, 2), "num_classes": 5}


def test_most_channels_pass():
    torch.manual_seed(0)
    x = torch.randn(2, 19, 5, 7)
    out = InceptionDepthwise(19)(x)
    assert torch.equal(out[:, :13], x[:, :13])
    assert not torch.isclose(out[:, 13:], x[:, 13:]).all((0, 2, 3)).any()


def test_a_row_does_not_see_other_rows_nor_a_column_other_columns():
    layer, x = InceptionDepthwise(8), torch.zeros(1, 8, 15, 15)
    x[..., 7, 7] = 1
    still = layer(torch.zeros_like(x))
    seen = (layer(x) - still)[0].abs() > 0
    assert [tuple(channel.any(axis).sum().item() for axis in (1, 0)) for channel in seen[4:]] == [
        (1, 1),
        (3, 3),
        (1, 11),
        (11, 1),
    ]


@pytest.mark.parametrize(("dim", "dilation"), [(6, 1), (11, 2)])
def test_it_is_one_depthwise_convolution(dim, dilation):
    torch.manual_seed(0)
    x, kernels = torch.randn(2, dim, 6, 9), [torch.randn(2, 1, *size) for size in ((3, 3), (1, 7), (7, 1))]
    torch.testing.assert_close(
        inception_depthwise(x, *kernels, dilation=dilation),
        inception_depthwise_reference(x, *kernels, dilation=dilation),
    )


@pytest.mark.parametrize("arguments", [{}, {"output_stride": 4}])
def test_timms_network_gives_the_same_logits(arguments):
    torch.manual_seed(0)
    model = timm.create_model("inception_next_atto", **SMALL, **arguments).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape) / 3)
    x = torch.randn(2, 3, 37, 50)
    before = model(x)
    assert use_inception_(model) is model
    assert sum(isinstance(module, InceptionDepthwise) for module in model.modules()) == 3
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-4)
    value = model.stages[1].blocks[1].token_mixer.dwconv_w.weight
    value.data.add_(0.3)
    assert not torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)


def flat(*size):
    return torch.randn(2, 16, 1, 1).expand(-1, -1, *size)


@pytest.mark.parametrize(("size", "bias", "padding"), [(5, True, 2), (7, False, 3), (9, True, "same")])
def test_a_stand_in_starts_equal_on_flat_pictures(size, bias, padding):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, size, padding=padding, groups=16, bias=bias)
    ours, inside = stand_in(layer, (1, 16, 13, 13)), slice(size // 2, -(size // 2))
    x = flat(13, 13)
    torch.testing.assert_close(ours(x)[..., inside, inside], layer(x)[..., inside, inside])
    # rows and columns are equal on pictures that change along them
    along = torch.randn(1, 16, 1, 13).expand(-1, -1, 13, -1)
    torch.testing.assert_close(ours(along)[:, 12:14, inside], layer(along)[:, 12:14, inside])
    down = along.mT
    torch.testing.assert_close(ours(down)[:, 14:, :, inside], layer(down)[:, 14:, :, inside])


def test_the_kernel_of_a_square_goes_to_the_nearest_taps():
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.weight[5, 0] = torch.arange(25.0).view(5, 5)
    square = stand_in(layer, (1, 8, 9, 9))[0].dwconv_hw.weight[0, 0]
    rows = [layer.weight[5, 0, part].sum(0) for part in (slice(0, 2), slice(2, 3), slice(3, 5))]
    want = torch.stack([torch.stack([row[:2].sum(), row[2], row[3:].sum()]) for row in rows])
    assert torch.equal(square, want)


def test_swap_knows_it():
    assert operator("inception").of == "depthwise"
    found = operator("inception").stand_in(nn.Conv2d(8, 8, 7, padding=3, groups=8), (1, 8, 9, 9))
    assert isinstance(found[0], InceptionDepthwise)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(16, 16, 7, padding=3), "stands in for a depthwise convolution, got Conv2d"),
        (nn.Linear(4, 4), "got Linear"),
        (nn.Conv2d(16, 16, 3, padding=1, groups=16), r"odd square kernel of at least 5, got \(3, 3\)"),
        (nn.Conv2d(16, 16, (7, 5), padding=(3, 2), groups=16), r"odd square kernel of at least 5, got \(7, 5\)"),
        (nn.Conv2d(16, 16, 7, 2, padding=3, groups=16), "needs stride 1, no dilation and full padding"),
        (nn.Conv2d(16, 16, 7, groups=16), "needs stride 1, no dilation and full padding"),
        (nn.Conv2d(4, 4, 7, padding=3, groups=4), "branch_ratio must be in 1/4…1/3 for 4 channels"),
    ],
)
def test_layers_that_it_cannot_replace(layer, text):
    with pytest.raises(ValueError, match=text):
        stand_in(layer, (1, 16, 9, 9))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"band_kernel_size": 10}, "band_kernel_size must be odd, got 10; take 11"),
        ({"square_kernel_size": 2}, "square_kernel_size must be odd, got 2; take 3"),
        ({"branch_ratio": 0.4}, "branch_ratio must be in 1/8…1/3 for 8 channels, got 0.4"),
    ],
)
def test_sizes(options, text):
    with pytest.raises(ValueError, match=text):
        InceptionDepthwise(8, **options)


def test_the_twin_differs_in_its_depthwise_kernels_only():
    x = torch.randn(2, 3, 32, 32)
    kinds = [[type(module).__name__ for module in build().modules()] for build in (ours, twin)]
    assert ours()(x).shape == twin()(x).shape == (2, 10)
    assert kinds[0].count("InceptionDepthwise") == 4
    assert [sum(m.kernel_size == (7, 7) for m in b().modules() if isinstance(m, nn.Conv2d)) for b in (ours, twin)] == [
        0,
        4,
    ]
    assert TRIAL.rival is twin
