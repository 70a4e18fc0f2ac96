from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from foveal.runtime.allotment import PIXEL, TILE, Mesh, _shapes, _Tree, allot, mesh_for, work

LARGE = SimpleNamespace(margin=4, trims=True, parameters=30_000_000)
SMALL = SimpleNamespace(margin=2, trims=True, parameters=2_000_000)
WORKS = (partial(work, LARGE), partial(work, SMALL))
MESH = Mesh((60, 100), (8, 8), (2, 2))  # 8×13 cells, blocks of 4×4


def gains(seed=0, shape=(8, 13)):
    return np.random.default_rng(seed).gamma(0.3, 1e3, shape)


def whole(mesh, which=0):
    """Work of one network on all blocks."""
    sides = [[min(c << p, n - k) for k in range(0, n, c << p)] for n, c, p in zip(*mesh_parts(mesh), strict=True)]
    return sum(float(WORKS[which](h, w)) for h in sides[0] for w in sides[1])


def mesh_parts(mesh):
    return mesh.size, mesh.cell, mesh.block


def test_work_is_counted_with_margins():
    assert work(LARGE, 10, 20) == 30_000_000 * 15 * 25 + PIXEL * 200 + TILE
    assert work(SimpleNamespace(margin=4, trims=False, parameters=7), 10, 20) == 7 * 18 * 28 + PIXEL * 200 + TILE
    assert work(LARGE, 10, 20, times=4) == 4 * 30_000_000 * 15 * 25 + PIXEL * 200 + TILE
    assert work(LARGE, 0, 20) == 0


def test_meshes_divide_the_tiles():
    assert mesh_for((270, 480), (270, 240)) == Mesh((270, 480), (17, 15), (4, 4))
    assert mesh_for((20, 9), (20, 9)) == Mesh((20, 9), (20, 9), (0, 0))
    assert mesh_for((64, 64), (64, 64), 3).cell == (18, 18)
    assert mesh_for((20_000, 20_000), (256, 250)) == Mesh((20_000, 20_000), (64, 63), (2, 2)), (
        "coarser in a large picture"
    )


def test_shapes_stay_compact():
    assert _shapes(0, 0) == [(0, 0)]
    assert (0, 2) not in _shapes(2, 2)
    assert {(0, 0), (1, 0), (2, 1), (2, 2)} <= set(_shapes(2, 2))
    assert {(0, 3), (0, 2), (0, 1), (0, 0)} == set(_shapes(0, 3)), "flat blocks can be cut all the same"


def plain(tree, price, shape, row, column):
    """J(R) and the work of the best choice, by recursion."""
    large, gain = float(tree.large[shape][row, column]), float(tree.gain[shape][row, column])
    i, j = shape
    ways = [(0.0, 0.0)]
    for half, places in (
        ((i - 1, j), [(2 * row, column), (2 * row + 1, column)]),
        ((i, j - 1), [(row, 2 * column), (row, 2 * column + 1)]),
    ):
        if half in tree.large:
            ways.append(tuple(map(sum, zip(*(plain(tree, price, half, *place) for place in places), strict=True))))
    if shape == tree.block:
        small = float(tree.small[row, column])
        ways = [(cost + price * small, done + small) for cost, done in ways]
    return min(*ways, (price * large - gain, large), key=lambda way: way[0])


@pytest.mark.parametrize("price", [1e-11, 1e-10, 1e-9, 1e-8])
def test_the_best_tree_is_that_of_the_plain_recursion(price):
    tree = _Tree(gains(), MESH, WORKS)
    used = tree.best(np.array([price, 2 * price]))[0]
    for at, one in zip((price, 2 * price), used, strict=True):
        want = sum(plain(tree, at, tree.block, *block)[1] for block in np.ndindex(tree.small.shape))
        assert one == pytest.approx(want)


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.8])
@pytest.mark.parametrize("mesh", [MESH, Mesh((60, 100), (9, 7), (3, 0)), Mesh((7, 100), (7, 8), (0, 2))])
def test_every_pixel_is_made_and_no_more_work_is_done(share, mesh):
    shape = tuple(-(-n // c) for n, c in zip(mesh.size, mesh.cell, strict=True))
    found = allot(gains(1, shape), mesh, share * whole(mesh), WORKS)
    assert found.work <= share * whole(mesh)
    assert found.where.shape == shape
    by, top, spent = np.zeros(mesh.size, int), 0, 0.0
    for band in found.bands:
        assert {block[0].top for block in band} == {top}
        top += band[0][0].height
        for first, *others in band:
            spent += float(WORKS[not first.large](first.height, first.width))
            inside = by[first.top : first.top + first.height, first.left : first.left + first.width]
            assert not inside.any()
            inside += 1 + first.large
            for part in others:
                assert part.large
                assert first.top <= part.top < part.top + part.height <= first.top + first.height
                assert first.left <= part.left < part.left + part.width <= first.left + first.width
                by[part.top : part.top + part.height, part.left : part.left + part.width] += 1
                spent += float(WORKS[0](part.height, part.width))
    assert top == mesh.size[0]
    assert by.min() >= 1
    assert by.max() <= 2, "large rectangles do not overlap"
    assert found.work == pytest.approx(spent)
    assert found.share == pytest.approx((by == 2).mean())
    cells = found.where.repeat(mesh.cell[0], 0).repeat(mesh.cell[1], 1)[: mesh.size[0], : mesh.size[1]]
    np.testing.assert_array_equal(cells, by == 2)


def test_all_or_nothing_at_the_ends():
    assert allot(gains(), MESH, whole(MESH), WORKS).share == 1
    nothing = allot(gains(), MESH, 0.0, WORKS)
    assert nothing.share == 0
    assert nothing.work == pytest.approx(whole(MESH, 1))
    assert allot(np.zeros((8, 13)), MESH, 0.5 * whole(MESH), WORKS).share < 1


def test_more_work_saves_more_and_goes_where_most_is_saved():
    gain = gains(2)
    saved = [
        gain[allot(gain, MESH, share * whole(MESH), WORKS).where].sum() for share in (0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    ]
    assert saved == sorted(saved)
    assert saved[2] > 1.2 * 0.4 * gain.sum(), "better than chance"
    gain = np.full((8, 13), 1.0)
    gain[2:4, 4:8] = 1e4
    assert allot(gain, MESH, 0.3 * whole(MESH), WORKS).where[2:4, 4:8].all()


def test_one_block_spends_what_a_price_cannot():
    # All cells alike: every price buys all of the block or nothing, and the rest is spent all the same.
    mesh = Mesh((64, 64), (16, 16), (2, 2))
    found = allot(np.ones((4, 4)), mesh, 0.6 * whole(mesh), WORKS)
    assert found.share < 1
    assert 0.5 * whole(mesh) < found.work <= 0.6 * whole(mesh), (
        "much of it by large rectangles, not by a few small ones"
    )
