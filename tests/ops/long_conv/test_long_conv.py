"""Every path of the long convolution against the plain sum in float64: outputs and all gradients."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerance import allowed

from foveal.ops.backends import ShapeError
from foveal.ops.long_conv import explain, long_conv
from foveal.ops.long_conv.butterfly import dft, idft, sizes, traffic
from foveal.ops.long_conv.eager import fast_length

FAST = ["eager", "butterfly2", "butterfly3"]
# batch, channels, heads, length, kernel, kernel of what comes after
SIZES = [(1, 1, 1, 1, 1, 1), (2, 3, 2, 7, 3, 0), (1, 2, 3, 63, 63, 63), (2, 2, 1, 100, 40, 17), (1, 5, 1, 131, 131, 0)]


def tensors(batch, channels, heads, length, before, after, *, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    given = {
        "u": normal(batch, channels, length),
        "kernel": normal(heads, channels, before),
        "D": normal(heads, channels),
    }
    return given | ({"reverse": normal(heads, channels, after)} if after else {})


def run(given, backend, *, dtype=torch.float32):
    leaves = {k: v.to(dtype).detach().requires_grad_() for k, v in given.items()}
    out = long_conv(**leaves, backend=backend)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (out.double() * weight).sum().backward()
    return {"out": out.detach(), **{f"grad {k}": v.grad for k, v in leaves.items()}}


def assert_close(got, expected, dtype):
    assert got.keys() == expected.keys()
    tolerance = allowed(dtype, expected["out"].numel())
    for name, value in expected.items():
        error = (got[name].double() - value.double()).abs() / value.abs().max().clamp(min=1e-3)
        assert got[name].shape == value.shape
        assert error.max() <= tolerance, f"{name}: off by {error.max():.1e} of the largest, at {error.argmax()}"


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference(backend, dtype, size):
    given = tensors(*size)
    assert_close(run(given, backend, dtype=dtype), run(given, "reference", dtype=torch.float64), dtype)


@pytest.mark.parametrize("backend", FAST)
def test_second_derivatives_are_the_references(backend):
    given, found = tensors(2, 3, 2, 9, 9, 4), []
    for name in (backend, "reference"):
        leaves = {k: v.requires_grad_() for k, v in given.items()}
        y = long_conv(**leaves, backend=name)
        first = torch.autograd.grad(y.sin().sum(), list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), list(leaves.values()))
        found.append({"out": y.detach(), **dict(zip(leaves, second, strict=True))})
    assert_close(*found, torch.float64)


def test_it_runs_on_fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        given = {k: mode.from_tensor(v).requires_grad_() for k, v in tensors(2, 3, 2, 9, 9, 4).items()}
        long_conv(**given).sum().backward()
        assert given["u"].grad.shape == (2, 3, 9)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_a_value_that_is_not_a_number_spreads_and_raises_nothing(backend):
    given = tensors(2, 3, 1, 9, 9, 0)
    given["u"][0, 1, 4] = float("nan")
    out = long_conv(**given, backend=backend)
    assert out[0, :, 1, 4:].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_their_dtype(backend, dtype):
    given = {k: v.to(dtype).double() for k, v in tensors(2, 3, 1, 40, 40, 40).items()}
    got = run(given, backend, dtype=dtype)
    assert got["out"].dtype == got["grad kernel"].dtype == dtype
    assert_close(got, run(given, "reference", dtype=torch.float64), dtype)


def test_the_comparison_can_fail():
    given = tensors(1, 2, 1, 9, 9, 0)
    right = run(given, "reference", dtype=torch.float64)
    wrong = {**right, "grad kernel": right["grad kernel"] * 1.01}
    with pytest.raises(AssertionError, match="grad kernel: off by"):
        assert_close(wrong, right, torch.float32)


def test_the_reference_is_torchs_convolution():
    given = tensors(2, 3, 1, 20, 20, 0)
    weight = given["kernel"][0].flip(1)[:, None]
    expected = F.conv1d(F.pad(given["u"], (19, 0)), weight, groups=3) + given["D"][0][:, None] * given["u"]
    got = long_conv(given["u"], given["kernel"][0], given["D"][0], backend="reference")
    torch.testing.assert_close(got, expected)


def test_the_reference_backwards_by_hand():
    u = torch.tensor([[[1.0, 2.0, 4.0]]])
    out = long_conv(u, torch.zeros(1, 1), reverse=torch.tensor([[1.0, 10.0]]), backend="reference")
    assert out.tolist() == [[[42.0, 4.0, 0.0]]]


@pytest.mark.parametrize("order", [2, 3])
def test_butterflies_at_a_length_of_16k(order):
    generator = torch.Generator().manual_seed(0)
    u, kernel = torch.randn(1, 1, 16384, generator=generator), torch.randn(1, 16384, generator=generator)
    expected = np.convolve(u[0, 0].double(), kernel[0].double())[:16384]
    got = long_conv(u, kernel, backend=f"butterfly{order}")[0, 0].double().numpy()
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_gradcheck(backend):
    leaves = [t.requires_grad_() for t in tensors(1, 2, 2, 5, 5, 3).values()]
    assert torch.autograd.gradcheck(lambda u, k, d, r: long_conv(u, k, d, reverse=r, backend=backend), leaves)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_nothing_to_do_and_kernels_that_are_too_long(backend):
    given = {k: v.float() for k, v in tensors(2, 3, 1, 6, 9, 9).items()}
    cut = {**given, "kernel": given["kernel"][..., :6], "reverse": given["reverse"][..., :6]}
    torch.testing.assert_close(long_conv(**given, backend=backend), long_conv(**cut, backend=backend))
    assert long_conv(**{**given, "u": torch.zeros(2, 3, 0)}, backend=backend).shape == (2, 1, 3, 0)
    assert long_conv(**{**given, "u": torch.zeros(0, 3, 6)}, backend=backend).shape == (0, 1, 3, 6)


@pytest.mark.parametrize("backend", FAST)
def test_strided_inputs(backend):
    given = {k: v.float() for k, v in tensors(2, 3, 2, 30, 30, 30).items()}
    last = {k: v.transpose(-1, -2).contiguous().transpose(-1, -2) for k, v in given.items()}
    torch.testing.assert_close(long_conv(**last, backend=backend), long_conv(**given, backend=backend))


def test_without_heads():
    given = tensors(2, 3, 1, 10, 4, 4)
    flat = {k: v if k == "u" else v[0] for k, v in given.items()}
    torch.testing.assert_close(long_conv(**flat), long_conv(**given)[:, 0])


def test_what_comes_later_changes_nothing_without_reverse():
    given = tensors(1, 2, 1, 12, 12, 0)
    moved = {**given, "u": torch.cat([given["u"][..., :7], given["u"][..., 7:] + 1], -1)}
    torch.testing.assert_close(long_conv(**given)[..., :7], long_conv(**moved)[..., :7])


@pytest.mark.parametrize("n", [1, 2, 7, 100, 1000, 32767])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_factors_hold_the_length(n, order):
    found = sizes(n, order)
    assert len(found) == order
    assert n <= math.prod(found) <= 1.5 * n + 8


def test_a_butterfly_is_a_permuted_fourier_transform():
    x = torch.randn(3, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for parts in [(30,), (5, 6), (2, 3, 5)]:
        real, imaginary = dft(x, parts)
        got = torch.complex(real, imaginary)
        expected = torch.fft.fft(x)
        distance = (got[:, :, None] - expected[:, None, :]).abs()
        assert distance.amin(2).max() < 1e-12
        assert sorted(distance[0].argmin(1).tolist()) == list(range(30))
        torch.testing.assert_close(idft((real, imaginary), parts, 30), x)


def test_fast_lengths():
    def smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    for least in (1, 2, 11, 63, 127, 513, 2047, 16385):
        assert fast_length(least) == next(n for n in range(max(2, least), 4 * least + 4) if n % 2 == 0 and smooth(n))


def test_the_model_of_traffic():
    # 1K: input, output and 2·1024 + 2 numbers of the kernel.
    assert traffic(1024, butterfly=True) == 4 * (2 * 1024 + 2050)
    assert traffic(1024, butterfly=False) == 4 * (2 * (1024 + 2050) + 2050 + 2048 + 3 * 2050 + 3 * 1024)
    for length in (256, 1024, 4096, 16384, 65536, 2**20):
        assert traffic(length, butterfly=True) < traffic(length, butterfly=False)


WRONG = {
    "u": ({"u": torch.zeros(3, 4)}, ShapeError, r"u must be \(batch, channels, length\), got \(3, 4\)"),
    "kernel": ({"kernel": torch.zeros(3, 6)}, ShapeError, r"kernel must be \(4, K\) or \(heads, 4, K\), got \(3, 6\)"),
    "empty kernel": ({"kernel": torch.zeros(4, 0)}, ShapeError, r"kernel must be \(4, K\) or .* got \(4, 0\)"),
    "reverse": ({"reverse": torch.zeros(2, 4, 6)}, ShapeError, r"reverse must have 1 heads like kernel, got \(2,"),
    "D": ({"D": torch.zeros(1, 4)}, ShapeError, r"D must be \(4,\), one value for each channel and head, got \(1, 4\)"),
    "integers": ({"u": torch.zeros(1, 4, 6, dtype=torch.int64)}, TypeError, "u must be a real floating-point tensor"),
    "complex": ({"kernel": torch.zeros(4, 6, dtype=torch.complex64)}, TypeError, "kernel must be .* torch.complex64"),
    "device": ({"D": torch.zeros(4, device="meta")}, ValueError, "D must be on cpu like u, got meta; move it there"),
    "backend": ({"backend": "cufft"}, ValueError, "backend must be one of auto, eager, butterfly2, .* got 'cufft'"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "text"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(changes, error, text):
    given = {"u": torch.zeros(1, 4, 6), "kernel": torch.zeros(4, 6), "D": torch.zeros(4)}
    with pytest.raises(error, match=text):
        long_conv(**{**given, **changes})


def test_explain():
    said = explain()
    assert list(said) == ["eager", "butterfly2", "butterfly3", "triton", "reference"]
    assert {name for name, text in said.items() if text == "can run"} == set(said) - {"triton"}
    assert long_conv(torch.zeros(2, 3, 8, device="meta"), torch.zeros(3, 8, device="meta")).shape == (2, 3, 8)


@pytest.mark.slow
def test_a_traced_graph_takes_other_lengths():
    class Module(torch.nn.Module):
        def forward(self, u, kernel):
            return long_conv(u, kernel)

    given = torch.randn(1, 2, 10), torch.randn(2, 10)
    length = torch.export.Dim("length", min=2, max=10)
    program = torch.export.export(Module(), given, dynamic_shapes={"u": {2: length}, "kernel": None})
    shorter = given[0][..., :7]
    torch.testing.assert_close(program.module()(shorter, given[1]), long_conv(shorter, given[1]))
