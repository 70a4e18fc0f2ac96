"""What a network that says nothing of itself does to pictures, found by running it.

Everything is measured on a function from (B, 3, H, W) to (B, 3, H', W') in NumPy, whatever computes it:

- **sizes**: H' = s·H − 2·s·t for every H that is a multiple of m and at least a minimum; s is the scale and t what an
  unpadded network trims;
- **colours**: a smooth picture is given in each range (0 to 1, 0 to 255, −1 to 1) and order (RGB, BGR); the result,
  reduced by s, is closest to the picture where range and order are right;
- **period**: a shifted picture gives the shifted result only for shifts by the window of a windowed network; tiles
  start at multiples of it;
- **field**: how much an output pixel changes with all that lies more than d pixels away. The picture is cut off there
  as a tile is, or has another content there, on each of the four sides. The margin is the d from which the change stays
  below a limit; a network without such a d depends on the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from foveal.export.foreign.errors import ForeignModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.runtime.card import Tiling

__all__ = [
    "EXACT",
    "FINE",
    "ORDERS",
    "RANGES",
    "Colours",
    "Field",
    "Run",
    "Sizes",
    "find_colours",
    "find_field",
    "find_period",
    "find_sizes",
    "takes_batches",
]

# (B, 3, H, W) float32 to (B, 3, H', W').
Run = Callable[["NDArray"], "NDArray"]

RANGES = {"0-1": (0.0, 1.0), "0-255": (0.0, 255.0), "-1-1": (-1.0, 1.0)}
ORDERS = ("rgb", "bgr")
FINE = 1e-4  # a fortieth of a level of 8 bits; an engine's own rounding stays below
EXACT = 1e-3  # a quarter of a level of 8 bits
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 3, 6, 12, 24, 48, 5, 10, 20, 40, 7, 14, 28, 56)
_GROWING = ((0, 1), (1, 0), (2, 2))  # steps by which the sides are larger than the first
_BASES = (32, 64, 128, 256)
_SHIFTS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
_NEAR, _FAR = 32, 128  # half lengths of the pictures that the field is measured on
_WIDEST = 64  # widest overlap of a network that depends on the whole picture
_SLOW = 50  # times the limit: less than that, just within the margin, is no sharp end of a field
_HEIGHT = 32  # of those pictures
# dB by which another range, and blue first on both sides, have to be closer than RGB in [0, 1]. In a wider range the
# same error counts less (6 dB less in one twice as wide), which is no sign that the range is right.
_CLOSER = {"0-1": 0.0, "-1-1": 8.0, "0-255": 14.0, "bgr": 6.0}
_CLOSE = 40.0  # dB from which closer means nothing
_SAME = 0.5  # dB between two of which the first is taken
_LIKE = 20.0  # dB from which a result resembles its picture


@dataclass(frozen=True)
class Sizes:
    """Sizes that a network takes and gives.

    Args:
        scale: s.
        trims: t, input pixels that the network takes off each side; 0 if it pads.
        multiple: sides of the input must be a multiple of this.
        minimum: smallest side found to work.
    """

    scale: int
    trims: int
    multiple: int
    minimum: int

    def up(self, side: int) -> int:
        """A side that the network takes.

        Args:
            side: least side in input pixels.

        Returns:
            The next one that is a multiple and not below the minimum.
        """
        return -(-max(side, self.minimum) // self.multiple) * self.multiple


@dataclass(frozen=True)
class Colours:
    """Range and order of colours that a network takes and gives.

    Args:
        range_in: word of `RANGES` for the input.
        range_out: word of `RANGES` for the output.
        order_in: "rgb" or "bgr".
        order_out: "rgb" or "bgr".
        psnr: of the reduced result against the picture, in dB; None where nothing was measured.
    """

    range_in: str = "0-1"
    range_out: str = "0-1"
    order_in: str = "rgb"
    order_out: str = "rgb"
    psnr: float | None = None

    @property
    def usual(self) -> bool:
        """Whether the network takes and gives RGB in [0, 1]."""
        return (self.range_in, self.range_out, self.order_in, self.order_out) == ("0-1", "0-1", "rgb", "rgb")

    def encode(self, x: NDArray) -> NDArray:
        """RGB in [0, 1] to what the network takes.

        Args:
            x: pictures, (B, 3, H, W).

        Returns:
            The input.
        """
        low, high = RANGES[self.range_in]
        x = x if self.order_in == "rgb" else x[:, ::-1]
        return np.ascontiguousarray(low + (high - low) * x, np.float32)

    def decode(self, y: NDArray) -> NDArray:
        """What the network gives to RGB in [0, 1].

        Args:
            y: output, (B, 3, H, W).

        Returns:
            Pictures.
        """
        low, high = RANGES[self.range_out]
        y = y if self.order_out == "rgb" else y[:, ::-1]
        return (y - low) / (high - low)

    def around(self, run: Run) -> Run:
        """The network as foveal runs it.

        Args:
            run: network in its own colours.

        Returns:
            Network of RGB in [0, 1].
        """
        return run if self.usual else lambda x: self.decode(run(self.encode(x)))


@dataclass(frozen=True)
class Field:
    """How far a network looks.

    Args:
        tiling: "exact" if what lies beyond the margin changes no pixel by more than `EXACT`, else "overlap".
        margin: margin of a tile in input pixels; with "overlap" half the width of the overlap.
        beyond: largest change of an output value by what lies beyond the margin, for values in [0, 1].
    """

    tiling: Tiling
    margin: int
    beyond: float


def _noise(height: int, width: int, seed: int = 0) -> NDArray:
    """A picture of coloured texture on smooth ground, (1, 3, H, W) in [0, 1]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(rows / rng.uniform(2, 20) + columns / rng.uniform(2, 20) + rng.uniform(0, 6)) for _ in range(3)]
    x = 0.5 + 0.25 * np.stack(waves) + rng.uniform(-0.2, 0.2, (3, height, width))
    return np.clip(x, 0, 1).astype(np.float32)[None]


def _blocks(height: int, width: int, seed: int = 0) -> NDArray:
    """A picture of flat coloured rectangles with hard edges, (1, 3, H, W) in [0, 1]."""
    rng = np.random.default_rng(seed)
    x = np.full((1, 3, height, width), 0.5, np.float32)
    for _ in range(height * width // 40):
        top, left = rng.integers(height), rng.integers(width)
        x[..., top : top + rng.integers(1, 12), left : left + rng.integers(1, 12)] = rng.random((3, 1, 1))
    return x


def _smooth(height: int, width: int) -> NDArray:
    """A picture of soft coloured blobs, (1, 3, H, W) in [0.1, 0.9]."""
    corners = np.random.default_rng(1).uniform(0.1, 0.9, (3, 5, 5))

    def weights(length: int) -> NDArray:
        place = np.linspace(0, 4, length)[:, None] - np.arange(5)
        return np.clip(1 - np.abs(place), 0, 1)

    return np.einsum("cij,hi,wj->chw", corners, weights(height), weights(width)).astype(np.float32)[None]


def find_sizes(run: Run, name: str, *, multiple: int = 1, minimum: int = 1) -> Sizes:
    """Sizes that a network takes, and what it makes of them.

    Args:
        run: network.
        name: name of the model, for messages.
        multiple: multiple that it is known to want.
        minimum: minimum that it is known to want.

    Returns:
        The sizes.

    Raises:
        ForeignModelError: no size works, the result is no RGB picture, or the scale is no whole number.
    """
    first = ""
    for base, step in product(_BASES, _MULTIPLES):
        step *= multiple  # noqa: PLW2901 - in units of what is known
        a = -(-max(base, minimum) // step) * step
        if a > max(2 * base, minimum + step):
            continue
        try:
            wide, tall, large = (np.array(run(_noise(a + i * step, a + j * step))) for i, j in _GROWING)
        except ForeignModelError:
            raise
        except Exception as error:  # whatever a network raises for a size it does not take
            first = first or str(error).strip().partition("\n")[0][:200]
            continue
        _check_output(wide, name)
        grown = [(large.shape[2] - tall.shape[2]) / step, (large.shape[3] - wide.shape[3]) / step]
        scales = [(tall.shape[2] - wide.shape[2]) / step, (wide.shape[3] - tall.shape[3]) / step]
        if grown != scales:  # padded inside to a larger multiple
            continue
        if scales[0] != scales[1] or scales[0] != int(scales[0]) or scales[0] < 1:
            made = scales[0] if scales[0] == scales[1] else f"{scales[0]:g} by {scales[1]:g}"
            raise ForeignModelError(
                f"{name}: foveal runs networks that enlarge both sides by the same whole number, this one enlarges by "
                f"{made if isinstance(made, str) else f'{made:g}'}; take a model of another scale"
            )
        scale = int(scales[0])
        lost = scale * a - wide.shape[2]
        if lost < 0 or lost % (2 * scale) or scale * a - tall.shape[3] != lost:
            raise ForeignModelError(
                f"{name}: makes {wide.shape[2]}×{wide.shape[3]} of {a}×{a + step}, which is not {scale} times as large "
                "nor trimmed evenly; foveal cannot place its tiles"
            )
        return Sizes(scale, lost // (2 * scale), step, _least(run, step, scale, lost, a, minimum))
    raise ForeignModelError(
        f"{name}: took no picture of {_BASES[0]} to {_BASES[-1]} pixels a side"
        + (f" ({first})" if first else "")
        + "; export it with free height and width"
    )


def _check_output(y: NDArray, name: str) -> None:
    if y.ndim != 4:
        shape = "×".join(map(str, y.shape))
        raise ForeignModelError(
            f"{name}: gives {shape}, not a picture; only models from picture to picture are imported"
        )
    if y.shape[1] != 3:
        raise ForeignModelError(
            f"{name}: gives {y.shape[1]} channels, foveal runs models of RGB pictures (3); take one trained on colour"
        )
    if not np.isfinite(y).all():
        raise ForeignModelError(
            f"{name}: gives values that are no numbers; the file is damaged or not a model of pictures"
        )


def _least(run: Run, multiple: int, scale: int, lost: int, works: int, said: int) -> int:
    """The smallest side, doubling from the multiple, that gives a whole and finite result."""
    side = -(-max(multiple, said, lost // scale + 1) // multiple) * multiple
    while side < works:
        try:
            y = run(_noise(side, side))
        except Exception:  # noqa: S110 - too small
            pass
        else:
            if y.shape[2:] == (scale * side - lost,) * 2 and np.isfinite(y).all():
                return side
        side *= 2
    return works


def takes_batches(run: Run, sizes: Sizes) -> bool:
    """Whether several pictures at once give what each gives alone.

    Args:
        run: network.
        sizes: its sizes.

    Returns:
        Whether they do.
    """
    side = sizes.up(24 + 2 * sizes.trims)
    pair = np.concatenate([_noise(side, side), _noise(side, side, seed=5)])
    try:
        together = run(pair)
    except Exception:
        return False
    alone = np.concatenate([run(pair[:1]).copy(), run(pair[1:]).copy()])
    return together.shape == alone.shape and bool(np.abs(together - alone).max() <= 1e-3 * np.abs(alone).max())


def find_colours(run: Run, sizes: Sizes, name: str) -> Colours:
    """Range and order of colours.

    RGB in [0, 1] is taken unless another is clearly closer: a network without biases gives the same in every range, and
    most treat the three colours alike, so that a little closer says nothing.

    Args:
        run: network in its own colours.
        sizes: its sizes.
        name: name of the model, for messages.

    Returns:
        The closest.

    Raises:
        ForeignModelError: what comes out resembles the picture in none.
    """
    side, t, s = sizes.up(40 + 2 * sizes.trims), sizes.trims, sizes.scale
    x = _smooth(side, side)
    edge = t + 4  # what a network makes of the edges says nothing
    kept = x[..., edge : side - edge, edge : side - edge]
    found = []
    for range_in, order_in in product(RANGES, ORDERS):
        try:
            y = run(Colours(range_in=range_in, order_in=order_in).encode(x))
        except Exception:  # noqa: S112 - one that raises for a range is not of that range
            continue
        inner = y[..., 4 * s : y.shape[2] - 4 * s, 4 * s : y.shape[3] - 4 * s]
        small = inner.reshape(1, 3, kept.shape[2], s, kept.shape[3], s).mean((3, 5), dtype=np.float64)
        for range_out, order_out in product(RANGES, ORDERS):
            colours = Colours(range_in, range_out, order_in, order_out)
            error = float(((np.clip(colours.decode(small), -1, 2) - kept) ** 2).mean())
            if np.isfinite(error):
                found.append((min(-10 * float(np.log10(error + 1e-12)), _CLOSE), colours))
    best = max((psnr for psnr, _ in found), default=-np.inf)
    if best < _LIKE:
        raise ForeignModelError(
            f"{name}: what it makes of a picture resembles it in no range or order of colours (closest: {best:.1f} "
            "dB); it is no model that enlarges or restores pictures, or say --range and --order if it changes colours"
        )
    scores = [psnr - _handicap(colours) for psnr, colours in found]
    psnr, colours = next(one for one, score in zip(found, scores, strict=True) if score >= max(scores) - _SAME)
    return Colours(colours.range_in, colours.range_out, colours.order_in, colours.order_out, psnr)


def _handicap(colours: Colours) -> float:
    both = colours.order_in == colours.order_out == "bgr"
    return max(_CLOSER[colours.range_in], _CLOSER[colours.range_out]) + (_CLOSER["bgr"] if both else 0)


def find_period(run: Run, sizes: Sizes) -> int:
    """Shift of a picture from which on its result is the shifted one.

    Args:
        run: network of RGB in [0, 1].
        sizes: its sizes.

    Returns:
        A multiple of `sizes.multiple`; that itself where no shift is better.
    """
    m, s = sizes.multiple, sizes.scale
    side = sizes.up(64 + 2 * sizes.trims)
    height = sizes.up(32 + 2 * sizes.trims)
    wide = _noise(height, side + 64 * m)
    still = run(np.ascontiguousarray(wide[..., :side])).copy()

    def apart(shift: int) -> float:
        moved = run(np.ascontiguousarray(wide[..., shift : shift + side]))
        kept = still[..., s * shift :]
        same = moved[..., : kept.shape[3]]
        edge = kept.shape[3] // 4
        inner = slice(edge, kept.shape[3] - edge)
        return float(np.abs(kept[..., inner] - same[..., inner]).max())

    first = apart(m)
    if first <= FINE:
        return m
    for factor in _SHIFTS:
        if factor * m <= side // 2 and apart(factor * m) <= max(FINE, first / 20):
            return factor * m
    return m


def find_field(run: Run, sizes: Sizes) -> Field:
    """How far a network looks.

    Args:
        run: network of RGB in [0, 1].
        sizes: its sizes, with the period as multiple.

    Returns:
        The field. A network that trims has the field that it trims, if that is all it sees.
    """
    margin, beyond = _from_which(_changes(run, sizes, _NEAR), FINE, reserve=True)
    if margin <= _NEAR * 3 // 4:
        return Field("exact", margin, beyond)
    # The field does not end well within: look farther, and be content with what no picture of 8 bits shows.
    changes = _changes(run, sizes, _FAR)
    for limit, widest in ((FINE, _WIDEST), (EXACT, _FAR * 3 // 4)):
        margin, beyond = _from_which(changes, limit, reserve=limit == FINE)
        if margin <= widest:
            return Field("exact", margin, beyond)
    margin = next((d for d in range(8, _WIDEST) if changes[d:].max() <= 4 * EXACT), _WIDEST)
    return Field("overlap", margin, float(changes[margin:].max()))


def _from_which(changes: NDArray, limit: float, *, reserve: bool = False) -> tuple[int, float]:
    """The distance from which on changes stay within a limit, and the largest of them.

    Where they sink slowly below it, other pictures may show more; a reserve of an eighth is for those.
    """
    above = np.nonzero(changes > limit)[0]
    margin = int(above[-1]) + 1 if len(above) else 0
    if reserve and margin and changes[margin - 1] < _SLOW * limit:
        margin = min(margin + margin // 8 + 1, len(changes))
    return margin, float(changes[margin:].max(initial=0.0))


def _changes(run: Run, sizes: Sizes, reach: int) -> NDArray:
    """Largest change of an output pixel by all that lies more than d pixels from it, d = 0 … reach - 1."""
    t = sizes.trims
    half, height = sizes.up(reach + 2 * t), sizes.up(_HEIGHT + 2 * t)
    texture, blocks = _noise(height, 2 * half), _blocks(height, 2 * half)
    others = (1 - 0.8 * texture[..., ::-1] ** 2).astype(np.float32), (1 - blocks[..., ::-1] ** 2)
    changes = np.zeros(reach)
    contents = ((texture, others[0]), (blocks, others[1]))
    for axis, flip, (picture, other) in product((2, 3), (False, True), contents):

        def view(x: NDArray, axis: int = axis, flip: bool = flip) -> NDArray:
            x = x[..., ::-1] if flip else x
            return np.ascontiguousarray(x if axis == 3 else x.swapaxes(2, 3))

        def seen(x: NDArray, axis: int = axis, flip: bool = flip) -> NDArray:
            y = run(view(x))
            y = y if axis == 3 else y.swapaxes(2, 3)
            return (y[..., ::-1] if flip else y).copy()

        # What stands left of the middle is looked at; what stands right of it is replaced, or cut off.
        whole = seen(picture)
        replaced = seen(np.concatenate([picture[..., :half], other[..., half:]], axis=3))
        cut = seen(picture[..., :half])
        for changed, missing in ((replaced, 0), (cut, t)):
            left = slice(0, sizes.scale * (half - t - missing))
            apart = np.abs(changed[..., left] - whole[..., left]).max((0, 1, 2))
            # By input column, from the middle outwards; the first is `missing` pixels from the cut.
            apart = apart.reshape(-1, sizes.scale).max(1)[::-1][: reach - missing]
            into = changes[missing : missing + len(apart)]
            np.maximum(into, apart, out=into)
    return changes
