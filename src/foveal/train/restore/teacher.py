"""Distillation: answers of trained networks to the training pictures, learnt beside the originals.

*Source*: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; for
pictures instead of classes, and with the mean over the eight rotations and flips of a picture as the answer
(R. Timofte et al., "Seven ways to improve example-based single image super resolution", CVPR 2016). The target is

    (1 - share) · original + share · mean over teachers and ways of teacher(low)

Most of an original's fine detail cannot be predicted from the small picture: to a student it is noise, at every step.
A teacher's answer has none of it, and the mean over eight orientations is better than one pass of the teacher. So a
student learns more in the same number of steps (docs/train.md measures it); the original's share corrects the
teacher's mistakes.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from foveal.errors import FovealError
from foveal.runtime.bundle import Bundle
from foveal.runtime.upscaler import Upscaler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["TeacherError", "answers"]


class TeacherError(FovealError, ValueError):
    """A teacher that does not fit the recipe."""


def _answer(low: NDArray[np.uint8], teachers: Sequence[tuple[Upscaler, int]]) -> NDArray[np.uint8]:
    """(h, w, 3) to (s·h, s·w, 3): the mean of every teacher's eight answers, weighted by the teacher's count."""
    picture = low.astype(np.float32) / 255
    scale = teachers[0][0].scale
    total = np.zeros((low.shape[0] * scale, low.shape[1] * scale, 3), np.float32)
    for teacher, times in teachers:
        answer = teacher(picture)
        if not teacher.card.equivariant:  # it averages four flips itself; transposing gives four more
            answer = (answer + teacher(np.ascontiguousarray(picture.transpose(1, 0, 2))).transpose(1, 0, 2)) / 2
        total += times * answer
    return np.rint(total * (255 / sum(times for _, times in teachers))).astype(np.uint8)


def answers(
    kept: Path,
    scale: int,
    teachers: Sequence[str],
    *,
    say: Callable[[str], None] | None = None,
) -> NDArray[np.uint8]:
    """The teachers' answers to all pictures of a `Pairs` folder, or the cache of an earlier call.

    Args:
        kept: folder with `low.npy` and `shapes.npy`; the answers are cached in it, once per set of teachers.
        scale: s.
        teachers: bundles, by name or folder; a bundle named twice counts twice in the mean.
        say: function called now and then with a line of progress.

    Returns:
        All pixels concatenated, (n·s², 3), memory-mapped.

    Raises:
        TeacherError: a teacher with another scale.
    """
    bundles = [Bundle.load(teacher) for teacher in teachers]
    for bundle in bundles:
        if bundle.card.scale != scale:
            raise TeacherError(
                f"teacher {bundle.card.name} enlarges {bundle.card.scale} times, the recipe {scale} times; "
                "name a teacher of the recipe's scale"
            )
    key = hashlib.sha256(" ".join(bundle.fingerprint for bundle in bundles).encode()).hexdigest()[:16]
    path = kept / f"taught-{key}.npy"
    if not path.exists():
        low, shapes = np.load(kept / "low.npy", mmap_mode="r"), np.load(kept / "shapes.npy")
        counted = Counter(teachers)
        bundle_of = dict(zip(teachers, bundles, strict=True))
        networks = [(Upscaler(model=bundle_of[name], quality="best"), times) for name, times in counted.items()]
        part = path.with_suffix(".part")
        out = np.lib.format.open_memmap(part, "w+", np.uint8, (len(low) * scale**2, 3))
        start, begun, spoken = 0, time.perf_counter(), 0.0
        for k, (rows, columns) in enumerate(shapes):
            end = start + rows * columns
            out[start * scale**2 : end * scale**2] = _answer(
                low[start:end].reshape(rows, columns, 3), networks
            ).reshape(-1, 3)
            start, now = end, time.perf_counter() - begun
            if say is not None and now - spoken > 10:
                spoken = now
                say(f"teacher: picture {k + 1} of {len(shapes)}, {now * (len(low) - end) / end / 60:.0f} min left")
        out.flush()
        part.replace(path)
    return np.load(path, mmap_mode="r")
