import pytest
import torch

from foveal.ops.backends import BackendError, ShapeError, use_backend
from foveal.ops.experts import expert_linear, explain, group_rows, top_experts

CASES = [
    {},
    {"rows": 1, "experts": 1, "top_k": 1, "sizes": (1, 1)},
    {"rows": 63, "experts": 5, "skew": True},
    {"rows": 7, "experts": 40, "top_k": 3},  # most experts are empty
    {"rows": 0},
    {"middle": (5,), "top_k": 1},
    {"middle": (2, 3), "skew": True},
]
MODES = [  # gates, grouped in, grouped out
    (False, False, False),
    (False, False, True),
    (False, True, False),
    (False, True, True),
    (True, False, False),
    (True, True, False),
]


def problem(*, rows=13, experts=4, top_k=2, sizes=(8, 12), middle=(), skew=False, grouped=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    scores = draw(rows, experts)
    if skew:
        scores[:, 1] += 5.0
    gates, chosen = top_experts(scores, top_k)
    groups = group_rows(chosen, experts)
    x = draw(rows * top_k if grouped else rows, *middle, sizes[0])
    return groups, x, draw(experts, sizes[1], sizes[0]), draw(experts, sizes[1]), gates


def results(backend, gated, grouped_in, grouped_out, activation=None, **sizes):
    groups, *tensors = problem(grouped=grouped_in, **sizes)
    x, weight, bias, gates = leaves = [t.requires_grad_() for t in tensors]
    words = {"gates": gates} if gated else {}
    words |= {"grouped_in": grouped_in, "grouped_out": grouped_out, "backend": backend}
    words |= {"activation": activation}
    y = expert_linear(x, weight, groups, bias=bias, **words)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * probe).sum(), leaves if gated else leaves[:3], allow_unused=True)]


def assert_near(got, want, **near):
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, **near)


def test_routing_by_hand():
    gates, experts = top_experts(torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.5, -9.0]]), 2)
    assert experts.tolist() == [[1, 2], [1, 0]]
    torch.testing.assert_close(gates.sum(1), torch.ones(2))
    plain, _ = top_experts(torch.tensor([[0.0, 3.0, 1.0]]), 2, renormalise=False)
    torch.testing.assert_close(plain, torch.tensor([[0.0, 3.0, 1.0]]).softmax(1)[:, [1, 2]])
    groups = group_rows(experts, 3)
    assert groups.order.tolist() == [3, 0, 2, 1]  # expert 0: choice 1 of row 1; expert 1: rows 0 and 1; expert 2
    assert groups.rows.tolist() == [1, 0, 1, 0]
    assert groups.sizes == (1, 2, 1)


def test_the_reference_by_hand():
    weight, bias = torch.tensor([[[2.0]], [[3.0]]]), torch.tensor([[0.5], [0.0]])
    groups = group_rows(torch.tensor([[1, 0], [0, 1]]), 2)
    x, gates = torch.tensor([[1.0], [10.0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    words = {"bias": bias, "backend": "reference"}
    assert expert_linear(x, weight, groups, **words).tolist() == [[[3.0], [2.5]], [[20.5], [30.0]]]
    assert expert_linear(x, weight, groups, grouped_out=True, **words).tolist() == [[2.5], [20.5], [3.0], [30.0]]
    assert expert_linear(x, weight, groups, gates=gates, **words).tolist() == [[2.625], [20.5]]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_all_modes_and_their_gradients_equal_the_reference(mode, sizes):
    assert_near(results("eager", *mode, **sizes), results("reference", *mode, **sizes))


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("backend", ["eager", "grouped"])
def test_an_activation_is_applied_as_rows_are_read(mode, backend):
    dtype = torch.float64 if backend == "eager" else torch.float32
    got, want = (results(b, *mode, torch.nn.functional.gelu, dtype=dtype) for b in (backend, "reference"))
    assert_near(got, want, **({} if backend == "eager" else {"rtol": 1e-4, "atol": 1e-5}))


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("sizes", [{}, {"rows": 63, "skew": True}, {"rows": 0}, {"middle": (5,)}], ids=str)
def test_torchs_grouped_product_does_too(mode, sizes):
    got = results("grouped", *mode, dtype=torch.float32, **sizes)
    assert_near(got, results("reference", *mode, dtype=torch.float32, **sizes), rtol=1e-4, atol=1e-5)


def test_one_expert_is_a_linear_layer():
    groups, x, weight, bias, _ = problem(experts=1, top_k=1)
    y = expert_linear(x, weight, groups, bias=bias, gates=torch.ones(13, 1, dtype=x.dtype))
    torch.testing.assert_close(y, torch.nn.functional.linear(x, weight[0], bias[0]))


def test_grouped_there_and_back_equals_scattered_twice():
    groups, x, weight, bias, gates = problem()
    back = weight.mT.contiguous()
    hidden = expert_linear(x, weight, groups, bias=bias, grouped_out=True)
    y = expert_linear(hidden, back, groups, gates=gates, grouped_in=True)
    scattered = expert_linear(x, weight, groups, bias=bias)
    each = [
        expert_linear(scattered[:, j], back, group_rows(_experts(groups)[:, j : j + 1], 4), gates=gates[:, j : j + 1])
        for j in range(2)
    ]
    torch.testing.assert_close(y, sum(each))


def _experts(groups):
    """Expert of each choice, (N, k)."""
    sorted_ = torch.repeat_interleave(torch.arange(len(groups.sizes)), torch.tensor(groups.sizes))
    return torch.empty_like(groups.order).index_copy(0, groups.order, sorted_).view(-1, groups.top_k)


def test_gradients_and_second_derivatives():
    groups, *tensors = problem(rows=3, experts=3, sizes=(2, 3))
    leaves = [t.requires_grad_() for t in tensors]

    def run(x, weight, bias, gates):
        return expert_linear(x, weight, groups, bias=bias, gates=gates, activation=torch.tanh).sin()

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_memory_in_another_order_and_frozen_parts():
    groups, x, weight, _, gates = problem()
    want = expert_linear(x, weight, groups, gates=gates)
    x = x.mT.contiguous().mT.requires_grad_()
    y = expert_linear(x, weight.mT.contiguous().mT, groups, gates=gates)
    torch.testing.assert_close(y, want)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_narrow_rows_meet_wide_weights():
    groups, x, weight, _, gates = problem(dtype=torch.float32)
    y = expert_linear(x.bfloat16(), weight, groups, gates=gates)
    assert y.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(expert_linear(x, weight, groups, gates=gates), expert_linear(x, weight, groups, gates=gates))
        assert expert_linear(x, weight, groups, gates=gates).dtype == torch.float32


@pytest.mark.parametrize("backend", ["eager", "grouped"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype, backend):
    got = results(backend, True, False, False, torch.nn.functional.gelu, dtype=dtype, sizes=(8, 16))
    groups, *tensors = problem(dtype=dtype, sizes=(8, 16))
    x, weight, bias, gates = leaves = [t.double().requires_grad_() for t in tensors]
    words = {"activation": torch.nn.functional.gelu, "backend": "reference"}
    y = expert_linear(x, weight, groups, bias=bias, gates=gates, **words)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).double()
    want = [y.detach(), *torch.autograd.grad((y * probe).sum(), leaves)]
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == dtype
        near = 8 * torch.finfo(dtype).eps * float(theirs.abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=near)


def test_counts_need_no_values():
    from torch.utils.flop_counter import FlopCounterMode

    groups = group_rows(torch.zeros(13, 2, dtype=torch.long, device="meta"), 4)
    assert groups.sizes == (26, 0, 0, 0)
    with FlopCounterMode(display=False) as counter:
        y = expert_linear(torch.empty(13, 8, device="meta"), torch.empty(4, 12, 8, device="meta"), groups)
    assert y.shape == (13, 2, 12)
    assert counter.get_total_flops() == 2 * 26 * 8 * 12


def test_an_exported_graph_cannot_hold_groups(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    with pytest.raises(
        RuntimeError, match=r"cannot be exported, got a call while exporting.*weight\[experts\] instead"
    ):
        group_rows(torch.zeros(3, 1, dtype=torch.long), 2)


def test_paths_are_explained_and_chosen():
    assert explain() == {"eager": "can run", "grouped": "can run", "reference": "can run"}
    assert "the weight is float64" in explain(torch.empty(1, 8, 8, dtype=torch.float64))["grouped"]
    assert "multiples of 16 bytes" in explain(torch.empty(1, 8, 7))["grouped"]
    with use_backend("reference"):
        assert "set aside" in explain()["eager"]


def test_an_old_torch_has_no_grouped_product(monkeypatch):
    monkeypatch.delattr(torch.nn.functional, "grouped_mm")
    assert "has no grouped product; install a newer one" in explain()["grouped"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: top_experts(p[4], 3), ValueError, r"top_k must be in 1…2, the number of experts, got 3"),
        (lambda p: top_experts(p[4][0], 1), ShapeError, r"scores must be \(rows, experts\), got \(2,\)"),
        (lambda p: group_rows(torch.zeros(3, dtype=torch.long), 2), ShapeError, r"one choice is \(rows, 1\)"),
        (lambda p: group_rows(p[4], 2), TypeError, "experts must be integers, got torch.float32"),
        (lambda p: group_rows(torch.tensor([[0], [4]]), 4), ValueError, "experts must be in 0…3, got 4"),
        (lambda p: group_rows(torch.tensor([[-1]]), 4), ValueError, "experts must be in 0…3, got -1"),
        (lambda p: expert_linear(p[1], p[2][:3], p[0]), ShapeError, r"weight must be \(4 experts, out, in\)"),
        (lambda p: expert_linear(p[1][1:], p[2], p[0]), ShapeError, r"x must be \(13 rows, …, 8\), got \(12, 8\)"),
        (
            lambda p: expert_linear(p[1], p[2], p[0], grouped_in=True),
            ShapeError,
            r"x must be \(26 assignments in the order of the experts, …, 8\)",
        ),
        (lambda p: expert_linear(p[1], p[2], p[0], bias=p[3][0]), ShapeError, "bias must be .* one row for each"),
        (lambda p: expert_linear(p[1], p[2], p[0], gates=p[4][0]), ShapeError, "gates must be .* each choice of a row"),
        (
            lambda p: expert_linear(p[1], p[2], p[0], gates=p[4], grouped_out=True),
            ValueError,
            "gates add the choices of a row, got them for a grouped result; drop one",
        ),
        (lambda p: expert_linear(p[1].int(), p[2], p[0]), TypeError, "x must be a real floating-point tensor"),
        (lambda p: expert_linear(p[1], p[2].double(), p[0], backend="grouped"), BackendError, "is float64"),
    ],
)
def test_what_does_not_fit_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call(problem(dtype=torch.float32))
