import ctypes

import pytest
import torch
import torch.nn.functional as F

from foveal.ops.backends import BackendError, ShapeError
from foveal.ops.im2win import explain, im2col_elements, im2win_conv2d, im2win_elements
from foveal.ops.im2win.reference import window_order, windows

needs_kernels = pytest.mark.skipif(explain()["native"] != "can run", reason=explain()["native"])
BACKENDS = ["reference", "eager", pytest.param("native", marks=needs_kernels)]
SIZES = [
    {},
    {"batch": 1, "size": (1, 1), "channels": 1, "out": 1, "kernel": (1, 1)},
    {"size": (7, 9), "kernel": (3, 3), "stride": 2, "out": 17},
    {"size": (6, 100), "channels": 4, "kernel": (2, 5), "padding": 3, "out": 33},
    {"size": (5, 4), "kernel": (2, 2), "stride": 3, "channels": 7},
    {"size": (70, 3), "kernel": (4, 1), "padding": 1},
]


def layer(*, batch=2, size=(7, 9), channels=3, out=16, kernel=(3, 3), stride=1, padding=0):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, channels, *size), (out, channels, *kernel), (out,)
    return [torch.randn(s, generator=generator) for s in shapes], {"stride": stride, "padding": padding}


def with_gradients(function, tensors, dtype):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    y = function(*leaves)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)


def test_windows_by_hand():
    x = torch.arange(12.0).view(1, 1, 4, 3)
    assert windows(x, 2, 2).tolist() == [[[[0, 3, 1, 4, 2, 5], [6, 9, 7, 10, 8, 11]]]]
    assert window_order(x[:, :, :2]).tolist() == [[[0, 3, 1, 4, 2, 5]]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_outputs_and_gradients_are_torchs(backend, sizes):
    tensors, words = layer(**sizes)
    want = with_gradients(lambda *t: F.conv2d(*t, **words), tensors, torch.float64)
    got = with_gradients(lambda *t: im2win_conv2d(*t, **words, backend=backend), tensors, torch.float32)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_bias_and_with_strange_strides(backend):
    (x, weight, _), words = layer()
    x, weight = x.mT.contiguous().mT, weight.expand(3, *weight.shape)[1]
    torch.testing.assert_close(
        im2win_conv2d(x, weight, backend=backend, **words), F.conv2d(x, weight), atol=1e-5, rtol=0
    )
    assert im2win_conv2d(x[:0], weight, backend=backend).shape == (0, 16, 5, 7)


def test_elements_are_those_of_the_buffers():
    shape, kernel = (2, 3, 8, 9), (3, 2)
    for stride, padding in ((1, 0), (2, 1)):
        x = F.pad(torch.zeros(shape), (padding,) * 4)
        assert im2win_elements(shape, kernel, stride, padding) == windows(x, 3, stride).numel()
        unfolded = F.unfold(torch.zeros(shape), kernel, stride=stride, padding=padding)
        assert im2col_elements(shape, kernel, stride, padding) == unfolded.numel()


@needs_kernels
def test_every_instruction_set_and_number_of_threads_gives_the_same(monkeypatch):
    import foveal_kernels

    from foveal.ops.im2win import native

    (x, weight, bias), words = layer(size=(20, 19), out=49, channels=9, batch=1)
    want, threads = F.conv2d(x, weight, bias, **words), torch.get_num_threads()
    for name in foveal_kernels.instruction_sets():
        monkeypatch.setattr(native, "library", lambda name=name: foveal_kernels.load(name))
        for count in (1, 3, 16):
            try:
                torch.set_num_threads(count)
                torch.testing.assert_close(im2win_conv2d(x, weight, bias, **words), want, rtol=1e-5, atol=1e-5)
            finally:
                torch.set_num_threads(threads)


@needs_kernels
def test_second_derivatives_are_the_references():
    tensors, words = layer(size=(4, 5), out=3)
    found = []
    for name in ("native", "reference"):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = im2win_conv2d(*leaves, **words, backend=name)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(t.square().sum() for t in first), leaves))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@needs_kernels
def test_the_registered_operator_passes_torchs_own_checks():
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    tensors, words = layer(size=(4, 5), out=5)
    given = [t.requires_grad_() for t in tensors]
    torch.library.opcheck(torch.ops.foveal.im2win_conv2d.default, (*given, *words.values()), test_utils=tests)


@needs_kernels
def test_torch_compile_keeps_one_graph_and_multiply_adds_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    tensors, words = layer(size=(4, 5))
    compiled = torch.compile(lambda *t: im2win_conv2d(*t, **words), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*tensors), im2win_conv2d(*tensors, **words))
    with FlopCounterMode(display=False) as counter:
        im2win_conv2d(*tensors, **words)
    assert counter.get_total_flops() == 2 * 2 * 16 * 2 * 3 * 27


def test_exported_graphs_hold_torchs_own_operators():
    class Layer(torch.nn.Module):
        def forward(self, x, weight):
            return im2win_conv2d(x, weight)

    (x, weight, _), _ = layer(size=(4, 5))
    program = torch.export.export(Layer(), (x, weight))
    assert not [n for n in program.graph.nodes if "foveal" in str(n.target)]
    torch.testing.assert_close(program.module()(x, weight), F.conv2d(x, weight), rtol=1e-5, atol=1e-5)


def test_without_the_kernel_torch_does_the_work_and_says_so_once(monkeypatch):
    from foveal.ops import native
    from foveal.ops.im2win import native as path

    monkeypatch.setattr(native, "why_not", lambda: "foveal-kernels is not installed; run `pip install ./kernels`")
    monkeypatch.setattr(path, "lacks", lambda _: native.why_not())
    native.tell_once.cache_clear()
    tensors, _ = layer(size=(3, 3))
    with pytest.warns(RuntimeWarning, match=r"im2win_conv2d runs in torch, many times slower .*pip install \./kernels"):
        first = im2win_conv2d(*tensors)
    assert torch.equal(im2win_conv2d(*tensors), first)  # a second warning would be an error
    native.tell_once.cache_clear()


def test_no_memory_is_an_error_that_says_what_to_do(monkeypatch):
    from foveal.ops.im2win import native

    class Starved:
        foveal_im2win = staticmethod(lambda *_: 1)

    calls = pytest.importorskip("foveal_kernels.calls")
    monkeypatch.setattr(calls, "Im2win", lambda *_: ctypes.c_int(), raising=False)
    monkeypatch.setattr(native, "library", Starved)
    monkeypatch.setattr(native, "lacks", lambda _: None)
    with pytest.raises(MemoryError, match="out of memory in an im2win convolution; use a smaller batch"):
        im2win_conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), backend="native")


def test_what_the_kernel_does_not_take_goes_to_torch():
    x = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    assert "x is float64" in explain(x)["native"]
    assert im2win_conv2d(x, x).item() == 18
    with pytest.raises(BackendError, match="x is float64"):
        im2win_conv2d(x, x, backend="native")
    assert "x is on meta" in explain(x.to("meta"))["native"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.ones(2, 3), torch.ones(2, 3, 1, 1)), "x must be .batch, channels, height, width"),
        ((torch.ones(1, 3, 4, 4), torch.ones(2, 4, 1, 1)), "a kernel over the channels of x"),
        ((torch.ones(1, 3, 4, 4), torch.ones(2, 3, 1, 1), torch.ones(3)), "one value for each output channel"),
        ((torch.ones(1, 3, 2, 4), torch.ones(2, 3, 3, 3)), r"x must be at least \(3, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_told(given, message):
    with pytest.raises(ShapeError, match=message):
        im2win_conv2d(*given)


def test_wrong_settings_raise():
    one = torch.ones(1, 1, 1, 1)
    for words in ({"stride": 0}, {"padding": -1}):
        with pytest.raises(ValueError, match="stride must be at least 1 and padding at least 0, got"):
            im2win_conv2d(one, one, **words)
    with pytest.raises(TypeError, match="x must be a real floating-point tensor"):
        im2win_conv2d(one.int(), one)
