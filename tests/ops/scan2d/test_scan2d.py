import pytest
import torch
from tolerance import allowed

from foveal.ops.backends import BackendError, ShapeError
from foveal.ops.scan2d import BACKENDS, ORDERS, explain, routes, selective_scan2d
from foveal.ops.scan2d.reference import selective_scan2d_reference
from foveal.ops.selective_scan import selective_scan

FAST = [backend.name for backend in BACKENDS if backend.name != "reference"]


def can_run(backend, dtype=torch.float32):
    if explain(torch.empty(1, 1, 1, dtype=dtype))[backend] != "can run":
        pytest.skip(explain()[backend])


def inputs(count, length, *, batch=2, dim=3, states=2, dtype=torch.float32, seed=0):
    """u, delta, A, B, C, D and the bias, in the order of `selective_scan2d`."""
    made = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=made, dtype=torch.float64).to(dtype)

    rates = -torch.rand(count * dim, states, generator=made, dtype=torch.float64).add(0.1)
    weights = normal(batch, count, states, length), normal(batch, count, states, length)
    delta = normal(batch, count, dim, length)
    return [normal(batch, dim, length), delta, rates.to(dtype), *weights, normal(count * dim), normal(count * dim)]


def run(backend, given, way, softplus=True):
    *first, bias = given
    return selective_scan2d(*first, routes=way, delta_bias=bias, delta_softplus=softplus, backend=backend)


def gradients(backend, given, way, softplus=True):
    """Output, then the gradient of everything."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in given]
    out = run(backend, leaves, way, softplus)
    outgoing = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, [t for t in leaves if t is not None], outgoing)]


def compare(found, wanted, dtype=torch.float32):
    bound = allowed(dtype, 4 * wanted[0].numel())
    for name, ours, theirs in zip(["out", "u", "delta", "A", "B", "C", "D", "bias"], found, wanted, strict=False):
        error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-3)
        assert error <= bound, f"{name}: relative error {error:.1e}"


def test_the_comparison_can_fail():
    with pytest.raises(AssertionError, match="out: relative error 1"):
        compare([torch.zeros(2)], [torch.ones(2)])


def test_the_reference_by_hand():
    """Route 0 visits 2 then 0, route 1 visits 1; with decay exp(-1), step and weights 1, D of 10 and 100."""
    u = torch.tensor([[[3.0, 5.0, 7.0]]])
    ones = torch.ones(1, 2, 1, 3)
    way = torch.tensor([[2, -1, 0], [1, -1, -1]])
    skip = torch.tensor([10.0, 100.0])
    out = selective_scan2d(
        u, ones, -torch.ones(2, 1), ones, ones, skip, routes=way, delta_softplus=False, backend="reference"
    )
    decay = torch.exp(torch.tensor(-1.0))
    torch.testing.assert_close(out[0, 0], torch.stack([3 + 7 * decay + 30, torch.tensor(505.0), torch.tensor(77.0)]))


def test_the_reference_is_the_plain_scan_on_one_route():
    u, delta, rates, weights_in, weights_out, skip, bias = inputs(1, 7)
    way = torch.arange(7)[None]
    plain = selective_scan(u, delta[:, 0], rates, weights_in, weights_out, skip, None, bias, True, backend="reference")
    assert torch.equal(run("reference", inputs(1, 7), way), plain)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 3), (4, 4)])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("backend", FAST)
def test_outputs_and_gradients_are_the_references(backend, order, height, width):
    can_run(backend)
    way = routes(order, height, width, window=2)
    given = inputs(way.shape[0], height * width)
    compare(gradients(backend, given, way), gradients("reference", given, way))


@pytest.mark.parametrize("missing", [(), (5,), (6,), (5, 6)])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("backend", FAST)
def test_optional_inputs(backend, softplus, missing):
    can_run(backend)
    way = routes("atrous", 3, 5)
    given = [None if n in missing else t for n, t in enumerate(inputs(4, 15))]
    given[1] = given[1].abs()
    if given[6] is not None:
        given[6] = given[6].abs()
    compare(gradients(backend, given, way, softplus), gradients("reference", given, way, softplus))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backend", FAST)
def test_half_and_double(backend, dtype):
    can_run(backend, dtype)
    way = routes("snake", 3, 5)
    given = inputs(4, 15, dtype=dtype)
    found = run(backend, given, way)
    assert found.dtype == dtype
    compare([found], [run("reference", given, way)], dtype)


@pytest.mark.parametrize("backend", FAST)
def test_tensors_that_are_not_contiguous(backend):
    can_run(backend)
    way = routes("cross", 3, 3).flip(1)
    given = inputs(4, 9)
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in given[:5]] + given[5:]
    compare(gradients(backend, strided, way), gradients("reference", given, way))


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_nothing_to_scan_gives_zeros(backend):
    can_run(backend)
    assert run(backend, inputs(2, 0), routes("raster", 0, 4)).shape == (2, 3, 0)
    nowhere = torch.full((2, 3), -1)
    assert torch.equal(run(backend, inputs(2, 4), nowhere), torch.zeros(2, 3, 4))
    assert torch.equal(run(backend, inputs(2, 4), nowhere[:, :0]), torch.zeros(2, 3, 4))


def test_gradients_are_those_of_finite_differences():
    way = torch.tensor([[2, -1, 0, 3], [1, 0, -1, 2]])
    given = [t.requires_grad_() for t in inputs(2, 4, batch=1, dim=1, dtype=torch.float64)]
    for function in (selective_scan2d_reference, BACKENDS[-2].run):

        def scan(*tensors, function=function):
            u, delta, rates, weights_in, weights_out, skip, bias = tensors
            rates, skip, bias = rates.view(2, 1, 2), skip.view(2, 1), bias.view(2, 1)
            return function(u, delta, rates, weights_in, weights_out, skip, way, bias, True)

        assert torch.autograd.gradcheck(scan, given)


def test_it_runs_without_data():
    way = routes("cross", 3, 5, device="meta")
    given = [t.to("meta") for t in inputs(4, 15)]
    assert run("auto", given, way).shape == (2, 3, 15)


def test_errors_say_what_is_wanted():
    u, delta, rates, weights_in, weights_out, skip, bias = inputs(2, 6)
    way = routes("raster", 2, 3)

    def scan(u=u, delta=delta, rates=rates, weights_in=weights_in, weights_out=weights_out, skip=skip, way=way, **more):
        return selective_scan2d(u, delta, rates, weights_in, weights_out, skip, **{"routes": way, **more})

    with pytest.raises(ShapeError, match=r"u must be \(batch, channels, length\), got \(3, 6\)"):
        scan(u=u[0])
    with pytest.raises(TypeError, match=r"B must be a real floating-point tensor, got torch.int64; convert it first"):
        scan(weights_in=weights_in.long())
    with pytest.raises(ValueError, match="A must be on cpu like u, got meta; move it there"):
        scan(rates=rates.to("meta"))
    with pytest.raises(ShapeError, match=r"routes must be integers, \(routes, places\), got \(6,\) of torch.int64"):
        scan(way=way[0])
    with pytest.raises(ShapeError, match=r"routes must be integers, \(routes, places\), got \(2, 6\) of torch.float32"):
        scan(way=way.float())
    with pytest.raises(ValueError, match="routes must be on cpu like u, got meta; move them there"):
        scan(way=way.to("meta"))
    with pytest.raises(ValueError, match=r"positions of 0…5, or -1 for none, got 0…7; make them for the height"):
        scan(way=routes("raster", 2, 4))
    with pytest.raises(ShapeError, match=r"delta must be \(2, 2, 3, 6\), one step for each .*, got \(2, 3, 6\)"):
        scan(delta=delta[:, 0])
    with pytest.raises(ShapeError, match=r"A must be \(6, states\), one row for each route .*, got \(3, 2\)"):
        scan(rates=rates[:3])
    with pytest.raises(ShapeError, match=r"C must be \(2, 2, 2, 6\), \(batch, routes, states, length\), got"):
        scan(weights_out=weights_out[..., :5])
    with pytest.raises(ShapeError, match=r"D must be \(6,\), one value for each route and channel of u, got \(5,\)"):
        scan(skip=skip[:5])
    with pytest.raises(ShapeError, match=r"delta_bias must be \(6,\), .*, got \(6, 1\)"):
        scan(delta_bias=bias[:, None])
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*eager, reference, got 'cuda'"):
        scan(backend="cuda")


def test_a_named_backend_that_cannot_run_raises_its_reason(monkeypatch):
    from foveal.ops import scan2d
    from foveal.ops.backends import Backend

    monkeypatch.setattr(scan2d, "BACKENDS", (Backend("never", run, lambda _: "it is a test"), *BACKENDS))
    with pytest.raises(BackendError, match="backend 'never' cannot run: it is a test"):
        run("never", inputs(2, 6), routes("raster", 2, 3))
    assert scan2d.explain()["never"] == "it is a test"
    run("auto", inputs(2, 6), routes("raster", 2, 3))


def test_explain_lists_what_runs_everywhere():
    assert {"eager", "reference"} <= {name for name, answer in explain().items() if answer == "can run"}
