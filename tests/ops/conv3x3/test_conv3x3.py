import pytest
import torch

from foveal.ops.backends import BackendError, ShapeError
from foveal.ops.conv3x3 import conv3x3, explain

needs_kernels = pytest.mark.skipif(explain()["native"] != "can run", reason=explain()["native"])

SHAPES = [
    {},
    {"batch": 1, "height": 1, "width": 1},
    {"batch": 3, "height": 1, "width": 50, "channels": 16, "made": 16},
    {"height": 23, "width": 4, "channels": 48, "made": 9},
    {"batch": 1, "height": 40, "width": 41, "made": 48},
]


def problem(*, batch=2, height=7, width=9, channels=32, made=32, seed=0):
    torch.manual_seed(seed)
    return {
        "x": torch.randn(batch, channels, height, width),
        "weight": torch.randn(made, channels, 3, 3) / (9 * channels) ** 0.5,
        "bias": torch.randn(made),
        "slope": torch.tensor([0.2]),
    }


def results(tensors, backend):
    """What comes out, and the gradients of a sum weighted at random."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    y = conv3x3(**leaves, backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    gradients = torch.autograd.grad((y * weights).sum(), list(leaves.values()))
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_near(got, want):
    for name, wanted in want.items():
        assert (got[name] - wanted).abs().max() <= 3e-5 * max(1, wanted.abs().max()), name


def exact(tensors):
    return results({name: tensor.double() for name, tensor in tensors.items()}, "reference")


@needs_kernels
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_the_kernel_and_its_gradients_equal_the_reference(sizes):
    p = problem(**sizes)
    assert_near(results(p, "native"), exact(p))


@needs_kernels
@pytest.mark.parametrize("made", [32, 9])
@pytest.mark.parametrize("plain", [False, True])
def test_second_derivatives_are_the_references(made, plain):
    p = problem(height=5, width=6, made=made)
    if plain:
        del p["slope"], p["bias"]
    found = []
    for name, dtype in (("native", torch.float32), ("reference", torch.float64)):
        leaves = {key: t.to(dtype).requires_grad_() for key, t in p.items()}
        y = conv3x3(**leaves, backend=name)
        first = torch.autograd.grad(y.sin().sum(), list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), list(leaves.values()))
        found.append(dict(zip(leaves, second, strict=True)))
    for name, wanted in found[1].items():
        assert (found[0][name] - wanted).abs().max() <= 1e-4 * wanted.abs().max(), name


def test_it_runs_on_fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        p = {name: mode.from_tensor(t).requires_grad_() for name, t in problem().items()}
        conv3x3(**p).sum().backward()
        assert p["x"].grad.shape == (2, 32, 7, 9)


@needs_kernels
@pytest.mark.parametrize("sizes", [{}, {"batch": 1, "height": 1, "width": 1}], ids=str)
def test_tracing_sees_the_real_strides(sizes):
    from torch._subclasses import FakeTensorMode

    given = [t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 2 else t for t in problem(**sizes).values()]

    def both(x, weight, bias, slope):
        y = torch.ops.foveal.conv3x3(x, weight, bias, slope)
        return [(t.shape, t.stride()) for t in (y, *torch.ops.foveal.conv3x3_backward(y, x, weight, slope))]

    mode = FakeTensorMode()
    with mode:
        traced = both(*map(mode.from_tensor, given))
    assert both(*given) == traced


@needs_kernels
@pytest.mark.parametrize("slope", [-0.3, 0.0, 1.0, 1.7])
def test_any_slope_will_do(slope):
    p = problem() | {"slope": torch.tensor(slope)}
    assert_near(results(p, "native"), exact(p))


@needs_kernels
def test_without_slope_or_bias_it_is_a_plain_convolution():
    p = problem()
    del p["slope"], p["bias"]
    assert_near(results(p, "native"), exact(p))


@needs_kernels
def test_every_order_of_memory_and_number_of_threads_gives_the_same():
    p = problem(batch=4, height=33, width=30)
    want, again = results(p, "native"), results(p, "native")
    assert all(torch.equal(want[name], again[name]) for name in want)
    p["x"] = p["x"].contiguous(memory_format=torch.channels_last)
    assert torch.equal(results(p, "native")["y"], want["y"])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_near(results(p, "native"), want)
    finally:
        torch.set_num_threads(threads)


@needs_kernels
def test_every_instruction_set_computes_alike(monkeypatch):
    import foveal_kernels

    from foveal.ops.conv3x3 import native

    p = problem(height=21)
    for name in foveal_kernels.instruction_sets():
        monkeypatch.setattr(native, "library", lambda name=name: foveal_kernels.load(name))
        assert_near(results(p, "native"), exact(p))


@needs_kernels
def test_the_registered_operator_passes_torchs_own_checks():
    given = [tensor.requires_grad_() for tensor in problem().values()]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.foveal.conv3x3.default, given, test_utils=tests)


@needs_kernels
def test_torch_compile_keeps_one_graph():
    p = problem(made=9)
    compiled = torch.compile(lambda p: conv3x3(**p), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(p), conv3x3(**p), rtol=1e-5, atol=1e-5)


def test_exported_graphs_hold_torchs_own_operators():
    class Layer(torch.nn.Module):
        def forward(self, x, weight):
            return conv3x3(x, weight)

    p = problem()
    program = torch.export.export(Layer(), (p["x"], p["weight"]))
    assert not [n for n in program.graph.nodes if "foveal" in str(n.target)]


def test_what_the_kernel_does_not_take_goes_to_torch():
    p = problem(channels=3)
    assert "multiples of 16" in explain(p["x"])["native"]
    assert torch.equal(conv3x3(**p), conv3x3(**p, backend="reference"))
    with pytest.raises(BackendError, match="multiples of 16"):
        conv3x3(**p, backend="native")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 4)}, "batch, channels, height, width"),
        ({"weight": torch.zeros(32, 32, 5, 5)}, "3×3 over the channels of x"),
        ({"bias": torch.zeros(31)}, "one value for each row of weight"),
        ({"slope": torch.zeros(32)}, "slope must be one number"),
    ],
)
def test_shapes_that_do_not_fit_are_told(change, message):
    with pytest.raises(ShapeError, match=message):
        conv3x3(**problem() | change)
