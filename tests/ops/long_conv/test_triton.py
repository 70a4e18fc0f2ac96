"""The fused Triton kernel against the reference: by Triton's interpreter, in a process of its own, and on GPUs.

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
from foveal.ops.long_conv import long_conv
from foveal.ops.long_conv import triton as path

# batch, channels, heads, length, kernel, kernel of what comes after
CASES = [(2, 3, 2, 7, 3, 0), (1, 2, 1, 40, 40, 40), (1, 1, 2, 200, 200, 0)]


def largest_error(case, device="cpu", dtype=torch.float32):
    """Of the output and of every gradient: error over the largest value in float64, over what is allowed."""
    batch, channels, heads, length, before, after = case
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, channels, length), (heads, channels, before), (heads, channels)]
    given = [
        torch.randn(s, generator=generator).to(dtype) for s in [*shapes, *([(heads, channels, after)] * bool(after))]
    ]
    found = []
    for backend, kind in (("triton", dtype), ("reference", torch.float64)):
        leaves = [t.to(device, kind).clone().requires_grad_() for t in given]
        out = long_conv(*leaves[:3], reverse=leaves[3] if after else None, backend=backend)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        (out * weight).sum().backward()
        found.append([out.detach().double(), *(leaf.grad.double() for leaf in leaves)])
    bound = allowed(dtype, batch * heads * channels * length)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True)) / bound


def largest_second_error(case):
    """The same of the gradients of the squares of all gradients."""
    batch, channels, heads, length, before, after = case
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (batch, channels, length),
        (heads, channels, before),
        (heads, channels),
        *([(heads, channels, after)] * bool(after)),
    ]
    given = [torch.randn(s, generator=generator) for s in shapes]
    found = []
    for backend, kind in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [t.to(kind).clone().requires_grad_() for t in given]
        out = long_conv(*leaves[:3], reverse=leaves[3] if after else None, backend=backend)
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(t.square().sum() for t in first), leaves))
    bound = 4 * allowed(torch.float32, batch * heads * channels * length)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True)) / bound


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_interpreted_kernel_equals_the_reference():
    code = (
        "import test_triton as t; assert [c for c in t.CASES if not t.largest_error(c) < 1] == [], 'differs'; "
        "assert [c for c in t.CASES[:2] if not t.largest_second_error(c) < 1] == [], 'differs at second'"
    )
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(("skip", "capability"), [(True, 80), (False, 90)])
def test_kernel_compiles_without_a_gpu(skip, capability, monkeypatch):
    """Down to its machine code, at the largest matrix, which must fit into the memory that a program has."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from foveal.ops.long_conv import triton_kernel

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    first, second = path._parts(2 * path.MOST)
    sizes = {"FIRST": first, "SECOND": second} | ({} if skip else {"skip": None})
    signature = dict.fromkeys(triton_kernel.convolve.arg_names, "*fp32")
    signature |= dict.fromkeys(("length", "channels", "given"), "i32") | dict.fromkeys(sizes, "constexpr")
    source = ASTSource(triton_kernel.convolve, signature, constexprs=sizes)
    options = path._launch(first * second)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert "cubin" in made.asm
    assert made.metadata.shared <= {80: 163, 90: 227}[capability] << 10


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*CASES, (2, 3, 1, 1000, 1000, 1000), (2, 3, 1, 2048, 2048, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(case, dtype):
    assert largest_error(case, "cuda", dtype) < 1


def test_matrices_hold_the_period():
    for n in (1, 255, 256, 257, 1024, 1025, 8191):
        first, second = path._parts(n)
        assert min(first, second) >= 16
        assert n <= first * second <= max(256, 2 * n)
        assert second in {first, 2 * first}


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.zeros(1, 1, 4), "no CUDA device|run on CUDA devices, the tensors are on cpu"),
        (torch.zeros(1, 1, 4, dtype=torch.float64), "compute in float32, the tensors are float64"),
        (torch.zeros(1, 1, 5000), "holds sequences of up to 2048, got 5000"),
    ],
)
def test_it_says_why_it_cannot_run(tensor, text, monkeypatch):
    if "CUDA" not in text:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match=text):
        long_conv(tensor, torch.zeros(1, 4, dtype=tensor.dtype), backend="triton")
