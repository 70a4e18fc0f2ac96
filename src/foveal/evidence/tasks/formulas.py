"""Handwritten formulas in minutes: 3 to 7 symbols in 32×96 grey pixels, and their layout trees.

Digits are MNIST's, test digits only in test pictures; + − = ( ) x y, bars of fractions and roots are strokes with
jitter. In the pictures, fractions, roots, super- and subscripts hold rows of single symbols. A minus and a bar are the
same stroke, so the layout says which it is. Expression accuracy is the share of formulas of which every symbol and
every relation is right.

Data: see `foveal.evidence.tasks.mnist`.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw
from torch import Tensor

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import mnist
from foveal.vlm.layout import RELATIONS, Layout

__all__ = ["NEEDS", "SYMBOLS", "formula", "picture", "pictures"]

NEEDS = mnist.NEEDS
SYMBOLS = (*"0123456789xy+-=()", "frac", "sqrt")
SHORTEST, LONGEST, NESTED = 3, 7, 1
HEIGHT, WIDTH, CELL, FINE = 32, 96, 4, 3  # pixels, and how many times finer pens draw
COUNT = {"train": 8000, "test": 1000}
INSIDE, ABOVE, BELOW, SUB, SUP, RIGHT = (
    RELATIONS.index(name) for name in ("inside", "above", "below", "sub", "sup", "right")
)
# strokes of a symbol in a unit square, y downwards
STROKES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "+": (((0, 0.5), (1, 0.5)), ((0.5, 0), (0.5, 1))),
    "-": (((0, 0.5), (1, 0.5)),),
    "frac": (((0, 0.5), (1, 0.5)),),
    "=": (((0, 0.2), (1, 0.2)), ((0, 0.8), (1, 0.8))),
    "(": (((0.9, 0), (0.3, 0.25), (0.2, 0.5), (0.3, 0.75), (0.9, 1)),),
    ")": (((0.1, 0), (0.7, 0.25), (0.8, 0.5), (0.7, 0.75), (0.1, 1)),),
    "x": (((0, 0), (1, 1)), ((1, 0), (0, 1))),
    "y": (((0, 0), (0.5, 0.5)), ((1, 0), (0.2, 1))),
}
# width, height and middle of a symbol whose line has a height of 1
SIZES = {"+": (0.6, 0.6, 0), "-": (0.6, 0.3, 0), "=": (0.6, 0.35, 0), "x": (0.6, 0.6, 0.15), "y": (0.6, 0.85, 0.25)}
SIZES |= {"(": (0.35, 1.25, 0), ")": (0.35, 1.25, 0)}
Glyph = tuple[str, float, float, float, float]  # symbol, left, top, width and height


def _chain(parts: list[tuple[str, dict[int, Layout]]]) -> Layout:
    (name, branches), *rest = parts
    own = branches | {RIGHT: _chain(rest)} if rest else branches
    return Layout(SYMBOLS.index(name), tuple(sorted(own.items(), key=lambda pair: pair[0])))


def _row(draw: np.random.Generator, count: int, nested: int) -> list[tuple[str, dict[int, Layout]]]:
    """Symbols of a row and what hangs on each; `count` in all."""
    first = int(draw.integers(1, count + 1))
    rest = count - first
    found = _item(draw, first, nested)
    if rest >= 2 and draw.random() < 0.6:
        found += [(str(draw.choice(["+", "-", "="])), {})]
        rest -= 1
    return found + (_row(draw, rest, nested) if rest else [])


def _item(draw: np.random.Generator, count: int, nested: int) -> list[tuple[str, dict[int, Layout]]]:
    """A symbol with what hangs on it, or a bracket; `count` symbols in all."""
    if count == 1:
        return [(str(draw.choice([*"0123456789"] if draw.random() < 0.7 else ["x", "y"])), {})]
    if nested == 0:
        return [pair for _ in range(count) for pair in _item(draw, 1, 0)]

    def below(n: int) -> Layout:
        return _chain(_row(draw, n, nested - 1))

    kind = draw.choice(["sup", "sub", "sqrt"] if count == 2 else ["sup", "both", "sqrt", "frac", "frac", "bracket"])
    if kind == "frac":
        upper = int(draw.integers(1, count - 1))
        return [("frac", {ABOVE: below(upper), BELOW: below(count - 1 - upper)})]
    if kind == "sqrt":
        return [("sqrt", {INSIDE: below(count - 1)})]
    if kind == "bracket":
        return [("(", {}), *_row(draw, count - 2, nested - 1), (")", {})]
    ((name, _),) = _item(draw, 1, 0)
    if kind == "sup":
        return [(name, {SUP: below(count - 1)})]
    variable = str(draw.choice(["x", "y"]))
    lower = 1 if kind == "both" else count - 1
    branches = {SUB: _chain(_item(draw, lower, 0))}
    return [(variable, branches | ({SUP: below(count - 2)} if kind == "both" else {}))]


def formula(draw: np.random.Generator, *, longest: int = LONGEST, nested: int = NESTED) -> Layout:
    """A random formula.

    Args:
        draw: random generator.
        longest: the most symbols, at least 3.
        nested: how deep fractions, roots, scripts and brackets lie within one another.

    Returns:
        Its layout tree, of at least 3 symbols, places in `SYMBOLS`.
    """
    return _chain(_row(draw, int(draw.integers(SHORTEST, longest + 1)), nested))


def _shifted(glyphs: list[Glyph], x: float, y: float, scale: float) -> list[Glyph]:
    return [(name, x + scale * a, y + scale * b, scale * w, scale * h) for name, a, b, w, h in glyphs]


def _place(tree: Layout) -> tuple[list[Glyph], float, float, float]:
    """Glyphs of a row whose middle line is y = 0, its width, its top and its bottom."""
    found: list[Glyph] = []
    x, top, bottom, node = 0.0, -0.5, 0.5, tree
    while True:
        name, branches = SYMBOLS[node.symbol], {kind: _place(x) for kind, x in node.branches if kind != RIGHT}
        if name == "frac":
            wide = 0.3 + 0.85 * max(branches[ABOVE][1], branches[BELOW][1])
            for kind, side in ((ABOVE, -1), (BELOW, 1)):
                inner, width, high, low = branches[kind]
                y = -0.2 - 0.85 * low if side < 0 else 0.2 - 0.85 * high
                found += _shifted(inner, x + (wide - 0.85 * width) / 2, y, 0.85)
                top, bottom = min(top, y + 0.85 * high), max(bottom, y + 0.85 * low)
            found.append((name, x, -0.1, wide, 0.2))
        elif name == "sqrt":
            inner, width, high, low = branches[INSIDE]
            wide = 0.55 + 0.9 * width
            found += [(name, x, 0.9 * high - 0.15, wide, 0.9 * (low - high) + 0.2)]
            found += _shifted(inner, x + 0.45, 0.0, 0.9)
            top, bottom = min(top, 0.9 * high - 0.15), max(bottom, 0.9 * low + 0.05)
        else:
            wide, tall, middle = SIZES.get(name, (0.65, 1.0, 0.0))
            found.append((name, x, middle - tall / 2, wide, tall))
            top, bottom = min(top, middle - tall / 2), max(bottom, middle + tall / 2)
        script = 0.0
        for kind, y in ((SUP, -0.25), (SUB, 0.25)):
            if kind in branches:
                inner, width, high, low = branches[kind]
                at = y - 0.6 * (low if kind == SUP else high)
                found += _shifted(inner, x + wide + 0.05, at, 0.6)
                top, bottom = min(top, at + 0.6 * high), max(bottom, at + 0.6 * low)
                script = max(script, 0.05 + 0.6 * width)
        x += wide + script
        following = dict(node.branches).get(RIGHT)
        if following is None:
            return found, x, top, bottom
        x, node = x + 0.15, following


def picture(
    tree: Layout, digits: dict[str, list[np.ndarray]], draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Write a formula.

    Args:
        tree: layout tree.
        digits: pictures of each digit, cut to what is written, (h, w), uint8.
        draw: random generator of digits, jitter, pens and place.

    Returns:
        Picture, (32, 96), uint8, white on black, and the symbols in cells of 4×4 pixels, (8, 24), −1 where there is
        none: each is in the cell of its middle, a root in that of its hook.
    """
    glyphs, width, top, bottom = _place(tree)
    scale = min((HEIGHT - 3) / (bottom - top), (WIDTH - 3) / width, 16.0) * draw.uniform(0.88, 1.0)
    left, over = (
        draw.uniform(1, max(1.01, size - 1 - scale * s)) for size, s in ((WIDTH, width), (HEIGHT, bottom - top))
    )
    canvas = Image.new("L", (FINE * WIDTH, FINE * HEIGHT))
    pen, cells = ImageDraw.Draw(canvas), np.full((HEIGHT // CELL, WIDTH // CELL), -1)
    for name, a, b, w, h in glyphs:
        move, stretch = draw.normal(0, 0.04, 2), draw.uniform(0.9, 1.1, 2) if name not in ("frac", "sqrt") else (1, 1)
        x, y = FINE * (left + scale * (a + move[0])), FINE * (over + scale * (b - top + move[1]))
        across, down = (max(2, round(FINE * scale * size * s)) for size, s in ((w, stretch[0]), (h, stretch[1])))
        middle = y + down / 2, x + (min(0.3 * down, across / 2) if name == "sqrt" else across / 2)
        row, column = (
            int(np.clip(at / FINE / CELL, 0, size - 1)) for at, size in zip(middle, cells.shape, strict=True)
        )
        cells[row, column] = SYMBOLS.index(name)
        if name in digits:
            shown = digits[name][int(draw.integers(len(digits[name])))]
            across = min(across, max(2, round(down * shown.shape[1] / shown.shape[0] * 1.1)))
            glyph = Image.new("L", canvas.size)
            glyph.paste(Image.fromarray(shown).resize((across, down), Image.Resampling.BILINEAR), (round(x), round(y)))
            canvas = ImageChops.lighter(canvas, glyph)
            pen = ImageDraw.Draw(canvas)
            continue
        strokes = STROKES.get(name, ())
        if not strokes:  # a root: its hook is as wide whatever it covers
            hook = min(0.35 * FINE * scale * h, 0.3 * across)
            strokes = (((0, 0.6), (0.35 * hook / across, 0.5), (0.6 * hook / across, 1), (hook / across, 0), (1, 0)),)
        thick = max(2, round(FINE * draw.uniform(1.1, 1.9)))
        for stroke in strokes:
            ends = (
                np.array(stroke) * (across, down) + draw.normal(0, 0.05 * FINE * scale, (len(stroke), 2)) * 0.7 + (x, y)
            )
            pen.line([tuple(end) for end in ends], fill=int(draw.integers(190, 256)), width=thick, joint="curve")
    return np.asarray(canvas.resize((WIDTH, HEIGHT), Image.Resampling.BOX)), cells


def _digits(part: str) -> dict[str, list[np.ndarray]]:
    """Pictures of each digit of MNIST, cut to what is written."""
    shown, labels = mnist.digits(part)
    found: dict[str, list[np.ndarray]] = {str(n): [] for n in range(10)}
    for one, label in zip(shown[:10_000], labels[:10_000], strict=True):
        rows, columns = ((one > 60).any(axis).nonzero()[0] for axis in (1, 0))
        found[str(label)].append(one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return found


@cached(maxsize=2)
def pictures(part: str) -> tuple[Tensor, list[Layout], Tensor]:
    """Formulas of a part.

    Args:
        part: "train" (8,000) or "test" (1,000).

    Returns:
        Pictures, (n, 1, 32, 96) in [0, 1] with noise; layout trees; the symbols in cells, (n, 8, 24), see `picture`.
    """
    draw, digits = np.random.default_rng(len(part)), _digits(part)
    trees = [formula(draw) for _ in range(12 if rehearsing() else COUNT[part])]
    made, cells = zip(*(picture(tree, digits, draw) for tree in trees), strict=True)
    shown = np.stack(made).astype(np.float32) / 255
    shown += draw.normal(0, 0.05, shown.shape).astype(np.float32)
    return torch.from_numpy(shown)[:, None], trees, torch.from_numpy(np.stack(cells))
