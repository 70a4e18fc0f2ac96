import pytest
import torch
from tolerance import allowed

from foveal.ops.backends import ShapeError
from foveal.ops.selective_scan import selective_scan
from foveal.ops.ssd import explain, ssd, ssd_noncausal

pytestmark = pytest.mark.dear("every backend, type and layout, and torch.compile")

LENGTHS = (1, 7, 63, 100)
FAST = [name for name, answer in explain().items() if answer == "can run" and name != "reference"]
needs_kernels = pytest.mark.skipif("native" not in FAST, reason=explain()["native"])


def problem(length, *, batch=2, heads=4, channels=3, groups=2, states=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(batch, length, heads, channels),
        "dt": normal(batch, length, heads),
        "A": -normal(heads).exp(),
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
        "D": normal(heads, channels),
        "dt_bias": normal(heads),
    }


def start(p):
    (batch, _, heads, channels), states = p["x"].shape, p["B"].shape[-1]
    generator = torch.Generator().manual_seed(9)
    return torch.randn(batch, heads, channels, states, generator=generator, dtype=torch.float64).to(p["x"].dtype)


def gradients(run, tensors):
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    outputs = run(**leaves)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    total = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
    return outputs, dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def test_a_case_by_hand():
    # With A = -ln 2 and dt = 1 the state halves at each step, and then takes in x · B.
    x, dt = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1), torch.ones(1, 3, 1)
    halving = -torch.log(torch.tensor([2.0]))
    weights_in, weights_out = torch.tensor([1.0, 1.0, 0.5]), torch.tensor([1.0, 3.0, 1.0])
    for backend in ("reference", *FAST):
        y, state = ssd(
            x,
            dt,
            halving,
            weights_in.view(1, 3, 1, 1),
            weights_out.view(1, 3, 1, 1),
            torch.tensor([10.0]),
            return_last_state=True,
            backend=backend,
        )
        torch.testing.assert_close(y.flatten(), torch.tensor([11.0, 3 * 2.5 + 20, 3.25 + 40]))
        torch.testing.assert_close(state.flatten(), torch.tensor([3.25]))


def test_a_case_without_order_by_hand():
    x, dt = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([1.0, 3.0]).view(1, 2, 1)
    keys, queries = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)
    # The sum over tokens is ½·1·1·1 + ½·3·2·2 = 6.5.
    for backend in ("reference", "eager"):
        y = ssd_noncausal(x, dt, torch.tensor([-0.5]), keys, queries, torch.tensor([1.0]), backend=backend)
        assert y.flatten().tolist() == [7.5, 34.5]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("softplus", [False, True])
def test_chunks_equal_steps_and_so_do_all_gradients(length, softplus):
    p = problem(length)
    if not softplus:
        p["dt"], p["dt_bias"] = p["dt"].abs(), p["dt_bias"].abs()

    def run(backend):
        return lambda initial_state, **tensors: ssd(
            **tensors,
            initial_state=initial_state,
            dt_softplus=softplus,
            chunk_size=16,
            return_last_state=True,
            backend=backend,
        )

    tensors = {**p, "initial_state": start(p)}
    ours, our_gradients = gradients(run("eager"), tensors)
    theirs, their_gradients = gradients(run("reference"), tensors)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-9, atol=1e-9)
    assert all(gradient.abs().max() > 0 for gradient in our_gradients.values())


@pytest.mark.parametrize("length", [1, 7, 25])
def test_the_sum_over_tokens_equals_the_double_loop_and_so_do_all_gradients(length):
    p = problem(length)
    ours, our_gradients = gradients(lambda **t: (ssd_noncausal(**t, dt_softplus=True),), p)
    theirs, their_gradients = gradients(lambda **t: (ssd_noncausal(**t, dt_softplus=True, backend="reference"),), p)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-9, atol=1e-9)


# One state and one channel; more rows of state than fit the registers and an odd one; more channels than one task has.
@pytest.mark.parametrize(
    ("length", "sizes"),
    [
        (1, {}),
        (7, {"channels": 1, "states": 1}),
        (63, {"states": 11, "groups": 1}),
        (100, {"channels": 70, "states": 16}),
    ],
)
@pytest.mark.parametrize("backend", FAST)
def test_float32_equals_the_reference_in_float64_and_so_do_all_gradients(length, sizes, backend):
    def run(backend):
        return lambda initial_state, **tensors: ssd(
            **tensors, initial_state=initial_state, dt_softplus=True, return_last_state=True, backend=backend
        )

    p = problem(length, **sizes)
    tensors = {**p, "initial_state": start(p)}
    # Rounded once, so that both get the same numbers.
    narrow = {name: tensor.float() for name, tensor in tensors.items()}
    ours, our_gradients = gradients(run(backend), narrow)
    theirs, their_gradients = gradients(run("reference"), {name: tensor.double() for name, tensor in narrow.items()})
    bound = allowed(torch.float32, length * theirs[1].numel())
    for got, want in zip(ours, theirs, strict=True):
        assert (got - want).abs().max() <= bound * want.abs().max()
    for name, want in their_gradients.items():
        assert (our_gradients[name] - want).abs().max() <= bound * want.abs().max(), name


@pytest.mark.parametrize("backend", ["auto", *FAST])
def test_second_derivatives_are_the_references(backend):
    p = problem(37)
    tensors = {**p, "initial_state": start(p)}
    found = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaves = {key: t.to(dtype).requires_grad_() for key, t in tensors.items()}
        y, state = ssd(**leaves, dt_softplus=True, return_last_state=True, backend=name)
        first = torch.autograd.grad(y.sin().sum() + state.sin().sum(), list(leaves.values()), create_graph=True)
        found.append(torch.autograd.grad(sum(t.square().sum() for t in first), list(leaves.values())))
    bound = allowed(torch.float32, 37 * tensors["initial_state"].numel())
    for name, got, want in zip(tensors, *found, strict=True):
        assert (got - want).abs().max() <= bound * want.abs().max(), name


@needs_kernels
@pytest.mark.parametrize("length", [1, 6])
def test_gradients_against_time_are_those_of_finite_differences(length):
    from foveal.ops.ssd.attention import attend_gradients, moved

    def along(q, k, v, rates, start, backward):
        """F, step by step."""
        if backward:
            out, last = along(q.flip(1), k.flip(1), v.flip(1), moved(rates), start, False)
            return out.flip(1), last
        state, outputs = start, []
        for t in range(q.shape[1]):
            state = rates[:, t, :, None, None].exp() * state + k[:, t, :, :, None] * v[:, t, :, None]
            outputs.append((q[:, t, :, :, None] * state).sum(-2))
        return torch.stack(outputs, 1), state

    made = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, length, 3, 4, generator=made, dtype=torch.float64)
    v, rates = torch.randn(2, length, 3, 5, generator=made, dtype=torch.float64), -torch.rand(2, length, 3).double()
    given = [t.requires_grad_() for t in (q, k, v, rates, torch.randn(2, 3, 4, 5, generator=made, dtype=torch.float64))]
    outputs = along(*given, True)
    native = torch.ops.foveal.decayed_attention(*(t.detach().float() for t in given), True)
    outgoing = [t.detach().cos() for t in outputs]
    wanted = torch.autograd.grad(outputs, given, outgoing, retain_graph=True)
    found = attend_gradients(along, tuple(given), outputs, tuple(outgoing), True)
    narrow = [t.detach().float().requires_grad_() for t in given]
    by_kernel = torch.autograd.grad(
        torch.ops.foveal.decayed_attention(*narrow, True), narrow, [t.float() for t in outgoing]
    )
    for got, want in zip(native, outputs, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    for got, kernel, want in zip(found, by_kernel, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(kernel.double(), want, rtol=1e-4, atol=1e-4)


def test_they_run_on_fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        p = {k: mode.from_tensor(v).requires_grad_() for k, v in problem(9, dtype=torch.float32).items()}
        ssd(**p, dt_softplus=True).sum().backward()
        assert p["A"].grad.shape == (4,)
        assert ssd_noncausal(**p).shape == (2, 9, 4, 3)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_a_value_that_is_not_a_number_spreads_and_raises_nothing(backend):
    p = problem(100, dtype=torch.float32)
    p["x"][0, 40, 1, 2] = float("nan")
    y, state = ssd(**p, dt_softplus=True, return_last_state=True, backend=backend)
    assert y[0, 40:, 1, 2].isnan().all()
    assert state[0, 1, 2].isnan().all()
    assert y[1].isfinite().all()
    assert y[0, :, 2:].isfinite().all()


@needs_kernels
def test_every_instruction_set_walks_alike(monkeypatch):
    import foveal_kernels

    from foveal.ops.ssd import native

    p = problem(40, channels=37, states=9, dtype=torch.float32)
    want = ssd(**p, dt_softplus=True, backend="eager")
    for name in foveal_kernels.instruction_sets():
        monkeypatch.setattr(native, "library", lambda name=name: foveal_kernels.load(name))
        torch.testing.assert_close(ssd(**p, dt_softplus=True, backend="native"), want, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_the_registered_operator_passes_torchs_own_checks():
    q, k = torch.randn(2, 2, 6, 1, 3)
    given = [q, k, torch.randn(2, 6, 4, 5), -torch.rand(2, 6, 4), torch.randn(2, 4, 3, 5)]
    torch.library.opcheck(
        torch.ops.foveal.decayed_attention.default,
        (*(t.requires_grad_() for t in given), False),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize("backend", ["auto", *FAST])
def test_torch_compile_keeps_one_graph(backend):
    p = {name: tensor.requires_grad_() for name, tensor in problem(70, dtype=torch.float32).items()}

    def step(tensors):
        return ssd(**tensors, dt_softplus=True, backend=backend).square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    want = torch.autograd.grad(step(p), list(p.values()))
    got = torch.autograd.grad(compiled(p), list(p.values()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_exported_graphs_hold_torchs_own_operators():
    class Mixer(torch.nn.Module):
        def forward(self, x, dt, decay, weights):
            return ssd(x, dt, decay, weights, weights)

    p = problem(16, dtype=torch.float32)
    program = torch.export.export(Mixer(), (p["x"], p["dt"].abs(), p["A"], p["B"]))
    assert not [n for n in program.graph.nodes if "foveal" in str(n.target)]


def test_without_the_kernels_torch_does_the_work_and_says_so_once(monkeypatch):
    from foveal.ops import native
    from foveal.ops.ssd import native as path

    monkeypatch.setattr(native, "why_not", lambda: "foveal-kernels is not installed; run `pip install ./kernels`")
    monkeypatch.setattr(path, "not_installed", native.why_not)
    native.tell_once.cache_clear()
    p = problem(5, dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match=r"ssd runs in torch, many times slower .*pip install \./kernels"):
        first = ssd(**p)
    assert torch.equal(ssd(**p), first)  # a second warning would be an error
    native.tell_once.cache_clear()


def test_gradients_are_right_in_float64():
    p = problem(5, batch=1, heads=2, channels=2, groups=1, states=2)
    tensors = [t.requires_grad_() for t in (*p.values(), start(p))]

    def causal(x, dt, decay, weights_in, weights_out, skip, bias, state):
        return ssd(
            x,
            dt,
            decay,
            weights_in,
            weights_out,
            skip,
            dt_bias=bias,
            dt_softplus=True,
            chunk_size=2,
            initial_state=state,
            return_last_state=True,
        )

    def orderless(*tensors):
        return ssd_noncausal(*tensors[:-1], dt_bias=tensors[-1], dt_softplus=True)

    assert torch.autograd.gradcheck(causal, tensors)
    assert torch.autograd.gradcheck(orderless, tensors[:-1])


@pytest.mark.parametrize("chunk_size", [1, 3, 29, 64])
def test_the_size_of_chunks_does_not_matter(chunk_size):
    p = problem(29)
    p["dt"] = p["dt"].abs()
    torch.testing.assert_close(ssd(**p, chunk_size=chunk_size), ssd(**p, chunk_size=8), rtol=1e-10, atol=1e-10)


def test_a_sequence_in_two_pieces_equals_it_in_one():
    p = problem(41)
    cut = [{k: v[:, part] if v.ndim > 2 else v for k, v in p.items()} for part in (slice(17), slice(17, None))]
    first, state = ssd(**cut[0], dt_softplus=True, chunk_size=8, return_last_state=True)
    second = ssd(**cut[1], dt_softplus=True, chunk_size=8, initial_state=state)
    whole = ssd(**p, dt_softplus=True, chunk_size=8)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-10, atol=1e-10)


def test_it_is_a_selective_scan_with_one_decay_a_head():
    p = problem(23)
    p["D"] = p["D"][:, 0]
    ours, state = ssd(**p, dt_softplus=True, chunk_size=8, return_last_state=True)
    batch, _, heads, channels = p["x"].shape
    theirs, their_state = selective_scan(
        p["x"].flatten(2).transpose(1, 2),
        p["dt"].repeat_interleave(channels, 2).transpose(1, 2),
        p["A"].repeat_interleave(channels)[:, None].expand(-1, 5),
        p["B"].permute(0, 2, 3, 1),
        p["C"].permute(0, 2, 3, 1),
        p["D"].repeat_interleave(channels),
        delta_bias=p["dt_bias"].repeat_interleave(channels),
        delta_softplus=True,
        return_last_state=True,
        backend="reference",
    )
    torch.testing.assert_close(ours.flatten(2), theirs.transpose(1, 2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, their_state.view(batch, heads, channels, 5), rtol=1e-10, atol=1e-10)


def test_it_is_masked_attention():
    # Section 5 of the Mamba-2 paper: Y = (C Bᵀ ∘ L) X with L_ij the product of the decays after j up to i.
    p = problem(19, groups=1)
    step = p["dt"].abs()
    sums = (step * p["A"]).cumsum(1)
    mask = (sums[:, :, None] - sums[:, None]).exp() * torch.ones(19, 19, dtype=torch.float64).tril()[None, :, :, None]
    scores = (p["C"][:, :, 0] @ p["B"][:, :, 0].transpose(1, 2))[..., None] * mask
    attended = torch.einsum("bijh,bjhp->bihp", scores, step[..., None] * p["x"])
    torch.testing.assert_close(ssd(p["x"], step, *(p[k] for k in "ABC")), attended, rtol=1e-9, atol=1e-9)


def test_without_order_tokens_may_change_places():
    p = problem(31)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[:, order] if value.ndim > 2 else value for name, value in p.items()}
    ours = ssd_noncausal(**shuffled, dt_softplus=True)
    torch.testing.assert_close(ours, ssd_noncausal(**p, dt_softplus=True)[:, order], rtol=1e-10, atol=1e-10)
    causal = ssd(**shuffled, dt_softplus=True) - ssd(**p, dt_softplus=True)[:, order]
    assert causal.abs().max() > 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
def test_narrow_types_compute_in_float32(dtype, tolerance):
    p = problem(70, dtype=dtype)
    wide = {name: value.float() for name, value in p.items()}
    for run in (ssd, ssd_noncausal):
        y = run(**p, dt_softplus=True)
        assert y.dtype == dtype
        want = run(**wide, dt_softplus=True, backend="reference")
        assert (y.float() - want).abs().max() < tolerance * want.abs().max()
    assert ssd(**p, return_last_state=True)[1].dtype == torch.float32


def test_strong_decays_stay_finite():
    p = problem(130, dtype=torch.float32)
    p["A"] = p["A"] * 1000
    (y, _), slopes = gradients(lambda **t: ssd(**t, dt_softplus=True, return_last_state=True), p)
    torch.testing.assert_close(y, ssd(**p, dt_softplus=True, backend="reference"), rtol=1e-4, atol=1e-4)
    assert all(slope.isfinite().all() for slope in slopes.values())


def test_small_steps_after_large_ones_keep_their_digits():
    # Sums of decays reach 10⁶ here; their differences in float32 would be wrong by several percent.
    length = 512
    dt = torch.full((1, length, 1), 0.01)
    dt[:, : length // 2] = 4000.0
    one = torch.ones(1, length, 1, 1)
    y = ssd(one, dt, -torch.ones(1), one, one, chunk_size=16)
    want = ssd(one.double(), dt.double(), -torch.ones(1).double(), one.double(), one.double(), backend="reference")
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=0)


def test_an_empty_sequence_gives_nothing_and_keeps_its_state():
    p = problem(0)
    y, state = ssd(**p, initial_state=start(p), return_last_state=True)
    assert y.shape == (2, 0, 4, 3)
    assert torch.equal(state, start(p))
    assert ssd_noncausal(**p).shape == (2, 0, 4, 3)
    assert ssd_noncausal(**p, backend="reference").shape == ssd(**p, backend="reference").shape == (2, 0, 4, 3)


def test_strides_do_not_matter():
    p = problem(128)
    scattered = {name: value.transpose(-1, 0).contiguous().transpose(-1, 0) for name, value in p.items()}
    assert not scattered["x"].is_contiguous()
    for run in (ssd, ssd_noncausal):
        torch.testing.assert_close(run(**scattered, dt_softplus=True), run(**p, dt_softplus=True))


def test_both_count_on_the_meta_device():
    p = {name: value.to("meta") for name, value in problem(100).items()}
    assert ssd(**p).shape == ssd_noncausal(**p).shape == (2, 100, 4, 3)


def test_explain_lists_every_path():
    told = explain()
    assert list(told) == ["native", "eager", "triton", "reference"]
    assert told["eager"] == told["reference"] == "can run"


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": torch.ones(2, 5, 4)}, ShapeError, r"x must be \(batch, length, heads, channels\), got \(2, 5, 4\)"),
        ({"x": torch.ones(2, 5, 4, 3).long()}, TypeError, "x must be a real floating-point tensor, got torch.int64"),
        ({"dt": torch.ones(2, 5, 3)}, ShapeError, r"dt must be \(2, 5, 4\), one step for each .*, got \(2, 5, 3\)"),
        ({"A": torch.ones(4, 5)}, ShapeError, r"A must be \(4,\), one decay for each head of x, got \(4, 5\)"),
        ({"A": torch.ones(4, device="meta")}, ValueError, "A must be on cpu like x, got meta; move it there"),
        ({"B": torch.ones(2, 5, 5)}, ShapeError, r"B must be \(2, 5, groups, states\), got \(2, 5, 5\)"),
        ({"C": torch.ones(2, 5, 1, 5)}, ShapeError, r"C must be \(2, 5, 2, 5\), like B, got \(2, 5, 1, 5\)"),
        (
            {"B": torch.ones(2, 5, 3, 5), "C": torch.ones(2, 5, 3, 5)},
            ShapeError,
            "the 4 heads of x must divide into the groups of B and C, got 3",
        ),
        ({"D": torch.ones(3)}, ShapeError, r"D must be \(4,\), one value for each head, .* got \(3,\)"),
        ({"D": torch.ones(4, 2)}, ShapeError, r"D must be \(4, 3\), one value for each channel, .* got \(4, 2\)"),
        ({"dt_bias": torch.ones(3)}, ShapeError, r"dt_bias must be \(4,\), one value for each head of x, got \(3,\)"),
        ({"backend": "cuda"}, ValueError, "backend must be one of auto, .*eager, .*reference, got 'cuda'"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, text):
    p = {**problem(5, dtype=torch.float32), **change}
    for run in (ssd, ssd_noncausal):
        with pytest.raises(error, match=text):
            run(**p)


def test_a_state_or_chunk_that_does_not_fit_is_refused():
    p = problem(5)
    with pytest.raises(ShapeError, match=r"initial_state must be \(2, 4, 3, 5\), .*, got \(2, 4, 5, 3\)"):
        ssd(**p, initial_state=start(p).transpose(2, 3))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0; 64 suits most sizes"):
        ssd(**p, chunk_size=0)
