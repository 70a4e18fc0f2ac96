import pytest
import torch
import torch.nn.functional as F

from foveal.ops.backends import ShapeError
from foveal.ops.inverse_conv import explain, inverse_conv, masked_conv, masked_kernel


def inputs(shape, taps, groups=1, dtype=torch.float64, size=0.3):
    draw = torch.Generator().manual_seed(0)
    channels = shape[1]
    y = torch.randn(shape, generator=draw, dtype=dtype)
    return y, size * torch.randn(channels, channels // groups, *taps, generator=draw, dtype=dtype)


def with_gradients(run, *leaves):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    x = run(*leaves)
    weights = torch.arange(1.0, x.numel() + 1, dtype=x.dtype).view_as(x) / max(x.numel(), 1)
    return (x, *torch.autograd.grad((x * weights).sum(), leaves))


def test_a_hand_computed_picture():
    weight = torch.tensor([[[[2.0, 3.0], [5.0, 9.0]]]])  # the last tap counts as 1
    x = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]]])
    y = torch.tensor([[[[1.0, 1 + 5.0], [1 + 3.0, 1 + 5 + 3 + 2.0]]]])
    assert torch.equal(masked_conv(x, weight), y)
    for backend in ("eager", "reference"):
        assert torch.equal(inverse_conv(y, weight, backend=backend), x)


def test_the_kernel_is_unit_lower_triangular_in_its_last_tap_alone():
    _, weight = inputs((1, 4, 1, 1), (2, 3), groups=2)
    kernel = masked_kernel(weight, groups=2)
    assert torch.equal(kernel[:, :, -1, -1], torch.tensor([[1, 0], [0, 1]] * 2) + weight[:, :, -1, -1] * LOWER)
    assert torch.equal(kernel[:, :, 0], weight[:, :, 0])
    assert torch.equal(kernel[:, :, 1, :2], weight[:, :, 1, :2])


LOWER = torch.tensor([[0.0, 0.0], [1.0, 0.0]] * 2)


@pytest.mark.parametrize(
    ("shape", "taps", "groups"),
    [
        ((2, 4, 5, 7), (3, 3), 2),
        ((1, 3, 1, 6), (2, 3), 1),
        ((3, 2, 6, 1), (3, 2), 1),
        ((2, 4, 3, 3), (1, 1), 4),
        ((1, 2, 4, 3), (5, 4), 1),
        ((0, 2, 4, 3), (3, 3), 1),
        ((1, 2, 0, 3), (3, 3), 1),
    ],
)
def test_sweeps_are_pixel_by_pixel_with_gradients(shape, taps, groups):
    given = inputs(shape, taps, groups)
    found = [
        with_gradients(lambda y, weight: inverse_conv(y, weight, groups=groups, backend=name), *given)  # noqa: B023
        for name in ("eager", "reference")
    ]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_it_inverts_the_convolution_and_the_dense_matrix(backend):
    y, weight = inputs((1, 2, 3, 4), (3, 2))
    x = inverse_conv(y, weight, backend=backend)
    torch.testing.assert_close(masked_conv(x, weight), y)
    torch.testing.assert_close(inverse_conv(masked_conv(y, weight), weight, backend=backend), y)
    matrix = torch.autograd.functional.jacobian(lambda v: masked_conv(v.view_as(y), weight).flatten(), y.flatten())
    assert matrix.det().item() == pytest.approx(1)
    torch.testing.assert_close(matrix @ x.flatten(), y.flatten())


def test_gradients_have_gradients():
    y, weight = (t.requires_grad_() for t in inputs((1, 2, 2, 2), (2, 2)))
    assert torch.autograd.gradcheck(inverse_conv, (y, weight))
    assert torch.autograd.gradgradcheck(inverse_conv, (y, weight))


def test_the_part_of_the_last_tap_that_is_not_read_gets_no_gradient():
    _, _, of_weight = with_gradients(inverse_conv, *inputs((1, 3, 2, 2), (2, 2)))
    assert not of_weight[:, :, -1, -1].triu().any()
    assert of_weight[:, :, -1, -1].tril(-1).count_nonzero() == 3


def test_other_strides_and_half_precision():
    y, weight = inputs((2, 4, 5, 6), (3, 3), size=0.1)
    wanted = inverse_conv(y, weight)
    apart = y.to(memory_format=torch.channels_last), weight.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(inverse_conv(*apart), wanted)
    half = inverse_conv(y.bfloat16(), weight.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), wanted, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = inverse_conv(y.float(), weight.float())
    torch.testing.assert_close(single.double(), wanted, rtol=1e-5, atol=1e-5)


def test_only_above_and_left_are_seen():
    x = F.pad(torch.ones(1, 1, 1, 1), (2, 2, 2, 2))
    y = masked_conv(x, torch.ones(1, 1, 3, 3))
    assert torch.equal(y[0, 0, 2:, 2:], torch.ones(3, 3))
    assert y.sum() == 9


def test_backends_are_listed():
    assert explain() == {"eager": "can run", "reference": "can run"}
    assert explain(torch.zeros(1, 1, 1, 1)) == explain()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda y, w: inverse_conv(y[0], w), ShapeError, r"y must be \(batch, channels, height, width\), got \(4, 2"),
        (lambda y, w: masked_conv(y[0], w), ShapeError, r"x must be \(batch, channels, height, width\), got \(4, 2"),
        (lambda y, w: inverse_conv(y, w, groups=3), ValueError, "groups must divide the 4 channels of y, got 3"),
        (lambda y, w: inverse_conv(y, w, groups=2), ShapeError, r"weight must be \(4, 2\) and rows and columns"),
        (lambda y, w: inverse_conv(y, w[..., :0]), ShapeError, r"weight must be \(4, 4\) .* got \(4, 4, 2, 0\)"),
        (lambda y, w: inverse_conv(y.long(), w), TypeError, "y must be a real floating-point tensor"),
        (
            lambda y, w: inverse_conv(y, w, backend="native"),
            ValueError,
            "backend must be one of auto, eager, reference",
        ),
    ],
)
def test_what_it_refuses(call, error, text):
    with pytest.raises(error, match=text):
        call(*inputs((1, 4, 2, 2), (2, 2)))
