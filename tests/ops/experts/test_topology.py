import pytest
import torch

from foveal.ops.backends import ShapeError
from foveal.ops.experts.topology import block_diagonal, dsd, from_mask, sdd, unpack

MASKS = {
    "diagonal": [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]],
    "scattered": [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1]],
    "full": [[1, 1]],
    "empty": [[0, 0], [0, 0]],
}


def problem(name, block=3, inner=5):
    topology = from_mask(torch.tensor(MASKS[name], dtype=torch.bool), block)
    generator = torch.Generator().manual_seed(0)
    rows, columns = (len(t) - 1 for t in (topology.offsets, topology.column_offsets))
    shapes = {
        "x": (rows * block, inner),
        "w": (columns * block, inner),
        "values": (len(topology.rows), block, block),
    }
    return topology, {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


def test_a_topology_by_hand():
    topology = from_mask(torch.tensor(MASKS["scattered"], dtype=torch.bool), 2)
    assert topology.offsets.tolist() == [0, 2, 2, 5, 8, 10]
    assert topology.rows.tolist() == [0, 0, 2, 2, 2, 3, 3, 3, 4, 4]
    assert topology.columns.tolist() == [0, 2, 1, 2, 3, 1, 2, 3, 0, 3]
    assert topology.column_offsets.tolist() == [0, 2, 4, 7, 10]
    assert topology.transposed.tolist() == [0, 8, 2, 5, 1, 3, 6, 4, 7, 9]


def test_experts_stand_on_the_diagonal():
    topology = block_diagonal([5, 0, 2], 4, 2)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:3, :2] = True
    mask[3, 4:] = True
    wanted = from_mask(mask, 2)
    assert all(torch.equal(a, b) for a, b in zip(topology[1:], wanted[1:], strict=True))


@pytest.mark.parametrize("name", MASKS)
def test_products_equal_those_of_whole_matrices(name):
    topology, given = problem(name)
    x, w, values = given.values()
    stored = unpack(torch.ones_like(values), topology)
    whole = unpack(values, topology)
    torch.testing.assert_close(unpack(sdd(x, w, topology), topology), x @ w.T * stored)
    torch.testing.assert_close(dsd(values, w, topology), whole @ w)
    torch.testing.assert_close(dsd(values, x, topology, transpose=True), whole.T @ x)


@pytest.mark.parametrize("name", ["diagonal", "scattered"])
def test_gradients_are_products_again(name):
    topology, given = problem(name, block=2, inner=1)
    x, w, values = given.values()

    def run(x, w, values):
        return sdd(x, w, topology).sin().sum() + dsd(values, w, topology).square().sum()

    assert torch.autograd.gradcheck(run, (x, w, values))
    assert torch.autograd.gradcheck(lambda v, x: dsd(v, x, topology, transpose=True), (values, x))
    assert torch.autograd.gradgradcheck(run, (x, w, values))


def test_the_transpose_reads_the_same_values():
    topology, given = problem("scattered")
    mask = torch.tensor(MASKS["scattered"], dtype=torch.bool)
    turned = from_mask(mask.T, 3)
    torch.testing.assert_close(
        dsd(given["values"], given["x"], topology, transpose=True),
        dsd(given["values"][topology.transposed].mT.contiguous(), given["x"], turned),
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t, g: from_mask(torch.ones(3), 2), ShapeError, r"mask must be \(rows of blocks, columns of blocks\)"),
        (lambda t, g: from_mask(torch.ones(3, 3), 0), ValueError, "block must be at least 1, got 0"),
        (lambda t, g: block_diagonal([3], 5, 2), ValueError, "width must be a multiple of the block, got 5 and 2"),
        (lambda t, g: sdd(g["w"], g["w"], t), ShapeError, r"x must be \(9, 5\), the rows of the topology"),
        (lambda t, g: sdd(g["x"], g["x"], t), ShapeError, r"w must be \(18, 5\), the columns of the topology"),
        (lambda t, g: dsd(g["values"][1:], g["w"], t), ShapeError, "values must be .* the blocks of the topology"),
        (lambda t, g: dsd(g["values"], g["x"], t), ShapeError, "dense must be .* the inner side of the product"),
    ],
)
def test_what_does_not_fit_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call(*problem("diagonal"))
