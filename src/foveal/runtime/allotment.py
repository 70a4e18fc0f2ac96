"""Which places of a picture the larger of two networks makes, when it may do only so much work.

*Source*: Y. Shoham, A. Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE TASSP 36(9), 1988
(a price in place of the limit), and P. Chou, T. Lookabaugh, R. Gray, "Optimal pruning with applications to
tree-structured source coding and modeling", IEEE T-IT 35(2), 1989 (the best tree for a price).

A picture is cut into cells of about 16×16 pixels. Cells make rectangles of 1, 2, 4, … cells a side, none much longer
than wide, up to a block. For a price λ of work, the best that can be done with a rectangle R costs

    J(R) = min( λ·large(R) - gain(R),  0,  J(upper) + J(lower),  J(left) + J(right) ),

where gain(R) is the squared error that the larger network is expected to save, and large(R) what it computes for R,
margins included: a large rectangle pays for its margins once. 0 leaves R to the smaller network, which makes every
block that is not one large rectangle. λ is the least price at which all blocks together stay within the limit. What
is left then goes to the rectangles that save most of those that it pays for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2
from typing import TYPE_CHECKING

import numpy as np

from foveal.runtime.tiles import round_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from foveal.runtime.card import Card

__all__ = ["CELL", "Allotment", "Mesh", "Part", "allot", "mesh_for", "work"]

CELL = 16  # side of a cell, in pixels of the source, roughly
MOST = 100_000  # cells of a picture, roughly
# What is done around the networks, in multiply-adds that take as long: to every pixel of a tile (cutting it out,
# holding it within its range, depth to space), and to every tile. So counted, native int8 on one Zen 4 core takes as
# long for as much, within an eighth, for tiles of balanced_x4 from 16 to 256 pixels a side and of fast_x4 from 64.
PIXEL, TILE = 14e3, 30e6
_PRICES, _PASSES, _DECADES = 8, 3, 7  # prices tried at once, how often the search narrows, and how wide it begins
_LEFTOVERS = 8  # rectangles that are added in the end
_LARGE, _ROWS, _COLUMNS = 1, 2, 3  # what is done with a rectangle; 0 leaves it to the smaller network

_Shape = tuple[int, int]  # of a rectangle, in powers of two of cells
_Place = tuple[_Shape, int, int]  # of a rectangle: its shape, and its row and column among those of that shape
Work = Callable[["NDArray | float", "NDArray | float"], "NDArray[np.float64]"]  # of a tile, by its height and width


@dataclass(frozen=True)
class Mesh:
    """Cells and blocks of a picture.

    Args:
        size: height and width of the picture, in pixels.
        cell: height and width of a cell.
        block: height and width of a block in cells, as powers of two.
    """

    size: tuple[int, int]
    cell: tuple[int, int]
    block: _Shape


@dataclass(frozen=True)
class Part:
    """A rectangle that one network makes.

    Args:
        top: its first row in the picture.
        left: its first column.
        height: its rows.
        width: its columns.
        large: whether the larger network makes it.
    """

    top: int
    left: int
    height: int
    width: int
    large: bool


@dataclass(frozen=True, eq=False)
class Allotment:
    """A picture's rectangles.

    Args:
        bands: for each band of rows its blocks, for each block its rectangles in the order in which they are made; the
            first is the whole block, the others cover parts of it.
        where: cells that the larger network makes, (rows, columns).
        share: share of the picture's pixels that it makes.
        work: multiply-adds in all.
    """

    bands: tuple[tuple[tuple[Part, ...], ...], ...]
    where: NDArray[np.bool_]
    share: float
    work: float


def work(card: Card, height: NDArray | float, width: NDArray | float, *, times: int = 1) -> NDArray[np.float64]:
    """Multiply-adds of a network on a tile, and what is done around it.

    Layers of a network that trims see less and less of the margin. Five eighths are the mean for the shipped networks,
    whose last layer is the thinnest and whose kernels make four rows and columns at a time.

    Args:
        card: its card.
        height: rows of the tile's core.
        width: columns of the core.
        times: how often the network is asked.

    Returns:
        Multiply-adds, and what takes as long as so many; 0 for a core without pixels.
    """
    height, width = np.asarray(height, np.float64), np.asarray(width, np.float64)
    around = (1.25 if card.trims else 2.0) * card.margin
    made = times * card.parameters * (height + around) * (width + around) + PIXEL * height * width + TILE
    return np.where((height > 0) & (width > 0), made, 0.0)


def mesh_for(size: tuple[int, int], tile: tuple[int, int], multiple: int = 1) -> Mesh:
    """Cells and blocks of a picture.

    Args:
        size: height and width of the picture, in pixels.
        tile: height and width of the tiles in which a network would run it all; so large are the blocks.
        multiple: rectangles start at multiples of this.

    Returns:
        The mesh.
    """
    least = CELL
    while size[0] * size[1] > MOST * least**2:  # coarser, so that memory does not grow with the picture
        least *= 2
    powers = [max(0, round(log2(side / least))) for side in tile]
    cells = [round_up(ceil(side / 2**power), multiple) for side, power in zip(tile, powers, strict=True)]
    return Mesh(size, (cells[0], cells[1]), (powers[0], powers[1]))


def _halves(array: NDArray, axis: int) -> NDArray:
    """Sums of neighbours along one of the last two axes, -2 or -1."""
    if axis == -1:
        return array[..., ::2] + array[..., 1::2]
    return array[..., ::2, :] + array[..., 1::2, :]


class _Tree:
    """Rectangles of a picture, and the best choice of them at a price.

    Args:
        gain: squared error that the larger network saves in each cell, (rows, columns).
        mesh: cells and blocks.
        works: work of the larger and of the smaller network.
    """

    def __init__(self, gain: NDArray, mesh: Mesh, works: tuple[Work, Work]) -> None:
        rows, columns = (-(-count >> power) << power for count, power in zip(gain.shape, mesh.block, strict=True))
        cells = np.zeros((rows, columns))
        cells[: gain.shape[0], : gain.shape[1]] = gain
        self.mesh, self.block, self.cells, self.shapes = mesh, mesh.block, cells, _shapes(*mesh.block)
        self.gain: dict[_Shape, NDArray] = {}
        self.large: dict[_Shape, NDArray] = {}
        for shape in self.shapes:
            self.gain[shape] = self.over(cells, shape)
            self.large[shape] = works[0](*self._sides(shape))
        self.small = works[1](*self._sides(mesh.block))

    def _sides(self, shape: _Shape) -> tuple[NDArray, NDArray]:
        """Heights, (rows, 1), and widths of the rectangles of a shape, in pixels of the picture."""
        rows, columns = (
            np.clip(length - (np.arange(count >> power) << power) * cell, 0, cell << power)
            for length, count, power, cell in zip(self.mesh.size, self.cells.shape, shape, self.mesh.cell, strict=True)
        )
        return rows[:, None], columns

    def over(self, cells: NDArray, shape: _Shape) -> NDArray:
        """Sum of the cells of each rectangle of a shape.

        Args:
            cells: a value for each cell.
            shape: the shape.

        Returns:
            (rows, columns) of rectangles.
        """
        rows, columns = cells.shape
        return cells.reshape(rows >> shape[0], 1 << shape[0], columns >> shape[1], 1 << shape[1]).sum((1, 3))

    def best(self, prices: NDArray) -> tuple[NDArray, dict[_Shape, NDArray]]:
        """The best choice.

        Args:
            prices: (prices,).

        Returns:
            Work of all blocks, (prices,), and what is done with each rectangle of each shape, (prices, rows, columns).
        """
        price = prices[:, None, None]
        cost: dict[_Shape, NDArray] = {}
        used: dict[_Shape, NDArray] = {}
        cuts: dict[_Shape, NDArray] = {}
        for shape in self.shapes:
            large = self.large[shape]
            bought = price * large - self.gain[shape]
            best, done = np.zeros_like(bought), np.zeros_like(bought)
            cut = np.zeros(bought.shape, np.uint8)

            def take(value: NDArray, worked: NDArray, how: int) -> None:
                better = value < best  # noqa: B023 - called here only
                np.copyto(cut, how, where=better)  # type: ignore[call-overload]  # noqa: B023
                np.copyto(done, worked, where=better)  # noqa: B023
                np.minimum(best, value, out=best)  # noqa: B023

            for smaller, axis, how in (
                ((shape[0] - 1, shape[1]), -2, _ROWS),
                ((shape[0], shape[1] - 1), -1, _COLUMNS),
            ):
                if smaller in cost:
                    take(_halves(cost[smaller], axis), _halves(used[smaller], axis), how)
            if shape == self.block:  # what is not one large rectangle, the smaller network makes first
                best += price * self.small
                done += self.small
            take(bought, large, _LARGE)
            cost[shape], used[shape], cuts[shape] = best, done, cut
        return used[self.block].sum((1, 2)), cuts

    def parts(self, cuts: dict[_Shape, NDArray], shape: _Shape, row: int, column: int) -> Iterator[_Place]:
        """Large rectangles inside a rectangle.

        Args:
            cuts: what is done with each, of one price.
            shape: shape of the rectangle.
            row: its row.
            column: its column.

        Yields:
            Shape, row and column of each.
        """
        i, j = shape
        cut = int(cuts[shape][0, row, column])
        if cut == _LARGE:
            yield shape, row, column
        elif cut == _ROWS:
            yield from self.parts(cuts, (i - 1, j), 2 * row, column)
            yield from self.parts(cuts, (i - 1, j), 2 * row + 1, column)
        elif cut == _COLUMNS:
            yield from self.parts(cuts, (i, j - 1), row, 2 * column)
            yield from self.parts(cuts, (i, j - 1), row, 2 * column + 1)

    def part(self, shape: _Shape, row: int, column: int, *, large: bool) -> Part:
        """A rectangle in pixels.

        Args:
            shape: its shape.
            row: its row.
            column: its column.
            large: whether the larger network makes it.

        Returns:
            The part of it that lies in the picture.
        """
        (rows, columns), cell = self.mesh.size, self.mesh.cell
        top, left = (row << shape[0]) * cell[0], (column << shape[1]) * cell[1]
        height, width = min(cell[0] << shape[0], rows - top), min(cell[1] << shape[1], columns - left)
        return Part(top, left, height, width, large)


def _shapes(rows: int, columns: int) -> list[_Shape]:
    """Shapes of rectangles that a block is cut into, the smallest first."""
    found, new = set(), {(rows, columns)}
    while new:
        found |= new
        halves = {half for i, j in new for half in ((i - 1, j, i > j), (i, j - 1, j > i))}
        new = {(i, j) for i, j, longer in halves if min(i, j) >= 0 and (longer or abs(i - j) <= 1)} - found
    return sorted(found, key=sum)


def _leftovers(tree: _Tree, taken: NDArray[np.bool_], left: float) -> Iterator[_Place]:
    """The rectangles that save most of what can be afforded, one after the other, out of what is free; marks them."""
    for _ in range(_LEFTOVERS):
        best: tuple[float, _Shape, int] | None = None
        for shape in tree.shapes:
            large = tree.large[shape]
            free = (large > 0) & (large <= left) & (tree.over(taken, shape) == 0)
            gain = np.where(free, tree.gain[shape], 0.0)
            index = int(gain.argmax())
            if gain.flat[index] > (best[0] if best else 0.0):
                best = float(gain.flat[index]), shape, index
        if best is None:
            return
        _, (i, j), index = best
        row, column = divmod(index, tree.gain[i, j].shape[1])
        taken[row << i : (row + 1) << i, column << j : (column + 1) << j] = True
        left -= float(tree.large[i, j][row, column])
        yield (i, j), row, column


def allot(gain: NDArray, mesh: Mesh, limit: float, works: tuple[Work, Work]) -> Allotment:
    """Share a picture between two networks.

    Args:
        gain: squared error that the larger network is expected to save in each cell, (rows, columns), at least 0.
        mesh: cells and blocks of the picture.
        limit: multiply-adds that are allowed; where the smaller network alone takes more, it makes everything.
        works: work of the larger and of the smaller network.

    Returns:
        The rectangles.
    """
    tree = _Tree(gain, mesh, works)
    used, cuts = tree.best(np.array([_price(tree, limit)]))
    spent = float(used[0])
    taken = np.zeros(tree.cells.shape, bool)
    found: dict[_Shape, list[_Place]] = {block: [] for block in np.ndindex(tree.small.shape)}  # type: ignore[misc]
    for block, inside in found.items():
        inside.extend(tree.parts(cuts, mesh.block, *block))
        for (i, j), row, column in inside:
            taken[row << i : (row + 1) << i, column << j : (column + 1) << j] = True
    for shape, row, column in _leftovers(tree, taken, limit - spent):
        found[(row << shape[0]) >> mesh.block[0], (column << shape[1]) >> mesh.block[1]].append((shape, row, column))
        spent += float(tree.large[shape][row, column])
    bands = []
    for row in range(tree.small.shape[0]):
        blocks = []
        for column in range(tree.small.shape[1]):
            inside = found[row, column]
            whole = any(shape == mesh.block for shape, _, _ in inside)
            first = () if whole else (tree.part(mesh.block, row, column, large=False),)
            blocks.append((*first, *(tree.part(*one, large=True) for one in inside)))
        bands.append(tuple(blocks))
    pixels = sum(part.height * part.width for band in bands for block in band for part in block if part.large)
    where = taken[: gain.shape[0], : gain.shape[1]]
    return Allotment(tuple(bands), where, pixels / (mesh.size[0] * mesh.size[1]), spent)


def _price(tree: _Tree, limit: float) -> float:
    """The least price that keeps within a limit, or one that nothing is worth."""
    dearest = max(float((tree.gain[shape] / np.maximum(tree.large[shape], 1)).max()) for shape in tree.shapes)
    # A block that is one large rectangle also saves the smaller network's work.
    high = max(2 * dearest, 1e-30)
    low = high * 10.0**-_DECADES
    for _ in range(_PASSES):
        prices = np.geomspace(low, high, _PRICES)
        within = tree.best(prices)[0] <= limit
        first = int(within.argmax()) if within.any() else _PRICES - 1
        low, high = float(prices[max(0, first - 1)]), float(prices[first])
    return high
