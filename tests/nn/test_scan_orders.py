import pytest
import torch

from foveal.nn.scan_orders import MAP_ORDERS, VOLUME_ORDERS, OrderedSS2D, scan_along, scan_routes
from foveal.nn.ss2d import S6, SS2D

SIZES = [(1, 1), (1, 7), (7, 1), (2, 3), (5, 4), (7, 9)]
COUNTS = {"forward": 1, "omnidirectional": 8, "zigzag": 4}
VOLUMES = {"spatial-first": 2, "temporal-first": 2, "tri-oriented": 3, "axes": 6}


@pytest.mark.parametrize("size", SIZES)
def test_every_route_visits_every_position_once(size):
    for order, count in {**COUNTS, **VOLUMES}.items():
        found = scan_routes(order, *(size if order in COUNTS else (3, *size)))
        length = size[0] * size[1] * (1 if order in COUNTS else 3)
        assert found.shape == (count, length)
        assert torch.equal(found.sort(1).values, torch.arange(length).expand(count, -1))
        if count % 2 == 0:
            there, back = found.chunk(2)
            assert torch.equal(back, there.flip(1))


def test_the_orders_by_hand():
    # 0 1 2
    # 3 4 5
    # 6 7 8
    assert scan_routes("zigzag", 3, 3)[0].tolist() == [0, 1, 3, 6, 4, 2, 5, 7, 8]
    assert scan_routes("zigzag", 3, 3)[1].tolist() == [2, 1, 5, 8, 4, 0, 3, 7, 6]
    assert scan_routes("omnidirectional", 2, 2)[:4].tolist() == [[0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 2, 3], [1, 0, 3, 2]]
    assert scan_routes("forward", 1, 3).tolist() == [[0, 1, 2]]
    # two slices of 2×2: 0 1 / 2 3 and 4 5 / 6 7
    assert scan_routes("tri-oriented", 2, 2, 2)[1:].tolist() == [[7, 6, 5, 4, 3, 2, 1, 0], [0, 4, 1, 5, 2, 6, 3, 7]]
    assert scan_routes("axes", 2, 2, 2)[1].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("size", [(3, 5), (6, 4)])
def test_a_zigzag_steps_to_neighbours(size):
    for route in scan_routes("zigzag", *size):
        down, right = (route // size[1]).diff().abs(), (route % size[1]).diff().abs()
        assert torch.maximum(down, right).max() == 1


@pytest.mark.parametrize("order", MAP_ORDERS)
def test_a_block_takes_every_order_by_its_name(order):
    torch.manual_seed(0)
    block, x = OrderedSS2D(4, order, state=2, window=2, step=3), torch.randn(1, 4, 5, 3, requires_grad=True)
    out = block(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0


def test_it_is_ss2d_where_that_has_the_order():
    torch.manual_seed(0)
    ours, theirs, x = OrderedSS2D(4, "cross", state=2), SS2D(4, state=2), torch.randn(2, 4, 5, 3)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("order", VOLUME_ORDERS)
def test_a_volume_is_scanned(order):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 2, 3, 4)
    s6 = S6(3, state=2, num_routes=VOLUMES[order])
    out = scan_along(s6, x, order)
    assert out.shape == x.shape
    x[0, :, 1, 2, 3] += 1
    moved = (scan_along(s6, x, order) - out).abs().amax((0, 1))
    assert (moved > 0).sum() == (1 if order == "forward" else 24)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("circle", 2, 2), "order must be one of raster, cross, .*, got 'circle'"),
        (("cross", 2, 2, 2), "cross is an order of height and width, got 3 sizes"),
        (("axes", 2, 2), "axes is an order of depth, height and width, got 2 sizes"),
        (("window", 2, 2), "window must be at least 1, got 0"),
    ],
)
def test_what_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        scan_routes(*arguments, **({"window": 0} if arguments[0] == "window" else {}))


def test_scans_and_routes_are_as_many():
    with pytest.raises(ValueError, match="omnidirectional has 8 routes, got 4 scans; give S6 num_routes=8"):
        scan_along(S6(3), torch.zeros(1, 3, 2, 2), "omnidirectional")
