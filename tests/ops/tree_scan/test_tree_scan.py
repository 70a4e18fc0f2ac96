import pytest
import torch

from foveal.ops.backends import ShapeError
from foveal.ops.ssd import ssd
from foveal.ops.tree_scan import ancestors, explain, tree_conv1d, tree_scan

TREE = (-1, 0, 0, 1, 1, 2, 4, -1, 7)


def inputs(parents, *, groups=2, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    nodes = len(parents)
    shapes = {
        "x": (2, nodes, 4, 3),
        "dt": (2, nodes, 4),
        "A": (4,),
        "B": (2, nodes, groups, 5),
        "C": (2, nodes, groups, 5),
    }
    shapes |= {"D": (4, 3), "dt_bias": (4,), "initial_state": (2, 4, 3, 5)}
    given = {name: torch.randn(shape, generator=draw, dtype=dtype) for name, shape in shapes.items()}
    return {**given, "A": -given["A"].exp(), "parents": torch.tensor(parents, dtype=torch.long), "dt_softplus": True}


def path_to(node, parents=TREE):
    return [*(path_to(parents[node], parents) if parents[node] >= 0 else []), node]


def test_a_hand_computed_tree():
    one, half = torch.ones(1, 4, 1, 1), torch.full((1, 4, 1), 0.5)
    y = tree_scan(one, half, -2 * torch.ones(1), one, one, parents=torch.tensor([-1, 0, 0, 2]))
    e = torch.tensor(-1.0).exp()
    torch.testing.assert_close(y.flatten(), torch.stack([e * 0 + 1, 1 + e, 1 + e, 1 + e + e * e]) / 2)


def test_topology_holds_a_node_and_its_ancestors():
    mask = ancestors(torch.tensor(TREE))
    assert [row.nonzero()[:, 0].tolist() for row in mask] == [path_to(node) for node in range(len(TREE))]


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_each_node_continues_its_own_path(backend):
    given = inputs(TREE)
    y = tree_scan(**given, backend=backend)
    along = ("x", "dt", "B", "C")
    for node in range(len(TREE)):
        path = {name: given[name][:, path_to(node)] for name in along}
        rest = {name: value for name, value in given.items() if name not in (*along, "parents")}
        alone = ssd(**path, **rest)[:, -1]
        torch.testing.assert_close(y[:, node], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_a_chain_is_ssd_with_gradients(backend):
    given = {**inputs((-1, 0, 1, 2, 3, 4, 5), groups=1), "D": None, "initial_state": None}
    parents = given.pop("parents")
    found = []
    for run in (lambda **g: tree_scan(**g, parents=parents, backend=backend), ssd):
        leaves = {name: value.clone().requires_grad_() for name, value in given.items() if torch.is_tensor(value)}
        y = run(**{**given, **leaves})
        found.append((y, *torch.autograd.grad(y.square().sum(), list(leaves.values()))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_long_steps_do_not_overflow_between_branches():
    given = inputs(TREE, dtype=torch.float32)
    given["dt"] = given["dt"] * 1000
    x = given["x"].requires_grad_()
    y = tree_scan(**given)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_half_precision_comes_back_as_it_went_in():
    given = {
        name: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v for name, v in inputs(TREE).items()
    }
    assert tree_scan(**given).dtype == torch.bfloat16


def test_no_nodes_are_no_nodes():
    given = inputs(())
    assert tree_scan(**given).shape == (2, 0, 4, 3)
    assert tree_scan(**given, backend="reference").shape == (2, 0, 4, 3)
    none = tree_conv1d(
        given["x"][..., 0], torch.ones(4, 3), None, parents=given["parents"], before=torch.zeros(2, 2, 4).double()
    )
    assert none.shape == (2, 0, 4)


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_the_convolution_follows_each_path(taps):
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = torch.randn(2, 9, 3, generator=draw), torch.randn(3, taps, generator=draw), torch.randn(3)
    before = torch.randn(2, taps - 1, 3, generator=draw)
    y = tree_conv1d(x, weight, bias, parents=torch.tensor(TREE), before=before)
    for node in range(9):
        path = torch.cat((before, x[:, path_to(node)]), 1).transpose(1, 2)
        alone = torch.conv1d(path, weight[:, None], bias, groups=3)[..., -1]
        torch.testing.assert_close(y[:, node], alone)


def test_both_paths_can_run():
    assert explain() == {"eager": "can run", "reference": "can run"}


def test_wrong_shapes_and_orders_raise():
    given = inputs(TREE)

    def but(**changed):
        return tree_scan(**{**given, **changed})

    with pytest.raises(ShapeError, match=r"x must be \(batch, nodes, heads, channels\), got \(2, 9, 4\)"):
        but(x=given["dt"])
    with pytest.raises(ShapeError, match=r"dt must be \(2, 9, 4\), one step for each node and head of x"):
        but(dt=given["dt"][:, 1:])
    with pytest.raises(ShapeError, match=r"A must be \(4,\), one decay for each head of x"):
        but(A=given["A"][1:])
    with pytest.raises(ShapeError, match=r"B must be \(2, 9, groups, states\) with groups that divide the 4 heads"):
        but(B=given["B"].repeat(1, 1, 2, 1)[:, :, :3])
    with pytest.raises(ShapeError, match=r"C must be \(2, 9, 2, 5\), like B"):
        but(C=given["C"][..., 1:])
    with pytest.raises(ShapeError, match=r"D must be \(4, 3\), one value for each head, or one for each channel"):
        but(D=given["D"].T)
    with pytest.raises(ShapeError, match=r"dt_bias must be \(4,\), one value for each head of x"):
        but(dt_bias=given["dt_bias"][1:])
    with pytest.raises(ShapeError, match=r"initial_state must be \(2, 4, 3, 5\), \(batch, heads, channels, states\)"):
        but(initial_state=given["initial_state"][1:])
    with pytest.raises(ShapeError, match=r"parents must be \(9,\), one parent for each node, -1 for none"):
        but(parents=given["parents"][1:])
    with pytest.raises(
        ValueError, match=r"each parent must stand before its child, or be -1, got \[1, .*sort the nodes"
    ):
        but(parents=torch.tensor([1, -1, 0, 0, 0, 0, 0, 0, 0]))
    x, before, parents = torch.zeros(1, 2, 3), torch.zeros(1, 1, 3), torch.tensor([-1, 0])
    with pytest.raises(ShapeError, match=r"x must be \(batch, nodes, channels\), got \(2, 3\)"):
        tree_conv1d(x[0], torch.ones(3, 2), None, parents=parents, before=before)
    with pytest.raises(ShapeError, match=r"weight must be \(3, taps\), one row for each channel, got \(2, 3\)"):
        tree_conv1d(x, torch.ones(2, 3), None, parents=parents, before=before)
    with pytest.raises(ShapeError, match=r"before must be \(1, 2, 3\), the inputs before the roots"):
        tree_conv1d(x, torch.ones(3, 3), None, parents=parents, before=before)
