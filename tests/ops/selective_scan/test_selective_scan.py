"""Every path of the selective scan against the plain one in float64: outputs, last state and all gradients."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from tolerance import allowed

from foveal.ops import native, selective_scan
from foveal.ops.backends import BackendError, ShapeError
from foveal.ops.selective_scan import BACKENDS, explain

pytestmark = pytest.mark.dear("every backend, type and layout, and torch.compile")

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
# batch, channels, length, states, groups
SIZES = [(1, 1, 1, 1, 1), (2, 6, 7, 5, 2), (1, 34, 63, 3, 2), (3, 100, 100, 16, 1), (1, 16, 130, 64, 1)]
FAST = [
    pytest.param("native", marks=pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))),
    "eager",
]


def tensors(batch, dim, length, states, groups, *, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "u": normal(batch, dim, length),
        "delta": normal(batch, dim, length) / 2,
        "A": -4 * torch.rand(dim, states, generator=generator, dtype=torch.float64) - 0.1,
        "B": normal(batch, groups, states, length),
        "C": normal(batch, groups, states, length),
        "D": normal(dim),
        "z": normal(batch, dim, length),
        "delta_bias": normal(dim),
        "initial_state": normal(batch, dim, states),
    }


def run(given, backend, *, dtype=torch.float32, softplus=True, leave_out=()):
    """Output, last state, then a gradient for each tensor that was given."""
    leaves = {k: v.to(dtype).detach().requires_grad_() for k, v in given.items() if k not in leave_out}
    out, state = selective_scan(**leaves, delta_softplus=softplus, return_last_state=True, backend=backend)
    generator = torch.Generator().manual_seed(9)
    weights = (torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (out, state))
    sum((t.double() * weight).sum() for t, weight in zip((out, state), weights, strict=True)).backward()
    return {"out": out.detach(), "state": state.detach(), **{f"grad {k}": v.grad for k, v in leaves.items()}}


def general(given):
    """The tensors as the registered operator takes them, with one route."""
    u, delta, A, B, C, D, z, bias, start = (given[n] for n in NAMES)  # noqa: N806
    weights = (w[None] if w.ndim == 2 else w[:, None] for w in (B, C))
    return [u, delta[:, None], A[None], *weights, D[None], z, bias[None], start[:, None]]


def assert_close(got, expected, dtype):
    assert got.keys() == expected.keys()
    tolerance = allowed(dtype, expected["out"].shape[-1] * expected["state"].numel())
    for name, value in expected.items():
        scale = value.abs().max().clamp(min=1e-3)
        error = (got[name].double() - value.double()).abs() / scale
        assert got[name].shape == value.shape
        assert error.max() <= tolerance, f"{name}: off by {error.max():.1e} of the largest, at {error.argmax()}"


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference(backend, size):
    given = tensors(*size)
    assert_close(run(given, backend), run(given, "reference", dtype=torch.float64), torch.float32)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    "leave_out",
    [("D",), ("z",), ("delta_bias",), ("initial_state",), ("D", "z", "delta_bias", "initial_state")],
    ids="-".join,
)
@pytest.mark.parametrize("softplus", [False, True])
def test_equals_the_reference_without_the_optional_parts(backend, leave_out, softplus):
    given = tensors(2, 5, 37, 4, 1)
    given["delta"], given["delta_bias"] = given["delta"].abs(), given["delta_bias"].abs()  # a step is positive
    got = run(given, backend, softplus=softplus, leave_out=leave_out)
    assert_close(
        got, run(given, "reference", dtype=torch.float64, softplus=softplus, leave_out=leave_out), torch.float32
    )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_their_dtype_and_a_float32_state(backend, dtype):
    given = {k: v.to(dtype).double() for k, v in tensors(2, 20, 40, 4, 1).items()}
    got = run(given, backend, dtype=dtype)
    assert got["out"].dtype == got["grad u"].dtype == dtype
    assert got["state"].dtype == torch.float32
    assert_close(got, run(given, "reference", dtype=torch.float64), dtype)


@pytest.mark.parametrize("backend", FAST)
def test_channels_last_and_strided_inputs(backend):
    given = tensors(2, 35, 50, 4, 1)
    expected = selective_scan(**{k: v.float() for k, v in given.items()}, delta_softplus=True, backend="reference")
    last = {
        k: v.float().transpose(-1, -2).contiguous().transpose(-1, -2) if v.ndim > 2 else v.float()
        for k, v in given.items()
    }
    torch.testing.assert_close(
        selective_scan(**last, delta_softplus=True, backend=backend), expected, rtol=1e-4, atol=1e-4
    )
    wide = {k: v.float().repeat_interleave(2, -1)[..., ::2] for k, v in given.items()}
    torch.testing.assert_close(
        selective_scan(**wide, delta_softplus=True, backend=backend), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("backend", FAST)
def test_gradients_of_strided_inputs(backend):
    given = tensors(2, 33, 45, 4, 1)
    last = {
        k: v.float().transpose(-1, -2).contiguous().transpose(-1, -2) if v.ndim > 2 else v for k, v in given.items()
    }
    assert_close(run(last, backend), run(given, "reference", dtype=torch.float64), torch.float32)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_no_steps_and_no_batch(backend):
    given = {k: v.float() for k, v in tensors(2, 4, 3, 2, 1).items()}
    start = given.pop("initial_state").requires_grad_()
    none = {k: v[..., :0] if v.ndim > 2 else v for k, v in given.items()}
    out, state = selective_scan(**none, return_last_state=True, backend=backend)
    assert out.shape == (2, 4, 0)
    assert torch.equal(state, torch.zeros(2, 4, 2))
    _, state = selective_scan(**none, return_last_state=True, initial_state=start, backend=backend)
    assert torch.equal(state, start)
    assert torch.equal(torch.autograd.grad(state.square().sum(), start)[0], 2 * start)
    no_batch = {k: v[:0] if v.ndim > 2 else v for k, v in given.items()}
    assert selective_scan(**no_batch, backend=backend).shape == (0, 4, 3)


@pytest.mark.parametrize("backend", FAST)
def test_large_and_small_steps_stay_finite(backend):
    given = {k: v.float() for k, v in tensors(1, 16, 20, 2, 1).items()}
    given["delta"] = torch.linspace(-200, 200, 20).expand(1, 16, 20)
    out = selective_scan(**given, delta_softplus=True, backend=backend)
    expected = selective_scan(**{k: v.double() for k, v in given.items()}, delta_softplus=True, backend="reference")
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-3)


def test_the_reference_by_hand():
    """One channel, one state, no decay: a running sum."""
    u = torch.tensor([[[1.0, 2.0, 3.0]]])
    one = torch.ones(1, 1, 3)
    out, state = selective_scan(u, one, torch.zeros(1, 1), one, one, return_last_state=True, backend="reference")
    assert out.tolist() == [[[1.0, 3.0, 6.0]]]
    assert state.item() == 6
    gated = selective_scan(u, one, torch.zeros(1, 1), one, one, torch.ones(1), u, backend="reference")
    torch.testing.assert_close(gated, torch.tensor([[[2.0, 5.0, 9.0]]]) * F.silu(u))


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_gradcheck(backend):
    leaves = [t.requires_grad_() for t in tensors(1, 2, 5, 2, 1).values()]

    def scan(*x):
        return selective_scan(
            *x[:-1], delta_softplus=True, initial_state=x[-1], return_last_state=True, backend=backend
        )

    assert torch.autograd.gradcheck(scan, leaves)


def test_groups_of_b_and_c_may_differ_and_weights_may_be_constant():
    given = {k: v.float() for k, v in tensors(2, 8, 9, 3, 4).items()}
    shared = {**given, "B": given["B"][:, :2]}
    repeated = {**given, "B": given["B"][:, :2].repeat_interleave(2, 1)}
    torch.testing.assert_close(selective_scan(**shared), selective_scan(**repeated))
    constant = torch.randn(8, 3)
    spread = constant[None, :, :, None].expand(2, 8, 3, 9)
    a = selective_scan(**{**given, "B": constant, "C": constant})
    torch.testing.assert_close(a, selective_scan(**{**given, "B": spread, "C": spread}))
    three = selective_scan(**{**given, "B": given["B"][:, 0], "C": given["C"][:, 0]})
    torch.testing.assert_close(three, selective_scan(**{**given, "B": given["B"][:, :1], "C": given["C"][:, :1]}))


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@pytest.mark.parametrize("name", ["avx512", "avx2", "plain"])
def test_every_instruction_set_gives_the_same(name, monkeypatch):
    import foveal_kernels

    if name not in foveal_kernels.instruction_sets():
        pytest.skip(str(foveal_kernels.why_not(name)))
    from foveal.ops.selective_scan import native as module

    monkeypatch.setattr(module, "library", lambda: foveal_kernels.load(name))
    given = tensors(2, 37, 70, 6, 1)
    assert_close(run(given, "native"), run(given, "reference", dtype=torch.float64), torch.float32)


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
def test_threads_change_nothing():
    given = tensors(1, 70, 40, 4, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(given, "native")
        torch.set_num_threads(3)
        three = run(given, "native")
    finally:
        torch.set_num_threads(before)
    assert_close(three, one, torch.float32)
    assert torch.equal(three["out"], one["out"])


def test_the_registered_operator_passes_torchs_own_checks():
    given = {k: v.float() for k, v in tensors(1, 4, 6, 2, 1).items()}
    operator, tests = (
        torch.ops.foveal.selective_scan.default,
        ("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    torch.library.opcheck(operator, (*(t.requires_grad_() for t in general(given)), True, None, True), test_utils=tests)


def permuted(tensor):
    """The same values with the last two axes changed in memory, as projections leave them."""
    return tensor if tensor.ndim < 3 else tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


LAYOUTS = {
    "contiguous": lambda t: t,
    "permuted": permuted,
    "gaps": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t) if t.ndim > 2 else t,
}


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tracing_sees_the_real_strides(layout, dtype, routed, constant):
    """Compiled code relies on them, forward and backward."""
    from torch._subclasses import FakeTensorMode

    given = {k: LAYOUTS[layout](v.to(dtype)) for k, v in tensors(2, 6, 12, 4, 1).items()}
    if constant:
        if routed:
            pytest.skip("scans along routes take weights of every place")
        given["B"] = given["A"].cos()
    arguments = general(given)
    way = None
    if routed:
        way, arguments[6] = torch.arange(12).flip(0)[None], None

    def both(convert):
        inputs = [None if t is None else convert(t) for t in arguments]
        rest = (True, None if way is None else convert(way))
        out, last, kept = torch.ops.foveal.selective_scan(*inputs, *rest, True)
        found = torch.ops.foveal.selective_scan_backward(out, last, *inputs, *rest, kept)
        return [(t.shape, t.stride(), t.dtype) for t in (out, last, kept, *found)]

    mode = FakeTensorMode()
    with mode:
        traced = both(mode.from_tensor)
    assert both(lambda t: t) == traced


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inductor_trains(layout):
    given = {k: LAYOUTS[layout](v.float()).requires_grad_() for k, v in tensors(2, 6, 70, 4, 1).items()}

    def step(given):
        out, state = selective_scan(**given, delta_softplus=True, return_last_state=True)
        return out.square().sum() + state.sum()

    want = torch.autograd.grad(step(given), list(given.values()))
    got = torch.autograd.grad(torch.compile(step, fullgraph=True)(given), list(given.values()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def second(given, backend, *, dtype=torch.float32, leave_out=()):
    """Gradients of the sum of the squares of all gradients."""
    leaves = {k: v.to(dtype).detach().requires_grad_() for k, v in given.items() if k not in leave_out}
    out, state = selective_scan(**leaves, delta_softplus=True, return_last_state=True, backend=backend)
    first = torch.autograd.grad(out.sin().sum() + state.square().sum(), list(leaves.values()), create_graph=True)
    found = torch.autograd.grad(sum(t.square().sum() for t in first), list(leaves.values()))
    return {"out": out.detach(), "state": state.detach(), **dict(zip(leaves, found, strict=True))}


@pytest.mark.parametrize("backend", ["auto", *FAST])
@pytest.mark.parametrize("leave_out", [(), ("D", "z", "delta_bias", "initial_state")], ids=["all", "few"])
def test_second_derivatives_are_the_references(backend, leave_out):
    given = tensors(2, 5, 11, 3, 1)
    wanted = second(given, "reference", dtype=torch.float64, leave_out=leave_out)
    assert_close(second(given, backend, leave_out=leave_out), wanted, torch.float32)


def test_a_gradient_penalty_where_one_input_was_computed_from_another():
    u = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for backend, dtype in (("auto", torch.float32), ("reference", torch.float64)):
        x = u.to(dtype).requires_grad_()
        weights = x[:, :2].sin()
        out = selective_scan(x, x.exp(), -torch.ones(4, 2, dtype=dtype), weights, weights, backend=backend)
        penalty = torch.autograd.grad(out.square().sum(), x, create_graph=True)[0].square().sum()
        found.append(torch.autograd.grad(penalty, x)[0].double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4 * found[1].abs().max().item())


@pytest.mark.parametrize("backend", FAST)
def test_small_steps_keep_their_gradient(backend):
    """From 1e-9 to 10; 1 - exp(-delta), the slope of softplus, has no digits left in float32 below 1e-7."""
    delta = torch.logspace(-9, 1, 101, dtype=torch.float64)
    raw = (delta + torch.log(-torch.expm1(-delta))).float().double()
    found = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        one = torch.ones(1, 1, 1, dtype=dtype)
        step = raw[None, :, None].to(dtype).requires_grad_()
        bias = torch.zeros(101, dtype=dtype, requires_grad=True)
        u, rates = torch.ones(1, 101, 1, dtype=dtype), -torch.ones(101, 1, dtype=dtype)
        out = selective_scan(u, step, rates, one, one, delta_bias=bias, delta_softplus=True, backend=name)
        found.append([g.flatten().double() for g in torch.autograd.grad(out.sum(), (step, bias))])
    for got, wanted in zip(*found, strict=True):
        assert ((got - wanted) / wanted).abs().max() < 1e-5


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_not_a_number_spreads_and_raises_nothing(name, backend):
    given = {k: v.float() for k, v in tensors(1, 4, 130, 3, 1).items()}
    where = {"u": (0, 1, 70), "delta": (0, 1, 70), "z": (0, 1, 70), "B": (0, 0, 1, 70), "C": (0, 0, 1, 70)}
    at = where.get(name, (1,) if given[name].ndim == 1 else (1, 0) if given[name].ndim == 2 else (0, 1, 0))
    given[name][at] = float("nan")
    out, state = selective_scan(**given, delta_softplus=True, return_last_state=True, backend=backend)
    spread = torch.zeros(4, 130, dtype=torch.bool)
    channels = slice(None) if name in {"B", "C"} else 1
    first = 0 if name in {"A", "D", "delta_bias", "initial_state"} else 70
    forever = name not in {"z", "C"} and name != "D"
    spread[channels, slice(first, None if forever or name == "D" else 71)] = True
    assert torch.equal(out[0].isnan(), spread)
    assert bool(state.isnan().any()) == forever


def test_it_runs_on_fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        given = {k: mode.from_tensor(v.float()).requires_grad_() for k, v in tensors(2, 6, 9, 4, 1).items()}
        out, state = selective_scan(**given, delta_softplus=True, return_last_state=True)
        (out.sum() + state.sum()).backward()
        assert given["u"].grad.shape == out.shape == (2, 6, 9)


@pytest.mark.parametrize("cut", [1, 64, 77])
@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_two_halves_equal_the_whole(backend, cut):
    """In outputs and in every gradient, which goes from the second half to the first through the state."""
    given = tensors(2, 5, 100, 3, 1)

    def scan(leaves, pieces):
        state, outputs = leaves["initial_state"], []
        for part in pieces:
            piece = {k: v[..., part] if v.ndim > 2 and k != "initial_state" else v for k, v in leaves.items()}
            piece["initial_state"] = state
            out, state = selective_scan(**piece, delta_softplus=True, return_last_state=True, backend=backend)
            outputs.append(out)
        return torch.cat(outputs, -1), state

    found = []
    for pieces in ((slice(None),), (slice(cut), slice(cut, None))):
        leaves = {k: v.float().requires_grad_() for k, v in given.items()}
        out, state = scan(leaves, pieces)
        gradients = torch.autograd.grad(out.sin().sum() + state.square().sum(), list(leaves.values()))
        found.append({"out": out.detach(), "state": state.detach(), **dict(zip(leaves, gradients, strict=True))})
    assert_close(found[1], found[0], torch.float32)


def test_an_initial_state_is_not_exported(monkeypatch):
    given = {k: v.float() for k, v in tensors(1, 4, 6, 2, 1).items()}
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(NotImplementedError, match="an initial state cannot be exported to ONNX; omit initial_state"):
        selective_scan(**given)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("names", ["B", "C", "BC"])
def test_constant_weights_equal_spread_ones(backend, names):
    given = tensors(2, 37, 70, 3, 1)
    wanted = dict(given)
    for seed, name in enumerate(names):
        given[name] = torch.randn(37, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        wanted[name] = given[name]
    assert_close(run(given, backend), run(wanted, "reference", dtype=torch.float64), torch.float32)


class Allocated(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the bytes of new memory that operations give."""

    def __init__(self):
        super().__init__()
        self.seen, self.bytes = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.bytes += storage.nbytes()
        return result


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
def test_constant_weights_are_not_spread_over_the_places():
    """Not in what is saved for the backward pass, nor in what it takes beyond."""
    from foveal.ops.selective_scan import native as module

    batch, dim, length, states = 2, 64, 256, 16
    given = {k: v.float() for k, v in tensors(batch, dim, length, states, 1).items()}
    given |= {"B": given["A"].cos(), "C": given["A"].sin()}
    spread = 4 * batch * dim * length * states
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        selective_scan(**{k: v.clone().requires_grad_() for k, v in given.items()})
    assert sum(t.numel() * 4 for t in kept) < spread / 2
    arguments = general(given)
    out, _, checkpoints = module._forward(*arguments, True, None, True)
    with Allocated() as memory:
        module._backward(out, None, *arguments, True, None, checkpoints)
    assert 4 * out.numel() < memory.bytes < spread / 2


def test_the_kernel_is_registered_for_the_cpu_only():
    from torch._C import _dispatch_has_kernel_for_dispatch_key as has

    import foveal.ops.conv3x3  # noqa: F401

    names = ("selective_scan", "selective_scan_backward", "decayed_attention", "conv3x3", "conv3x3_backward")
    for name in names:
        assert has(f"foveal::{name}", "CPU")
        assert not has(f"foveal::{name}", "CUDA")
        assert not has(f"foveal::{name}", "CompositeExplicitAutograd")


@pytest.mark.parametrize("backend", ["auto", *FAST])
def test_torch_compile_keeps_one_graph(backend):
    """Forward and backward, with no break: the compiled scan is one node whose shape and gradient torch knows."""
    given = {k: v.float().requires_grad_() for k, v in tensors(2, 6, 70, 4, 1).items()}

    def step(given):
        return selective_scan(**given, delta_softplus=True, backend=backend).square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    want = torch.autograd.grad(step(given), list(given.values()))
    got = torch.autograd.grad(compiled(given), list(given.values()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_without_the_kernels_torch_does_the_work_and_says_so_once(monkeypatch):
    from foveal.ops.selective_scan import native as module

    monkeypatch.setattr(module, "library", lambda: None)
    monkeypatch.setattr(native, "why_not", lambda: "foveal-kernels is not installed; run `pip install ./kernels`")
    native.tell_once.cache_clear()
    given = tensors(1, 4, 6, 2, 1)
    with pytest.warns(RuntimeWarning, match="selective_scan runs in torch, many times slower .*pip install ./kernels"):
        first = run(given, "auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = run(given, "auto")
    native.tell_once.cache_clear()
    assert_close(second, first, torch.float32)
    assert_close(first, run(given, "reference", dtype=torch.float64), torch.float32)


def test_multiply_adds_are_counted_as_the_papers_do():
    from torch.utils.flop_counter import FlopCounterMode

    given = {k: v.float().to("meta") for k, v in tensors(2, 8, 10, 4, 1).items()}
    with FlopCounterMode(display=False) as counter:
        selective_scan(**given)
    assert counter.get_total_flops() // 2 == 2 * 8 * 10 * (9 * 4 + 1)


WRONG = {
    "u of two axes": ({"u": torch.zeros(3, 4)}, ShapeError, r"u must be \(batch, channels, length\), got \(3, 4\)"),
    "delta": ({"delta": torch.zeros(1, 4, 5)}, ShapeError, r"delta must be \(1, 4, 6\), like u, got \(1, 4, 5\)"),
    "A": ({"A": torch.zeros(3, 2)}, ShapeError, r"A must be \(4, states\), one row for each channel of u, got"),
    "B": ({"B": torch.zeros(1, 1, 3, 6)}, ShapeError, r"B must be \(1, 2, 6\) or \(1, groups, 2, 6\), got"),
    "C of two axes": ({"C": torch.zeros(4, 3)}, ShapeError, r"C must be \(4, 2\), \(dim, states\) when it does not"),
    "groups": ({"B": torch.zeros(1, 3, 2, 6)}, ShapeError, "the 4 channels of u must divide into the groups of B"),
    "groups of both": (
        {"u": torch.zeros(1, 12, 6), "delta": torch.zeros(1, 12, 6), "A": torch.zeros(12, 2), "D": None, "z": None,
         "delta_bias": None, "B": torch.zeros(1, 3, 2, 6), "C": torch.zeros(1, 4, 2, 6)},
        ShapeError, "the groups of B and C must divide each other, got 3 and 4",
    ),
    "z": ({"z": torch.zeros(1, 4, 5)}, ShapeError, r"z must be \(1, 4, 6\), like u"),
    "D": ({"D": torch.zeros(3)}, ShapeError, r"D must be \(4,\), one value for each channel of u, got \(3,\)"),
    "integers": ({"u": torch.zeros(1, 4, 6, dtype=torch.int64)}, TypeError, "u must be a real floating-point tensor"),
    "complex": (
        {"A": torch.zeros(4, 2, dtype=torch.complex64)}, TypeError,
        "A must be real, got torch.complex64; complex states are not supported, foveal.models.sequence.s4d",
    ),
    "initial state": (
        {"initial_state": torch.zeros(1, 2, 4)}, ShapeError,
        r"initial_state must be \(1, 4, 2\), \(batch, dim, states\), got \(1, 2, 4\)",
    ),
    "device": ({"D": torch.zeros(4, device="meta")}, ValueError, "D must be on cpu like u, got meta; move it there"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told(case):
    change, error, text = WRONG[case]
    given = {k: v.float() for k, v in tensors(1, 4, 6, 2, 1).items()}
    with pytest.raises(error, match=text):
        selective_scan(**{**given, **change})


def test_a_backend_that_cannot_run_is_told():
    given = tensors(1, 4, 6, 2, 1)
    with pytest.raises(BackendError, match="native kernels compute in float32, the tensors are float64"):
        selective_scan(**given, backend="native")
    with pytest.raises(ValueError, match=r"backend must be one of auto, native, .*got 'cuda'"):
        selective_scan(**given, backend="cuda")


def test_explain_lists_every_backend():
    assert list(explain()) == [backend.name for backend in BACKENDS]
    assert explain()["eager"] == "can run"
