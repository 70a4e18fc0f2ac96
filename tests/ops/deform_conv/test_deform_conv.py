import pytest
import torch
import torch.nn.functional as F
import torchvision

from foveal.ops.backends import ShapeError
from foveal.ops.deform_conv import Buffers, buffers, deform_conv2d, explain, most_rows, restricted

SETTINGS = [
    {},
    {"groups": 2, "share": 2, "stride": 2, "masked": True},
    {"groups": 8, "kernel": (2, 3), "padding": 1, "size": (7, 1)},
    {"share": 4, "kernel": (3, 1), "dilation": 2, "padding": 2, "masked": True},
    {"kernel": (1, 1), "size": (1, 63)},
]


def layer(*, size=(7, 9), groups=1, share=1, kernel=(3, 3), stride=1, padding=0, dilation=1, masked=False):
    generator = torch.Generator().manual_seed(0)
    down, across = ((n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(size, kernel, strict=True))
    taps = share * kernel[0] * kernel[1]
    shapes = (2, 8, *size), (2, 2 * taps, down, across), (16, 8 // groups, *kernel), (16,)
    x, offset, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    mask = torch.rand(2, taps, down, across, generator=generator, dtype=torch.float64) if masked else None
    words = {"stride": stride, "padding": padding, "dilation": dilation}
    return [x, 3 * offset, weight, bias], mask, words


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("sizes", SETTINGS, ids=str)
def test_outputs_and_gradients_are_torchvisions(backend, sizes):
    tensors, mask, words = layer(**sizes)
    found = []
    for ours in (True, False):
        leaves = [t.clone().requires_grad_() for t in (*tensors, *([] if mask is None else [mask]))]
        x, offset, weight, bias, *rest = leaves
        given = rest[0] if rest else None
        if ours:
            y = deform_conv2d(x, offset, weight, bias, mask=given, backend=backend, **words)
        else:
            y = torchvision.ops.deform_conv2d(x, offset, weight, bias, mask=given, **words)
        found.append([y, *torch.autograd.grad(y.sin().sum(), leaves)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_without_offsets_it_is_a_convolution():
    (x, offset, weight, bias), _, _ = layer(padding=1)
    y = deform_conv2d(x, 0 * offset, weight, bias, padding=1)
    torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1))
    spread = torch.zeros(2, 1, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(deform_conv2d(x, spread, weight, bias, padding=1, square=True), y)


def test_a_spread_of_one_is_a_dilation_of_two():
    (x, _, weight, bias), _, _ = layer()
    spread = torch.ones(2, 1, 7, 9, dtype=torch.float64)
    y = deform_conv2d(x, spread, weight, bias, padding=1, square=True)
    torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=2, dilation=2))


def test_restrictions_by_hand():
    offset = torch.tensor([-2.6, 0.4, 1.6, 0.5]).view(1, 4, 1, 1)
    assert restricted(offset, (2, 1), reach=2).flatten().tolist() == [-2, pytest.approx(0.4), pytest.approx(1.6), 0.5]
    assert restricted(offset, (2, 1), reach=2, whole=True).flatten().tolist() == [-2, 0, 2, 0]
    spread = torch.tensor([0.5, 3.0, -1.0]).view(1, 1, 1, 3)
    square = restricted(spread, (1, 5), square=True, reach=2).view(5, 2, 3)
    assert square[:, 0].abs().max() == 0
    assert square[:, 1].T.tolist() == [[-1, -0.5, 0, 0.5, 1], [-2, -1, 0, 1, 2], [0, 0, 0, 0, 0]]
    assert not restricted(spread, (1, 5), square=True, reach=0).any()


@pytest.mark.parametrize("options", [{"whole": True}, {"reach": 1}, {"whole": True, "reach": 1}])
def test_a_restriction_is_the_free_operator_at_restricted_offsets(options):
    (x, offset, weight, bias), mask, words = layer(share=2, masked=True)
    want = torchvision.ops.deform_conv2d(x, restricted(offset, (3, 3), **options), weight, bias, mask=mask, **words)
    for learnt in (False, True):  # with gradients whole offsets are read as four pixels and as one
        y = deform_conv2d(x, offset.requires_grad_(learnt), weight, bias, mask=mask, **words, **options)
        torch.testing.assert_close(y.detach(), want)


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_whole_offsets_get_the_gradients_of_bilinear_reads(backend):
    tensors, mask, words = layer(share=2, masked=True)
    found = []
    for whole in (False, True):
        leaves = [t.clone().requires_grad_() for t in tensors[:2]]
        y = deform_conv2d(*leaves, *tensors[2:], mask=mask, whole=whole, backend=backend, **words)
        found.append(torch.autograd.grad(y.sum(), leaves))
    for free, rounded in zip(*found, strict=True):
        torch.testing.assert_close(free, rounded)


def test_rounding_passes_the_gradient():
    offset = torch.tensor([0.4, 1.2]).view(1, 2, 1, 1).requires_grad_()
    restricted(offset, (1, 1), whole=True).sum().backward()
    assert offset.grad.flatten().tolist() == [1, 1]


def test_offsets_far_outside_read_zeros():
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)
    for far in (1e9, -1e9):
        assert not deform_conv2d(x, torch.full((1, 2, 3, 3), far), weight).any()


def test_buffers_by_hand():
    # 4×2 pixels, one tap: row i of the output reads row i + dy
    offset = torch.zeros(1, 2, 4, 2)
    assert buffers(offset, (1, 3, 4, 2), (1, 1)) == Buffers(1, 6, 8)
    offset[0, 0, 0] = 2.0  # the first output row reads the third row of the input, the second is needed next
    assert buffers(offset, (1, 3, 4, 2), (1, 1), element=4) == Buffers(2, 48, 8)
    offset[0, 0, 3, 1] = -3.0  # the last one reads the first
    assert buffers(offset, (1, 3, 4, 2), (1, 1)).rows == 4


def test_reads_at_half_a_pixel():
    offset = torch.full((1, 2, 3, 3), 0.5)
    # four corners each, without those below the last row or right of the last column
    assert buffers(offset, (1, 1, 3, 3), (1, 1)).reads == 4 * 4 + 2 * 2 * 2 + 1


def test_a_reach_bounds_the_rows():
    generator = torch.Generator().manual_seed(0)
    for reach in (0, 1, 3):
        offset = restricted(9 * torch.randn(1, 18, 20, 5, generator=generator), (3, 3), reach=reach)
        found = buffers(offset, (1, 2, 20, 5), (3, 3), padding=1)
        assert found.rows == most_rows(20, 3, reach=reach) == 3 + 2 * reach
        assert found.bytes == found.rows * 10
    assert most_rows(20, 3) == most_rows(20, 3, reach=10) == 20
    assert most_rows(20, 3, dilation=2, reach=1) == 7


def test_whole_reads_are_one_for_a_tap():
    offset = torch.rand(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    free, whole = (
        buffers(restricted(offset, (2, 2), whole=w), (1, 1, 9, 9), (2, 2), stride=2).reads for w in (False, True)
    )
    assert (free, whole) == (4 * 64, 64)


def test_paths():
    assert explain() == {"eager": "can run", "reference": "can run"}


ONE = torch.ones(1, 1, 1, 1)
TWO = torch.zeros(1, 2, 1, 1)


@pytest.mark.parametrize(
    ("given", "words", "message"),
    [
        ((ONE[0], TWO, ONE), {}, "x, offset and weight must have four axes"),
        ((torch.ones(1, 3, 1, 1), TWO, torch.ones(2, 2, 1, 1)), {}, "with groups that divide the 3 channels of x"),
        ((torch.ones(1, 4, 1, 1), TWO, torch.ones(3, 2, 1, 1)), {}, "with groups that divide the 4 channels of x"),
        ((ONE, ONE, ONE), {}, "offset must hold 2 channels for each of G groups that divide C, got 1"),
        ((ONE, torch.zeros(1, 4, 1, 1), ONE), {}, "groups that divide C, got 4"),
        ((ONE, torch.zeros(1, 2, 2, 1), ONE), {}, "the size of the output"),
        ((ONE, TWO, ONE, torch.ones(2)), {}, "one value for each output channel"),
        ((ONE, TWO, ONE), {"mask": TWO}, "a factor for each tap"),
    ],
)
def test_shapes_that_do_not_fit_are_told(given, words, message):
    with pytest.raises(ShapeError, match=message):
        deform_conv2d(*given, **words)


def test_wrong_settings_raise():
    for words in ({"stride": 0}, {"dilation": 0}, {"padding": -1}, {"reach": -1}):
        with pytest.raises(ValueError, match="stride and dilation must be at least 1 and padding and reach at least 0"):
            deform_conv2d(ONE, TWO, ONE, **words)
    with pytest.raises(TypeError, match="x must be a real floating-point tensor"):
        deform_conv2d(ONE.int(), TWO, ONE)
