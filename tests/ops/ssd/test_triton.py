"""The Triton kernel against the reference: by Triton's interpreter, in a process of its own, and on GPUs.

Whether kernels are interpreted is decided when Triton is imported, and another test may have imported it.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tolerance import allowed

from foveal.ops.backends import BackendError
from foveal.ops.ssd import ssd
from foveal.ops.ssd import triton as path

# batch, length, heads, groups, channels, states
CASES = [(2, 7, 2, 1, 3, 5), (1, 100, 4, 2, 20, 17), (1, 64, 1, 1, 70, 66), (1, 1, 1, 1, 1, 1)]


def largest_error(case, device="cpu", dtype=torch.float32, *, twice=False):
    """Of the output, the last state and every gradient: error over the largest value, over what is allowed."""
    batch, length, heads, groups, channels, states = case
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (batch, length, heads, channels),
        "dt": (batch, length, heads),
        "A": (heads,),
        "B": (batch, length, groups, states),
        "C": (batch, length, groups, states),
        "D": (heads, channels),
        "dt_bias": (heads,),
        "initial_state": (batch, heads, channels, states),
    }
    given = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    given["A"] = -given["A"].abs() - 0.1
    found = []
    for backend, kind in (("triton", dtype), ("reference", torch.float64)):
        leaves = {name: t.to(device, kind).clone().requires_grad_() for name, t in given.items()}
        results = ssd(**leaves, dt_softplus=True, return_last_state=True, backend=backend)
        total = 0
        for result in results:
            weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
            total = total + (result * weight).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()), create_graph=twice)
        if twice:
            gradients = torch.autograd.grad(sum(t.square().sum() for t in gradients), list(leaves.values()))
        found.append([t.detach().double() for t in (*results, *gradients)])
    bound = allowed(dtype, batch * length * channels * states)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(*found, strict=True)) / bound


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_interpreted_kernel_equals_the_reference():
    code = (
        "import test_triton as t; print([e for c in t.CASES if not (e := t.largest_error(c)) < 1], "
        "t.largest_error(t.CASES[0], twice=True) < 1)"
    )
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "[] True\n"


@pytest.mark.slow
def test_kernel_compiles_without_a_gpu(monkeypatch):
    """For compute capability 8.0, down to its machine code."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from foveal.ops.ssd import triton_kernel

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pointers, sizes = ("query", "key", "value", "rate", "start", "out", "last"), {"T": 64, "N": 64, "P": 64}
    signature = dict.fromkeys(pointers, "*fp32")
    whole = ("length", "heads", "query_groups", "key_groups", "value_groups", "states", "channels")
    signature |= dict.fromkeys(whole, "i32") | dict.fromkeys(sizes, "constexpr")
    source = ASTSource(triton_kernel.chunks, signature, constexprs=sizes)
    assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 80, 32), options=path.LAUNCH).asm


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*CASES, (2, 1000, 4, 1, 64, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(case, dtype):
    assert largest_error(case, "cuda", dtype) < 1


def test_without_a_device_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    x, dt, weights = torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1), torch.ones(1, 3, 1, 1)
    with pytest.raises(BackendError, match="backend 'triton' cannot run: "):
        ssd(x, dt, -torch.ones(1), weights, weights, backend="triton")


def test_tiles_are_powers_of_two_that_fit():
    assert [path._power(n) for n in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 128]
