import pytest
import torch
from torch import nn

from foveal.ops.backends import BackendError, ShapeError
from foveal.ops.block_sparse import Blocks, block_linear, explain, pack_blocks, unpack_blocks

needs_kernels = pytest.mark.skipif(explain()["native"] != "can run", reason=explain()["native"])

SHAPES = [
    {},
    {"rows": 1, "outputs": 16, "inputs": 4, "block": (16, 4)},
    {"rows": 100, "outputs": 96, "inputs": 21, "block": (48, 7)},
    {"rows": 63, "outputs": 128, "inputs": 65, "block": (64, 1), "keep": 0.9},
    {"rows": 7, "keep": 0.0},
    {"rows": 0},
]


def problem(*, rows=13, outputs=64, inputs=48, block=(32, 16), keep=0.4):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)
    mask = torch.rand(outputs // block[0], inputs // block[1], generator=generator) < keep
    weight = weight * mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return x, weight, torch.randn(outputs, generator=generator), block


def results(x, blocks, bias, backend, dtype=torch.float32):
    leaves = [t.detach().to(dtype).requires_grad_() for t in (x, blocks.values, bias)]
    y = block_linear(leaves[0], Blocks(leaves[1], *blocks[1:]), leaves[2], backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


def assert_near(got, want):
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-5)


def test_packing_by_hand_and_back():
    weight = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 7.0]])
    values, starts, columns = blocks = pack_blocks(weight, (2, 2))
    assert values[0].tolist() == [[1, 3], [2, 0]]  # inputs, outputs
    assert starts.tolist() == [0, 1, 3]
    assert columns.tolist() == [1, 0, 1]
    assert torch.equal(unpack_blocks(blocks, 4), weight)


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_packing_and_unpacking_changes_nothing(sizes):
    _, weight, _, block = problem(**sizes)
    assert torch.equal(unpack_blocks(pack_blocks(weight, block), weight.shape[1]), weight)


def test_the_reference_is_the_masked_dense_layer():
    x, weight, bias, block = problem()
    y = block_linear(x, pack_blocks(weight, block), bias, backend="reference")
    torch.testing.assert_close(y, x @ weight.mT + bias)


@needs_kernels
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_the_kernel_and_its_gradients_equal_the_reference(sizes):
    x, weight, bias, block = problem(**sizes)
    blocks = pack_blocks(weight, block)
    assert_near(results(x, blocks, bias, "native"), results(x, blocks, bias, "reference", torch.float64))


@needs_kernels
def test_any_number_of_axes_and_order_of_memory_will_do():
    x, weight, bias, block = problem(rows=12)
    blocks, want = pack_blocks(weight, block), x @ weight.mT
    torch.testing.assert_close(block_linear(x.view(2, 3, 2, -1), blocks, backend="native").view(12, -1), want)
    torch.testing.assert_close(block_linear(x.mT.contiguous().mT, blocks, backend="native"), want)
    torch.testing.assert_close(block_linear(x[0], blocks, backend="native"), want[0])
    assert (block_linear(x, blocks, bias) - want - bias).abs().max() < 1e-4


@needs_kernels
def test_second_derivatives_are_the_references():
    x, weight, bias, block = problem(rows=3)
    blocks, found = pack_blocks(weight, block), []
    for name in ("native", "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, blocks.values, bias)]
        y = block_linear(leaves[0], Blocks(leaves[1], *blocks[1:]), leaves[2], backend=name)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(t.square().sum() for t in first), leaves))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@needs_kernels
def test_every_instruction_set_and_number_of_threads_computes_alike(monkeypatch):
    import foveal_kernels

    from foveal.ops.block_sparse import native

    x, weight, bias, block = problem(rows=150, block=(16, 12))
    blocks, threads = pack_blocks(weight, block), torch.get_num_threads()
    want = x @ weight.mT + bias
    for name in foveal_kernels.instruction_sets():
        monkeypatch.setattr(native, "library", lambda name=name: foveal_kernels.load(name))
        for count in (1, 3):
            try:
                torch.set_num_threads(count)
                torch.testing.assert_close(block_linear(x, blocks, bias), want, rtol=1e-5, atol=2e-5)
            finally:
                torch.set_num_threads(threads)


def test_it_runs_on_fake_tensors():
    from torch._subclasses import FakeTensorMode

    x, weight, bias, block = problem()
    blocks = pack_blocks(weight, block)
    with FakeTensorMode() as mode:
        x, *parts, bias = (mode.from_tensor(t) for t in (x, *blocks, bias))
        x.requires_grad_()
        block_linear(x, Blocks(*parts), bias).sum().backward()
        assert x.grad.shape == (13, 48)


@needs_kernels
def test_the_registered_operator_passes_torchs_own_checks():
    x, weight, bias, block = problem(rows=3)
    values, starts, columns = pack_blocks(weight, block)
    given = (x.requires_grad_(), values.requires_grad_(), starts, columns, bias.requires_grad_())
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.foveal.block_linear.default, given, test_utils=tests)


@needs_kernels
def test_torch_compile_keeps_one_graph():
    x, weight, bias, block = problem()
    blocks = pack_blocks(weight, block)
    compiled = torch.compile(lambda x: block_linear(x, blocks, bias), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block_linear(x, blocks, bias))


def test_exported_graphs_hold_torchs_own_operators():
    class Layer(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            for name, value in blocks._asdict().items():
                self.register_buffer(name, value)

        def forward(self, x):
            return block_linear(x, Blocks(self.values, self.starts, self.columns))

    x, weight, _, block = problem()
    program = torch.export.export(Layer(pack_blocks(weight, block)), (x,))
    assert not [n for n in program.graph.nodes if "foveal" in str(n.target)]
    torch.testing.assert_close(program.module()(x), x @ weight.mT)


def test_without_the_kernels_torch_does_the_work_and_says_so_once(monkeypatch):
    from foveal.ops import native
    from foveal.ops.block_sparse import native as path

    monkeypatch.setattr(native, "why_not", lambda: "foveal-kernels is not installed; run `pip install ./kernels`")
    monkeypatch.setattr(path, "lacks", lambda _: native.why_not())
    native.tell_once.cache_clear()
    x, weight, bias, block = problem()
    blocks = pack_blocks(weight, block)
    with pytest.warns(RuntimeWarning, match=r"block_linear runs in torch, many times slower .*pip install \./kernels"):
        first = block_linear(x, blocks, bias)
    assert torch.equal(block_linear(x, blocks, bias), first)  # a second warning would be an error
    native.tell_once.cache_clear()


@needs_kernels
def test_no_memory_is_an_error_that_says_what_to_do(monkeypatch):
    from foveal.ops.block_sparse import native

    class Starved:
        foveal_block_sparse = staticmethod(lambda *_: 1)

    monkeypatch.setattr(native, "library", Starved)
    x, weight, _, block = problem()
    with pytest.raises(MemoryError, match="out of memory in a block-sparse layer; use a smaller batch"):
        block_linear(x, pack_blocks(weight, block))


def test_what_the_kernel_does_not_take_goes_to_torch():
    x, weight, _, _ = problem(block=(8, 16))
    blocks = pack_blocks(weight, (8, 16))
    assert "multiples of 16 rows, and they have 8" in explain(x, 8)["native"]
    torch.testing.assert_close(block_linear(x, blocks), x @ weight.mT)
    with pytest.raises(BackendError, match="multiples of 16 rows"):
        block_linear(x, blocks, backend="native")
    assert "x is float64" in explain(x.double())["native"]
    assert "x is on meta" in explain(x.to("meta"))["native"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, b, _: pack_blocks(x, (3, 5)), "does not divide into blocks of"),
        (lambda x, b, _: block_linear(x[:, :40], b), r"x must be \(…, K\) with K a multiple of 16"),
        (lambda x, b, _: block_linear(x, b, x[0]), "one value for each output"),
        (lambda x, b, _: block_linear(x, Blocks(b.values, b.starts, b.columns[1:])), "one for each block"),
        (lambda x, b, _: block_linear(x, Blocks(x, b.starts, b.columns)), "make them by pack_blocks"),
    ],
)
def test_shapes_that_do_not_fit_are_told(call, message):
    x, weight, bias, block = problem()
    with pytest.raises(ShapeError, match=message):
        call(x, pack_blocks(weight, block), bias)
