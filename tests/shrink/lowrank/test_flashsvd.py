import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.lowrank.flashsvd import (
    LAUNCH,
    METHOD,
    FlashSVDAttention,
    FlashSVDFeedForward,
    attention,
    attention_reference,
    factorise,
    feed_forward,
    feed_forward_reference,
    feed_forward_triton,
)


def drawn(case):
    return {name: x.double() for name, x in METHOD.cases[case].inputs(0).items()}


@pytest.mark.parametrize("tile", [1, 3, 7, 100])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_feed_forward_in_any_tiles(rows, tile):
    given = {name: x.requires_grad_() for name, x in drawn("feed_forward").items()}
    found, wanted = feed_forward(**given, rows=rows, tile=tile), feed_forward_reference(**given)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        *(torch.autograd.grad(y.square().sum(), list(given.values())) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("heads", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 10, 100])
def test_attention_in_any_tiles(rows, heads):
    given = {name: x.requires_grad_() for name, x in drawn("attention").items()}
    found = attention(**given, num_heads=3, rows=rows, heads=heads)
    wanted = attention_reference(**given, num_heads=3)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        *(torch.autograd.grad(y.square().sum(), list(given.values())) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_reference_is_attention():
    given = drawn("attention")
    q, k, v = (
        (given["x"] @ (given["u"][i] @ given["v"][i]).T + given["b"][i]).unflatten(2, (3, 2)).transpose(1, 2)
        for i in range(3)
    )
    y = (torch.softmax(q @ k.transpose(2, 3) / 2**0.5, -1) @ v).transpose(1, 2).flatten(2)
    wanted = y @ (given["u_out"] @ given["v_out"]).T + given["b_out"]
    torch.testing.assert_close(attention_reference(**given, num_heads=3), wanted)


def test_at_full_rank_modules_are_the_layers_they_were_made_of():
    torch.manual_seed(0)
    x, first, second = torch.randn(2, 5, 6), nn.Linear(6, 8), nn.Linear(8, 6)
    wanted = second(F.gelu(first(x)))
    torch.testing.assert_close(FlashSVDFeedForward(first, second, rank=6, rows=3, tile=5)(x), wanted)
    for bias in (True, False):
        qkv, proj = nn.Linear(6, 18, bias=bias), nn.Linear(6, 6)
        q, k, v = qkv(x).view(2, 5, 3, 3, 2).permute(2, 0, 3, 1, 4)
        wanted = proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        found = FlashSVDAttention(qkv, proj, num_heads=3, rank=6, rows=1, heads=2)
        torch.testing.assert_close(found(x), wanted)
        assert found.b.shape == (3, 6)


def test_no_closer_product_of_that_rank():
    torch.manual_seed(0)
    weight = torch.randn(5, 7)
    u, v = factorise(weight, 2)
    assert (u.shape, v.shape) == ((5, 2), (2, 7))
    rest = torch.linalg.svdvals(weight)[2:].square().sum()
    torch.testing.assert_close((weight - u @ v).square().sum(), rest)


def test_what_is_made_is_a_tile(monkeypatch):
    seen = []
    gelu = F.gelu
    monkeypatch.setattr("torch.nn.functional.gelu", lambda x: (seen.append(tuple(x.shape)), gelu(x))[1])
    feed_forward(**drawn("feed_forward"), rows=4, tile=3)
    assert set(seen) == {(4, 3), (2, 3), (4, 1), (2, 1)}


# channels, first rank, hidden features, second rank, tokens
CASES = [(6, 2, 7, 3, 5), (20, 17, 45, 9, 37), (3, 16, 16, 16, 16), (1, 1, 1, 1, 1)]


def kernel_error(case, device="cpu"):
    """Error of the Triton kernel over the largest value of the reference in float64."""
    dim, rank, features, rank_out, tokens = case
    generator = torch.Generator().manual_seed(0)
    shapes = (2, tokens, dim), (rank, dim), (features, rank), (features,), (rank_out, features), (dim, rank_out), (dim,)
    given = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    wanted = feed_forward_reference(*(t.double() for t in given))
    found = feed_forward_triton(*given, rows=16, tile=16)
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_interpreted_kernel_equals_the_reference():
    code = "import test_flashsvd as t; print([e for c in t.CASES if not (e := t.kernel_error(c)) < 1e-5])"
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",  # decided when Triton is imported, and another test may have imported it
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_kernel_compiles_without_a_gpu(monkeypatch):
    """For compute capability 8.0, down to its machine code."""
    triton = pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from foveal.shrink.lowrank import flashsvd_kernel

    names = [argument.name for argument in flashsvd_kernel.hidden.params]
    constants = {"T": 32, "F": 16, "R1": 256, "R2": 256}
    signature = {
        name: "constexpr" if name in constants else "*fp32" if i < 5 else "i32" for i, name in enumerate(names)
    }
    source = ASTSource(fn=flashsvd_kernel.hidden, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=LAUNCH)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 160 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_the_reference_on_a_gpu(case):
    assert kernel_error(case, "cuda") < 1e-4


def test_the_kernel_says_why_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="feed_forward_triton cannot run: "):
        feed_forward_triton(**drawn("feed_forward"))


def test_wrong_numbers_raise():
    with pytest.raises(ValueError, match=r"rank must be in 1…5 for weights \(5, 7\), got 6"):
        factorise(torch.zeros(5, 7), 6)
    with pytest.raises(ValueError, match="rows and tile must be at least 1, got 0 and 3"):
        feed_forward(**drawn("feed_forward"), rows=0, tile=3)
    with pytest.raises(ValueError, match="rows and heads must be at least 1, got 4 and 0"):
        attention(**drawn("attention"), num_heads=3, rows=4, heads=0)
