import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.ops.backends import BackendError, ShapeError
from foveal.ops.xnor import explain, pack_signs, sign, unpack_signs, xnor_conv2d, xnor_matmul

needs_kernels = pytest.mark.skipif(explain()["native"] != "can run", reason=explain()["native"])

MATRICES = [(1, 1, 1), (5, 7, 63), (9, 33, 64), (70, 16, 100), (3, 17, 2100)]
CONVOLUTIONS = [
    {},
    {"batch": 1, "size": (1, 1), "channels": 1, "out": 1},
    {"size": (6, 5), "channels": 64, "out": 19, "stride": 2},
    {"size": (5, 8), "channels": 70, "kernel": (1, 1), "padding": 0},
    {"size": (4, 5), "kernel": (5, 2), "padding": 3},
    {"size": (7, 7), "kernel": (3, 3), "padding": 2, "stride": 3, "out": 33},
    {"size": (4, 4), "channels": 240, "out": 3, "padding": 0},
]


def matrices(rows, columns, inner, *batch):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*batch, n, inner, generator=generator) for n in (rows, columns))


def convolution(*, batch=2, size=(7, 9), channels=32, out=24, kernel=(3, 3), stride=1, padding=1):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*s, generator=generator) for s in ((batch, channels, *size), (out, channels, *kernel)))
    x.view(-1)[::5] = 0.0
    return {"x": x, "weight": weight}, {"stride": stride, "padding": padding}


def with_gradients(function, *tensors, dtype=torch.float32):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    y = function(*leaves)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return y.detach(), torch.autograd.grad((y * weights).sum(), leaves)


def assert_alike(got, want):
    assert torch.equal(got[0].double(), want[0])
    for gradient, wanted in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_sign_and_its_gradient():
    x = torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.0, 1.0, 1.5], requires_grad=True)
    s = sign(x)
    assert s.tolist() == [-1, -1, -1, 1, 1, 1, 1]
    s.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_bits_are_packed_the_first_lowest_and_unpacked_again():
    assert pack_signs(torch.tensor([[1.0, -1.0, 0.0]])).tolist() == [[5]]
    assert pack_signs(torch.ones(1, 64)).tolist() == [[-1]]
    for shape in ((3, 64), (2, 5, 70), (4, 130, 3, 2)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        words = pack_signs(weight)
        count = shape[1] if len(shape) == 4 else shape[-1]
        assert words.numel() == weight.numel() // count * -(-count // 64)
        assert torch.equal(unpack_signs(words, count), sign(weight))


@needs_kernels
def test_the_kernel_packs_the_same_bits():
    from foveal.ops.xnor.native import _words

    for count in (1, 63, 64, 65, 200):
        x = torch.randn(7, count, generator=torch.Generator().manual_seed(3))
        assert torch.equal(_words(x), pack_signs(x))


@pytest.mark.parametrize("backend", ["reference", "eager", pytest.param("native", marks=needs_kernels)])
def test_a_product_by_hand(backend):
    a = torch.tensor([[0.5, -2.0, 0.0], [-1.0, -1.0, -1.0]])
    assert xnor_matmul(a, torch.tensor([[1.0, 1.0, -1.0]]), backend=backend).tolist() == [[-1], [-1]]
    x = torch.tensor([[[[1.0, -1.0], [1.0, 1.0]]]])
    y = xnor_conv2d(x, torch.ones(1, 1, 2, 2), padding=1, backend=backend)
    assert y.flatten(2).tolist() == [[[1, 0, -1, 2, 2, 0, 1, 2, 1]]]


@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_kernels)])
@pytest.mark.parametrize("sizes", MATRICES, ids=str)
def test_products_and_their_gradients_equal_the_reference(backend, sizes):
    a, b = matrices(*sizes)
    want = with_gradients(lambda a, b: xnor_matmul(a, b, backend="reference"), a, b, dtype=torch.float64)
    assert_alike(with_gradients(lambda a, b: xnor_matmul(a, b, backend=backend), a, b), want)
    assert torch.equal(xnor_matmul(a, pack_signs(b), backend=backend).double(), want[0])


@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_kernels)])
@pytest.mark.parametrize("sizes", CONVOLUTIONS, ids=str)
def test_convolutions_and_their_gradients_equal_the_reference(backend, sizes):
    tensors, words = convolution(**sizes)
    want = with_gradients(
        lambda x, weight: xnor_conv2d(x, weight, **words, backend="reference"), *tensors.values(), dtype=torch.float64
    )
    got = with_gradients(lambda x, weight: xnor_conv2d(x, weight, **words, backend=backend), *tensors.values())
    assert_alike(got, want)
    packed = xnor_conv2d(tensors["x"], pack_signs(tensors["weight"]), **words, backend=backend)
    assert torch.equal(packed.double(), want[0])


def test_the_reference_is_torchs_convolution_of_signs():
    tensors, words = convolution(stride=2)
    y = xnor_conv2d(**tensors, **words, backend="reference")
    assert torch.equal(y, F.conv2d(sign(tensors["x"]), sign(tensors["weight"]), **words))


@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_kernels)])
def test_gradients_pass_packed_weights(backend):
    tensors, words = convolution()
    x, weight = tensors.values()
    found = []
    for w in (weight, pack_signs(weight)):
        leaf = x.clone().requires_grad_()
        xnor_conv2d(leaf, w, **words, backend=backend).square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)
    a, b = matrices(4, 5, 70)
    leaf = a.clone().requires_grad_()
    xnor_matmul(leaf, pack_signs(b), backend=backend).sum().backward()
    torch.testing.assert_close(leaf.grad, sign(b).sum(0) * (a.abs() <= 1))


@needs_kernels
def test_second_derivatives_are_the_references():
    tensors, words = convolution(size=(4, 5), channels=8, out=3)
    found = []
    for name in ("native", "reference"):
        leaves = [t.clone().requires_grad_() for t in tensors.values()]
        y = xnor_conv2d(*leaves, **words, backend=name)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(t.square().sum() for t in first), leaves))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@needs_kernels
def test_batches_of_matrices_have_a_factor_each_or_share_one():
    a, b = matrices(5, 6, 40, 2, 3)
    assert torch.equal(xnor_matmul(a, b, backend="native"), sign(a) @ sign(b).mT)
    assert torch.equal(xnor_matmul(a, b[0, 0], backend="native"), sign(a) @ sign(b[0, 0]).mT)
    assert torch.equal(xnor_matmul(a, pack_signs(b.flatten(0, 1)).unflatten(0, (2, 3))), sign(a) @ sign(b).mT)
    turned = torch.randn(2, 40, 5).mT
    assert torch.equal(xnor_matmul(turned, b[0, :2], backend="native"), sign(turned) @ sign(b[0, :2]).mT)
    assert xnor_matmul(a[:0], b[:0], backend="native").shape == (0, 3, 5, 6)


@needs_kernels
def test_every_instruction_set_and_number_of_threads_gives_the_same(monkeypatch):
    import foveal_kernels

    from foveal.ops.xnor import native

    (tensors, words), (a, b) = convolution(channels=100, size=(9, 10), out=21), matrices(67, 35, 2500)
    x, weight = tensors.values()
    conv, product = F.conv2d(sign(x), sign(weight), **words), sign(a) @ sign(b).mT
    threads = torch.get_num_threads()
    for name in foveal_kernels.instruction_sets():
        monkeypatch.setattr(native, "library", lambda name=name: foveal_kernels.load(name))
        for count in (1, 3):
            try:
                torch.set_num_threads(count)
                assert torch.equal(xnor_conv2d(x, weight, **words), conv), name
                assert torch.equal(xnor_matmul(a, b), product), name
            finally:
                torch.set_num_threads(threads)


def test_it_runs_on_fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        tensors, words = convolution()
        x, weight = (mode.from_tensor(t).requires_grad_() for t in tensors.values())
        xnor_conv2d(x, weight, **words).sum().backward()
        assert weight.grad.shape == (24, 32, 3, 3)


@needs_kernels
def test_the_registered_operators_pass_torchs_own_checks():
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    tensors, words = convolution(size=(4, 5), out=5)
    given = [t.requires_grad_() for t in tensors.values()]
    torch.library.opcheck(torch.ops.foveal.xnor_conv2d.default, (*given, *words.values()), test_utils=tests)
    given = [t[None].requires_grad_() for t in matrices(4, 5, 6)]
    torch.library.opcheck(torch.ops.foveal.xnor_matmul.default, given, test_utils=tests)


@needs_kernels
def test_torch_compile_keeps_one_graph():
    tensors, words = convolution(size=(4, 5))
    compiled = torch.compile(lambda t: xnor_conv2d(**t, **words), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(tensors), xnor_conv2d(**tensors, **words))


def test_exported_graphs_hold_torchs_own_operators():
    class Layer(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.register_buffer("words", pack_signs(weight))

        def forward(self, x):
            return xnor_conv2d(x, self.words, padding=1)

    tensors, words = convolution()
    program = torch.export.export(Layer(tensors["weight"]), (tensors["x"],))
    assert not [n for n in program.graph.nodes if "foveal" in str(n.target)]
    assert torch.equal(program.module()(tensors["x"]), xnor_conv2d(**tensors, **words))


def test_without_the_kernels_torch_does_the_work_and_says_so_once(monkeypatch):
    from foveal.ops import native
    from foveal.ops.xnor import native as path

    monkeypatch.setattr(native, "why_not", lambda: "foveal-kernels is not installed; run `pip install ./kernels`")
    monkeypatch.setattr(path, "lacks", lambda _: native.why_not())
    native.tell_once.cache_clear()
    tensors, words = convolution(size=(3, 3))
    with pytest.warns(RuntimeWarning, match=r"xnor_conv2d runs in torch, many times slower .*pip install \./kernels"):
        first = xnor_conv2d(**tensors, **words)
    assert torch.equal(xnor_conv2d(**tensors, **words), first)  # a second warning would be an error
    with pytest.warns(RuntimeWarning, match="xnor_matmul runs in torch"):
        xnor_matmul(*matrices(2, 2, 3))
    native.tell_once.cache_clear()


@needs_kernels
def test_no_memory_is_an_error_that_says_what_to_do(monkeypatch):
    from foveal.ops.xnor import native

    class Starved:
        foveal_signs = foveal_xnor_conv = staticmethod(lambda *_: 1)

    monkeypatch.setattr(native, "library", Starved)
    with pytest.raises(MemoryError, match="out of memory in a product of signs; use a smaller batch"):
        xnor_conv2d(torch.ones(1, 1, 2, 2), pack_signs(torch.ones(1, 1, 1, 1)))


def test_what_the_kernel_does_not_take_goes_to_torch():
    x = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    assert "x is float64" in explain(x)["native"]
    assert xnor_conv2d(x, x).item() == 18
    with pytest.raises(BackendError, match="x is float64"):
        xnor_conv2d(x, x, backend="native")
    assert "x is on meta" in explain(x.to("meta"))["native"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: xnor_matmul(torch.ones(3), torch.ones(2, 3)), r"a and b must be \(…, M, K\)"),
        (lambda: xnor_matmul(torch.ones(2, 3), torch.ones(2, 4)), "rows as long as those of a"),
        (lambda: xnor_matmul(torch.ones(2, 65), torch.ones(2, 1, dtype=torch.int64)), "rows as long as those of a"),
        (lambda: xnor_conv2d(torch.ones(2, 3), torch.ones(2, 3, 1, 1)), "x must be .batch, channels, height, width"),
        (lambda: xnor_conv2d(torch.ones(1, 3, 4, 4), torch.ones(2, 4, 1, 1)), "a kernel over the channels of x"),
        (lambda: xnor_conv2d(torch.ones(1, 3, 2, 4), torch.ones(2, 3, 3, 3)), r"x must be at least \(3, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_told(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_wrong_settings_raise():
    one = torch.ones(1, 1, 1, 1)
    for words in ({"stride": 0}, {"padding": -1}):
        with pytest.raises(ValueError, match="stride must be at least 1 and padding at least 0, got"):
            xnor_conv2d(one, one, **words)
    with pytest.raises(TypeError, match="x must be a real floating-point tensor"):
        xnor_conv2d(one.int(), one)
