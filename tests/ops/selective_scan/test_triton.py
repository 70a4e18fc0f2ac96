"""The Triton kernels against the reference: by Triton's interpreter, in a process of its own, and on GPUs.

Whether kernels are interpreted is decided when Triton is imported, and another test may have imported it.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from tolerance import allowed

from foveal.ops.scan2d import routes
from foveal.ops.scan2d.reference import selective_scan2d_reference
from foveal.ops.scan2d.triton import selective_scan2d_triton
from foveal.ops.selective_scan import triton as path
from foveal.ops.selective_scan.reference import selective_scan_reference
from foveal.ops.triton import why_not

INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "bias", "start")
HALF = {"half": torch.float16, "brain": torch.bfloat16}

# batch, channels, length, groups, states, what is missing; a tile holds 2 channels, 2 states and 4 steps
CASES = {
    "all": (1, 3, 9, 1, 2, ()),
    "groups": (2, 2, 3, 2, 1, ("z", "start")),
    "bare": (1, 2, 6, 1, 2, ("D", "z", "bias", "start")),
    "one": (1, 1, 1, 1, 3, ("D",)),
    "constant": (2, 3, 6, 1, 2, ("bias",)),
    "constant B": (1, 2, 5, 2, 2, ("bias", "start")),
    "half": (1, 2, 3, 1, 1, ()),
    "brain": (1, 2, 3, 1, 1, ()),
}
WAY = [[3, -1, 0, 1, -1, 2], [-1, -1, 1, 2, -1, -1]]


def inputs(batch, channels, length, groups, states, missing=(), dtype=torch.float32):
    made = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=made).to(dtype)

    found = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -normal(channels, states).exp(),
        "B": normal(batch, groups, states, length),
        "C": normal(batch, groups, states, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "bias": normal(channels),
        "start": normal(batch, channels, states).float(),
    }
    return {name: None if name in missing else tensor for name, tensor in found.items()}


def inputs2d(way, batch=1, channels=2, states=2):
    """The same for scans along routes, all (…, K, …)."""
    count, length = len(way), 1 + max(max(route) for route in way)
    each = inputs(batch, count * channels, length, count, states)
    split = {"A", "D", "bias"}
    found = {name: t.unflatten(0, (count, channels)) if name in split else t for name, t in each.items()}
    found["delta"] = each["delta"].unflatten(1, (count, channels))
    return {**found, "u": each["u"][:, :channels], "z": None, "start": None}


def differentiated(run, given):
    """Output, last state and gradients by name."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in given.items()}
    out, last = run(leaves)
    outgoing = torch.cos(torch.arange(out.numel(), device=out.device)).view(out.shape).to(out.dtype)
    present = {name: t for name, t in leaves.items() if t is not None}
    total = (out * outgoing).sum() + torch.sin(1 + last).sum()
    gradients = torch.autograd.grad(total, list(present.values()), materialize_grads=True)
    return {"out": out, "last": last, **dict(zip(present, gradients, strict=True))}


def twice(run, given):
    """Gradients of the gradients' squares by name."""
    present = {name: t for name, t in given.items() if t is not None}
    out, last = run(given)
    first = torch.autograd.grad(out.sin().sum() + last.square().sum(), list(present.values()), create_graph=True)
    second = torch.autograd.grad(sum(t.square().sum() for t in first), list(present.values()))
    return dict(zip(present, second, strict=True))


def errors(found, wanted):
    """Largest error over the largest value, by name; dtypes and shapes must be the same."""
    assert found.keys() == wanted.keys()
    off = {}
    for name, theirs in wanted.items():
        ours = found[name]
        assert ours.shape == theirs.shape, f"{name}: {ours.shape} for {theirs.shape}"
        assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype} for {theirs.dtype}"
        if theirs.numel():
            error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-3)
            off[name] = error.item()
    return off


def plain(kernel, softplus=True):
    def run(given):
        return kernel(*(given[name] for name in INPUTS[:-1]), softplus, given["start"])

    return run


def mapped(kernel, way):
    def run(given):
        first = [given[name] for name in INPUTS[:6]]
        out = kernel(*first, torch.tensor(way, device=given["u"].device), given["bias"], True)
        return out, out.new_zeros(1)  # the last states are not asked for

    return run


def given_for(name):
    given = inputs(*CASES[name], dtype=HALF.get(name, torch.float32))
    if name == "bare":  # not contiguous either
        given = {key: t.mT.contiguous().mT for key, t in given.items() if t is not None} | dict.fromkeys(CASES[name][5])
    if name.startswith("constant"):
        given["B"] = given["A"].cos()
    if name == "constant":
        given["C"] = given["A"].sin()
    return given


def interpreted():
    """The errors of all cases."""
    loaded = "foveal.ops.selective_scan.triton_kernels" in sys.modules
    path.TILE, path.STEPS = 16, 4
    torch.set_num_threads(1)
    off = {}
    for name in CASES:
        given, softplus = given_for(name), name != "bare"
        runs = (plain(kernel, softplus) for kernel in (path.selective_scan_triton, selective_scan_reference))
        off[name] = errors(*(differentiated(run, given) for run in runs))
    runs = (mapped(kernel, WAY) for kernel in (selective_scan2d_triton, selective_scan2d_reference))
    off["routes"] = errors(*(differentiated(run, inputs2d(WAY)) for run in runs))
    given = inputs(1, 2, 0, 1, 2)
    runs = (plain(kernel) for kernel in (path.selective_scan_triton, selective_scan_reference))
    off["empty"] = errors(*(differentiated(run, given) for run in runs))
    given = {name: None if t is None else t.requires_grad_() for name, t in given_for("constant B").items()}
    runs = (plain(kernel) for kernel in (path.selective_scan_triton, selective_scan_reference))
    off["twice"] = errors(*(twice(run, given) for run in runs))
    with torch.no_grad():
        given = inputs(*CASES["one"])
        kept = [plain(kernel)(given)[0] for kernel in (path.selective_scan_triton, selective_scan_reference)]
    off["without gradients"] = errors({"out": kept[0]}, {"out": kept[1]})
    return {"errors": off, "why not": why_not(torch.empty(1)), "loaded at first": loaded}


@pytest.fixture(scope="module")
def run_by_interpreter():
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    command = [sys.executable, __file__]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_wrong_answer_is_seen():
    ones = {"out": torch.ones(2)}
    assert errors({"out": torch.tensor([1.0, 3.0])}, ones) == {"out": 2.0}
    with pytest.raises(AssertionError, match=r"out: torch.float64 for torch.float32"):
        errors({"out": torch.ones(2).double()}, ones)


@pytest.mark.parametrize("case", [*CASES, "routes", "empty", "twice", "without gradients"])
def test_interpreted_outputs_and_gradients_are_the_references(run_by_interpreter, case):
    batch, _, length, _, states, _ = CASES.get(case, (1, 2, 6, 1, 2, ()))
    bound = allowed(HALF.get(case, torch.float32), batch * length * states)
    off = run_by_interpreter["errors"][case]
    assert off
    assert {name: error for name, error in off.items() if not error <= bound} == {}


def test_the_interpreter_needs_no_gpu(run_by_interpreter):
    assert run_by_interpreter["why not"] is None


def test_kernels_are_loaded_when_a_scan_runs(run_by_interpreter):
    assert run_by_interpreter["loaded at first"] is False


@pytest.mark.parametrize("states", [0, 1, 5, 16, 300])
@pytest.mark.parametrize("steps", [1, 49, 4096])
@pytest.mark.parametrize("channels", [1, 96, 768])
def test_tiles_are_powers_of_two_that_fit(channels, states, steps):
    tile = path._tile(channels, states, steps)
    assert all(side & (side - 1) == 0 and side for side in tile)
    assert tile[1] >= states
    assert tile[0] * tile[1] * tile[2] <= max(path.TILE, 16 * tile[1])
    assert 1 <= path._launch(tile)["num_warps"] <= 16


@pytest.mark.slow
@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_kernels_compile_without_a_gpu(kernel, routed, monkeypatch):
    """For compute capability 8.0, down to its machine code."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile  # noqa: A004

    from foveal.ops.selective_scan import triton_kernels

    function = getattr(triton_kernels, kernel)
    tile = path._tile(96, 16, 196)
    names = ("softplus", "in_constant", "out_constant", "CHANNELS", "STATES", "STEPS")
    constant = dict(zip(names, (True, not routed, False, *tile), strict=True))
    constant |= dict.fromkeys(("gate", "of_gate", "start", "of_start", "grad_last") if routed else ("routes",))
    tensors = {"u", "delta", "rates", "weights_in", "weights_out", "skip", "gate", "bias", "start"}
    tensors |= {
        "out",
        "last",
        "checkpoints",
        "grad",
        "grad_last",
        *(f"of_{n.removeprefix('weights_')}" for n in tensors),
    }
    types = {}
    for parameter in function.params:
        other = "*fp32" if parameter.name in tensors else "i32"
        types[parameter.name] = (
            "constexpr" if parameter.name in constant else {"routes": "*i64"}.get(parameter.name, other)
        )
    constants = {(place,): constant[name] for place, name in enumerate(types) if name in constant}
    source = ASTSource(function, types, constants)
    made = compile(source, target=GPUTarget("cuda", 80, 32), options=path._launch(tile))
    assert made.asm["cubin"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("states", [1, 16])
@pytest.mark.parametrize("length", [1, 63, 100, 1000])
def test_on_a_gpu(length, states, dtype):
    given = {name: t.cuda() for name, t in inputs(2, 12, length, 2, states, dtype=dtype).items()}
    runs = (plain(kernel) for kernel in (path.selective_scan_triton, selective_scan_reference))
    off = errors(*(differentiated(run, given) for run in runs))
    bound = allowed(dtype, 2 * 12 * length * states)
    assert {name: error for name, error in off.items() if not error <= bound} == {}


@pytest.mark.gpu
@pytest.mark.parametrize("order", ["cross", "atrous"])
def test_on_a_gpu_along_routes(order):
    way = routes(order, 13, 17).tolist()
    given = {name: None if t is None else t.cuda() for name, t in inputs2d(way, 2, 20, 1).items()}
    runs = (mapped(kernel, way) for kernel in (selective_scan2d_triton, selective_scan2d_reference))
    off = errors(*(differentiated(run, given) for run in runs))
    assert {name: error for name, error in off.items() if not error <= 1e-4} == {}


if __name__ == "__main__":
    print(json.dumps(interpreted()))
