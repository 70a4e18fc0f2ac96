import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.nn.inception_v3 import small, unfactorised
from foveal.measure.cost import count_macs
from foveal.nn.inception_v3 import (
    Inception,
    composed_kernel,
    factorised_conv,
    factorised_conv_reference,
    factors,
    multiply_adds,
    smoothed_cross_entropy,
)


def inputs(first, second, height=5, width=7):
    torch.manual_seed(0)
    shapes = (2, 3, height, width), (4, 3, *first), (5, 4, *second)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("sides", [(1, 1), (5, 8)])
def test_it_is_that_tap_by_tap(size, relu, sides):
    given = inputs(*factors(size), *sides)
    found = [function(*given, relu=relu) for function in (factorised_conv, factorised_conv_reference)]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), given) for out in found))


@pytest.mark.parametrize("size", [3, 7, 9])
def test_a_row_and_a_column_are_one_kernel(size):
    x, first, second = inputs(*factors(size))
    kernel = composed_kernel(first, second)
    assert kernel.shape == (5, 3, size, size)
    torch.testing.assert_close(kernel, torch.einsum("omh,mcw->ochw", second[..., 0], first[:, :, 0]))
    want = torch.conv2d(x, kernel, padding=size // 2)
    torch.testing.assert_close(factorised_conv(x, first, second, relu=False), want)


def test_two_small_kernels_are_one_of_five_away_from_the_border():
    x, first, second = inputs(*factors(5), 8, 9)
    want = torch.conv2d(x, composed_kernel(first, second))
    out = factorised_conv(x, first, second, relu=False)
    torch.testing.assert_close(out[..., 2:-2, 2:-2], want)
    assert not torch.allclose(out, torch.conv2d(x, composed_kernel(first, second), padding=2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_smoothed_labels_are_torchs(smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 5, dtype=torch.float64, requires_grad=True), torch.randint(5, (9,))
    ours = smoothed_cross_entropy(logits, labels, smoothing=smoothing)
    theirs = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits) for loss in (ours, theirs)))


def test_predicted_multiply_adds():
    assert multiply_adds((1, 1, 1), factors(5)) / multiply_adds((1, 1), [(5, 5)]) == 18 / 25
    assert multiply_adds((2, 3, 4), factors(7)) == 7 * (2 * 3 + 3 * 4)


@pytest.mark.parametrize(("size", "layers"), [(3, 2), (5, 2), (7, 2)])
def test_a_block_has_four_branches(size, layers):
    block, square = (Inception(6, 4, kernel_size=size, factorised=yes) for yes in (True, False))
    convolutions = [[m.kernel_size for m in branch.modules() if isinstance(m, nn.Conv2d)] for branch in block.branches]
    assert [len(branch) for branch in convolutions] == [1, 1 + layers, 1 + 2 * layers, 1]
    assert convolutions[2][1:] == [*factors(size)] * 2
    assert square.branches[1][1].conv.kernel_size == (size, size)
    x = torch.randn(2, 6, 5, 7)
    assert block(x).shape == square(x).shape == (2, 16, 5, 7)
    pointwise = 4 * multiply_adds((6, 4), [(1, 1)])
    assert count_macs(block, (1, 6, 5, 7)) == 35 * (pointwise + 3 * multiply_adds((4, 4, 4), factors(size)))
    assert count_macs(square, (1, 6, 5, 7)) == 35 * (pointwise + 3 * multiply_adds((4, 4), [(size, size)]))


def test_the_twin_differs_in_kernels_only():
    x = torch.randn(2, 3, 32, 32)
    ours, theirs = small(), unfactorised(32)
    assert ours(x).shape == theirs(x).shape == (2, 10)
    kernels = {m.kernel_size for m in ours.modules() if isinstance(m, nn.Conv2d)}
    assert kernels == {(1, 1), (3, 3), (1, 7), (7, 1), (1, 3), (3, 1)}
    assert {m.kernel_size for m in theirs.modules() if isinstance(m, nn.Conv2d)} == {(1, 1), (3, 3), (5, 5), (7, 7)}


def test_what_cannot_be():
    for size in (1, 4):
        with pytest.raises(ValueError, match=f"kernel_size must be odd and at least 3, got {size}; take 3, 5 or 7"):
            factors(size)
    with pytest.raises(ValueError, match="2 kernels have 3 numbers of channels, got 2"):
        multiply_adds((1, 2), factors(3))
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\], got 1.5; the paper takes 0.1"):
        smoothed_cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), smoothing=1.5)
