"""Sequential digits in minutes: rendered digits of 16×16 pixels, read as 256 positions; accuracy in percent on 1,000.

They are drawn by a font renderer, without a download. Every picture is different: rotated, slanted, scaled, shifted,
with its own brightness and noise. Test pictures use the same fonts but are not in the training set. The floor is
chance, 10 %.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import cifar10
from foveal.record import kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.record import Claim

__all__ = ["NEEDS", "above", "better", "drawn", "glyphs", "pictures", "score", "trained"]

NEEDS = ("minutes",)
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10", "cmss10", "cmtt10",
)  # fmt: skip
COUNT = {"train": 6000, "test": 1000}


@lru_cache(maxsize=1)
def glyphs(size: int = 48) -> list[tuple[int, Image.Image]]:
    """Each digit in each font, white on black, centred in a square twice as large.

    Args:
        size: font size, in pixels.

    Returns:
        Pairs of digit and picture.
    """
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), size)
        for digit in range(10):
            picture = Image.new("L", (2 * size, 2 * size))
            ImageDraw.Draw(picture).text((size, size), str(digit), fill=255, font=font, anchor="mm")
            found.append((digit, picture))
    return found


def drawn(glyph: Image.Image, side: int, generator: np.random.Generator) -> np.ndarray:
    """One random picture of a digit.

    Args:
        glyph: one of `glyphs`.
        side: side of the picture, in pixels.
        generator: random generator for rotation, slant, size and position.

    Returns:
        Picture, (side, side), values in [0, 1].
    """
    turn, slant = generator.uniform(-0.25, 0.25), generator.uniform(-0.3, 0.3)
    wide, high = generator.uniform(0.75, 1.15, 2)
    cos, sin, centre = np.cos(turn), np.sin(turn), glyph.width / 2
    zoom = 44 / side  # a digit of about 36 pixels in 48 fills four fifths of the picture
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, slant], [0, 1]]) @ np.diag([zoom / wide, zoom / high])
    x, y = centre - matrix @ (np.full(2, side / 2) + generator.uniform(-1.5, 1.5, 2) * side / 16)
    # Drawn at twice the side and halved, because a transform that reduces would skip pixels.
    twice = glyph.transform(
        (2 * side, 2 * side),
        Image.Transform.AFFINE,
        (matrix[0, 0] / 2, matrix[0, 1] / 2, x, matrix[1, 0] / 2, matrix[1, 1] / 2, y),
        Image.Resampling.BICUBIC,
    )
    return np.asarray(twice.resize((side, side), Image.Resampling.BOX), np.float32) / 255


@cached(maxsize=2)
def pictures(part: str, *, side: int = 16) -> tuple[Tensor, Tensor]:
    """Pictures of single digits.

    Args:
        part: "train" (6,000 in 17 fonts) or "test" (1,000).
        side: side of a picture, in pixels.

    Returns:
        Pictures, (n, 1, side, side), about zero mean and unit variance; labels, (n,) int64.
    """
    generator, found = np.random.default_rng(0 if part == "train" else 1), glyphs()
    count = 20 if rehearsing() else COUNT[part]
    made, labels = np.empty((count, side, side), np.float32), np.empty(count, np.int64)
    for i in range(count):
        labels[i], glyph = found[generator.integers(len(found))]
        made[i] = generator.uniform(0.6, 1.0) * drawn(glyph, side, generator)
    made += generator.normal(0, 0.1, made.shape).astype(np.float32)
    return torch.from_numpy((made - 0.2) / 0.3)[:, None], torch.from_numpy(labels)


@cached(maxsize=8)
def trained(build: Callable[[], nn.Module], *, steps: int, seed: int) -> nn.Module:
    """A network trained on the digits; claims about one network share it.

    Args:
        build: builder of the network, (B, 1, 16, 16) to (B, 10).
        steps: number of steps of 64 pictures.
        seed: seed of weights and batches.

    Returns:
        The network in eval mode; do not modify it.
    """
    data = pictures("train")
    return cifar10.train_classifier(build, steps=steps, seed=seed, data=data, flip=False, lr=1e-2, weight_decay=0.01)


def score(model: nn.Module) -> float:
    """Share of the test pictures that the network classifies correctly.

    Args:
        model: network, (B, 1, 16, 16) to (B, 10).

    Returns:
        Accuracy, percent.
    """
    return cifar10.accuracy(model, pictures("test"))


def _data(steps: int) -> str:
    return f"{steps} steps on 6,000 digits drawn in 17 fonts, 16×16, read as 256 places; 1,000 test pictures"


def above(build: Callable[[], nn.Module], says: str, *, steps: int, at_least: float, paper: str, **words: Any) -> Claim:
    """`kept`: accuracy after a short training.

    Args:
        build: builder of the network.
        says: promise, one sentence.
        steps: number of training steps.
        at_least: lower bound on the accuracy, percent.
        paper: the paper's value.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def quality(seed: int) -> float:
        return score(trained(build, steps=steps, seed=seed))

    data = _data(steps)
    return kept(says, paper=paper, quality=quality, at_least=at_least, unit="%", data=data, needs=NEEDS, **words)


def better(
    build: Callable[[], nn.Module],
    says: str,
    *,
    than: Callable[[], nn.Module],
    steps: int,
    paper: str,
    by: float = 0.0,
    **words: Any,
) -> Claim:
    """`kept`: the paired difference of two networks under the same seeds, batches and steps.

    Args:
        build: builder of the network.
        says: promise, one sentence.
        than: builder of the rival.
        steps: number of training steps of each.
        paper: the paper's value.
        by: lower bound on the difference, percentage points; negative for "at most this much worse".
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        ours, theirs = (score(trained(b, steps=steps, seed=seed)) for b in (build, than))
        return ours - theirs

    data = _data(steps)
    return kept(says, paper=paper, quality=difference, at_least=by, unit="points", data=data, needs=NEEDS, **words)
