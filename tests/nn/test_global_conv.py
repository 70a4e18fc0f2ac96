import pytest
import torch

from foveal.nn.global_conv import FFT_TAPS, direct_conv, fft_conv, global_conv


def by_places(x, kernel, causal=False):
    """One axis, a place and a tap at a time."""
    length, taps = x.shape[-1], kernel.shape[-1]
    columns = []
    for q in range(length):
        total = torch.zeros_like(x[..., 0])
        for p in range(taps):
            at = q + p - (taps - 1 if causal else taps // 2)
            if 0 <= at < length:
                total = total + kernel[..., p] * x[..., at]
        columns.append(total)
    return torch.stack(columns, -1)


@pytest.mark.parametrize("way", [direct_conv, fft_conv])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "taps"), [(1, 1), (7, 3), (6, 11), (13, 13), (3, 31)])
@pytest.mark.parametrize("each", [False, True])
def test_a_sequence(way, causal, length, taps, each):
    torch.manual_seed(0)
    x = torch.randn(2, 3, length, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(*(2, 3, taps)[not each :], dtype=torch.float64, requires_grad=True)
    ours, theirs = way(x, kernel, causal=causal), by_places(x, kernel, causal)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(ours.shape, dtype=ours.dtype)
    for one, other in zip(
        *(torch.autograd.grad((out * weights).sum(), [x, kernel]) for out in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_causal_kernel_may_be_even():
    torch.manual_seed(0)
    x, kernel = torch.randn(1, 2, 9), torch.randn(2, 4)
    torch.testing.assert_close(fft_conv(x, kernel, causal=True), by_places(x, kernel, causal=True))


@pytest.mark.parametrize("sizes", [(5, 8), (4, 3, 7)])
@pytest.mark.parametrize("each", [False, True])
def test_pictures_and_volumes(sizes, each):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *sizes, requires_grad=True)
    kernel = torch.randn(*(2, 3)[not each :], *(7, 5, 3)[: len(sizes)], requires_grad=True)
    direct, fast = direct_conv(x, kernel), fft_conv(x, kernel)
    torch.testing.assert_close(fast, direct, rtol=1e-4, atol=1e-4)
    for one, other in zip(
        *(torch.autograd.grad(out.square().sum(), [x, kernel]) for out in (fast, direct)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("way", [direct_conv, fft_conv])
def test_a_unit_kernel_moves(way):
    x = torch.arange(1.0, 7).view(1, 1, 6)
    kernel = torch.tensor([[0.0, 0, 0, 0, 1]])
    torch.testing.assert_close(way(x, kernel)[0, 0], torch.tensor([3.0, 4, 5, 6, 0, 0]))
    torch.testing.assert_close(way(x, kernel, causal=True), x)


def test_kernels_of_many_taps_are_transformed(monkeypatch):
    called = []
    monkeypatch.setattr("foveal.nn.global_conv.fft_conv", lambda *_, **__: called.append("fft"))
    monkeypatch.setattr("foveal.nn.global_conv.direct_conv", lambda *_, **__: called.append("direct"))
    x, kernel = torch.randn(1, 2, 5), torch.randn(2, FFT_TAPS[1])
    global_conv(x, kernel)
    global_conv(x, kernel[:, 1:])
    global_conv(x, kernel[None, :, 1:])
    global_conv(x, kernel, fft=False)
    assert called == ["fft", "direct", "direct", "direct"]
    called.clear()
    global_conv(torch.randn(1, 2, 5, 5), torch.randn(2, 15, 15))
    global_conv(torch.randn(1, 2, 5, 5), torch.randn(2, 13, 13))
    assert called == ["fft", "direct"]


def test_half_precision_comes_back():
    x, kernel = torch.randn(1, 2, 9, dtype=torch.bfloat16), torch.randn(2, 3)
    assert global_conv(x, kernel, fft=True).dtype == global_conv(x, kernel, fft=False).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("x", "kernel", "causal", "text"),
    [
        ((1, 2), (2, 3), False, r"1, 2 or 3 axes of places, got \(1, 2\)"),
        ((1, 2, 5), (3, 3), False, r"kernel must be \(2, …\) or \(1, 2\) and 1 axes of taps .* got \(3, 3\)"),
        ((1, 2, 5, 5), (2, 3, 3), True, "causal needs one axis, which is time, got 2"),
        ((1, 2, 5), (2, 4), False, r"needs odd sizes, got \(4,\)"),
    ],
)
def test_shapes(x, kernel, causal, text):
    for way in (direct_conv, fft_conv):
        with pytest.raises(ValueError, match=text):
            way(torch.zeros(x), torch.zeros(kernel), causal=causal)
