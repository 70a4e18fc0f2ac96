import itertools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from foveal.ops.scan2d import ORDERS, gather, routes, scatter

SIZES = [(1, 1), (1, 7), (7, 1), (2, 3), (5, 4), (4, 4), (7, 9), (16, 3)]
ROUTES = {"raster": 2, "cross": 4, "snake": 4, "diagonal": 4, "spiral": 2, "hilbert": 2, "window": 2}


def steps(route, width):
    """Rows and columns moved at each step, summed."""
    i, j = route // width, route % width
    return i.diff().abs() + j.diff().abs()


def visits_all(found, length):
    """Each route visits every position once."""
    return torch.equal(found.sort(1).values, torch.arange(length).expand_as(found))


def test_the_check_can_fail():
    assert not visits_all(torch.tensor([[0, 1, 1]]), 3)
    assert steps(torch.tensor([0, 4]), 3).tolist() == [2]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("order", ROUTES)
def test_every_route_is_a_permutation_and_the_second_half_goes_back(order, height, width):
    found = routes(order, height, width, window=3)
    assert found.shape == (ROUTES[order], height * width)
    assert found.dtype == torch.int64
    assert visits_all(found, height * width)
    there, back = found.chunk(2)
    assert torch.equal(back, there.flip(1))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_atrous_routes_share_the_map(height, width, step):
    found = routes("atrous", height, width, step=step)
    assert found.shape == (step**2, -(-height // step) * -(-width // step))
    assert sorted(found[found >= 0].tolist()) == list(range(height * width))


def test_atrous_routes_keep_their_rest_and_go_down_the_columns_where_odd():
    assert routes("atrous", 4, 6)[:, :3].tolist() == [[0, 2, 4], [6, 18, 8], [1, 3, 5], [7, 19, 9]]
    assert routes("atrous", 3, 3).tolist() == [[0, 2, 6, 8], [3, -1, 5, -1], [1, -1, 7, -1], [4, -1, -1, -1]]


def test_the_plain_orders_by_hand():
    # 0 1 2
    # 3 4 5
    assert routes("raster", 2, 3).tolist() == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]
    assert routes("cross", 2, 3)[:2].tolist() == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]]
    assert routes("snake", 2, 3)[:2].tolist() == [[0, 1, 2, 5, 4, 3], [0, 3, 4, 1, 2, 5]]
    assert routes("diagonal", 2, 3)[:2].tolist() == [[0, 1, 3, 2, 4, 5], [2, 1, 5, 0, 4, 3]]
    assert routes("window", 2, 3, window=2)[0].tolist() == [0, 1, 3, 4, 2, 5]
    assert routes("spiral", 3, 4)[0].tolist() == [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]
    assert routes("hilbert", 2, 2)[0].tolist() in ([0, 1, 3, 2], [0, 2, 3, 1])


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("order", ["snake", "spiral"])
def test_snakes_and_spirals_step_to_neighbours(order, height, width):
    assert all((steps(route, width) == 1).all() for route in routes(order, height, width))


@pytest.mark.parametrize("side", [2, 4, 8, 16])
def test_hilbert_steps_to_neighbours_and_finishes_quarters(side):
    route = routes("hilbert", side, side)[0]
    assert (steps(route, side) == 1).all()
    for quarter in route.chunk(4):
        i, j = quarter // side, quarter % side
        assert i.max() - i.min() == j.max() - j.min() == side // 2 - 1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_windows_are_finished_one_after_the_other(height, width):
    route = routes("window", height, width, window=3)[0]
    windows = (route // width // 3 * width + route % width // 3).tolist()
    assert len(list(itertools.groupby(windows))) == len(set(windows))


def test_an_empty_map_has_empty_routes():
    assert all(routes(order, 0, 5).shape[1] == 0 for order in ORDERS)


def test_routes_are_kept_and_serve_after_inference_mode():
    with torch.inference_mode():
        found = routes("cross", 3, 11)
    assert not found.is_inference()
    assert routes("cross", 3, 11) is found


def test_a_traced_graph_gets_its_own_tensors():
    with FakeTensorMode():
        fake = routes("cross", 5, 11)
    assert type(fake) is not torch.Tensor
    assert type(routes("cross", 5, 11)) is torch.Tensor


class Listed(nn.Module):
    """The routes of the map that comes."""

    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return routes(self.order, x.shape[2], x.shape[3], window=3, device=x.device)


@pytest.mark.parametrize("order", ["raster", "cross", "snake", "atrous"])
def test_sizes_stay_free_in_an_exported_graph(order):
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    graph = torch.export.export(Listed(order), (torch.rand(1, 1, 6, 7),), dynamic_shapes=(free,)).module()
    assert torch.equal(graph(torch.rand(1, 1, 9, 5)), routes(order, 9, 5, window=3))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("order", ORDERS)
def test_there_and_back(order, height, width):
    found = routes(order, height, width, window=3)
    x = torch.rand(2, 3, height * width)
    there = gather(x, found)
    assert there.shape == (2, found.shape[0], 3, found.shape[1])
    times = 1 if order == "atrous" else found.shape[0]
    torch.testing.assert_close(scatter(there, found, height * width), times * x)


def test_gather_takes_a_map_for_each_route_and_leaves_out_what_is_outside():
    found = torch.tensor([[2, -1, 0], [1, 0, -1]])
    x = torch.arange(6.0).view(1, 2, 1, 3)
    assert gather(x, found)[0, :, 0].tolist() == [[2, 0, 0], [4, 3, 0]]
    assert gather(x[:, 0], found)[0, :, 0].tolist() == [[2, 0, 0], [1, 0, 0]]
    y = torch.tensor([[10.0, 7.0, 20.0], [30.0, 40.0, 7.0]]).view(1, 2, 1, 3)
    assert scatter(y, found, 4)[0, 0].tolist() == [60, 30, 10, 0]


def test_gather_and_scatter_are_each_others_gradient():
    found = routes("atrous", 3, 5)
    x, y = torch.rand(2, 3, 15, requires_grad=True), torch.rand(2, 4, 3, 6, requires_grad=True)
    (to_x,) = torch.autograd.grad(gather(x, found), x, y)
    (to_y,) = torch.autograd.grad(scatter(y, found, 15), y, x)
    assert torch.equal(to_x, scatter(y, found, 15))
    assert torch.equal(to_y, gather(x, found))


def test_wrong_words_and_sizes_raise():
    with pytest.raises(ValueError, match=r"order must be one of raster, cross, .*, atrous, got 'zigzag'"):
        routes("zigzag", 2, 2)
    with pytest.raises(ValueError, match="window must be at least 1, got 0; 1 is every position"):
        routes("window", 2, 2, window=0)
    with pytest.raises(ValueError, match="step must be at least 1, got -1"):
        routes("atrous", 2, 2, step=-1)
