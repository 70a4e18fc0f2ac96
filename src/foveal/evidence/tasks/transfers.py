"""One small vision transformer, trained on CIFAR-10 at 16×16, and three other kinds of pictures to adapt it to.

Digits are MNIST's, cells are cut out of BCCD's blood smears (red, white, platelets), things are Imagenette's ten
classes; all are shown as colour pictures of 16×16. Few pictures of each class are learned from, held-out ones judge.
The floor is chance: 10, 33.3 and 10 %.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from foveal.adapt.adapt import score
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10, cifar10_half, mnist
from foveal.evidence.trained_once import trained_once
from foveal.measure import benchmarks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from foveal.adapt.delta import Delta

__all__ = ["NEEDS", "TRANSFERS", "base", "held", "kept_right", "shots"]

benchmarks.SETS.setdefault("imagenette", ("imagenette",))
NEEDS = (*cifar10.NEEDS, "mnist", "bccd", "imagenette")
TRANSFERS = {"digits": 10, "cells": 3, "things": 10}  # name → number of classes
STEPS, HELD = 2500, 600
_CELLS = ("RBC", "WBC", "Platelets")


def _build() -> nn.Module:
    return small_vit(dim=64, depth=4, num_heads=4, patch=2, img_size=16)


@cached(maxsize=2)
def base(seed: int = 0) -> nn.Module:
    """The trained transformer, kept in the cache.

    Args:
        seed: seed of weights and batches.

    Returns:
        Classifier of CIFAR-10, (B, 3, 16, 16) to (B, 10), in eval mode; do not modify it.
    """
    return trained_once(
        _build,
        lambda: cifar10.train_classifier(_build, steps=STEPS, seed=seed, data=cifar10_half.pictures("train")),
        modules=["foveal.evidence.tasks.cifar10_half"],
        key=f"transformer of 4 blocks, 64 channels, patches of 2; {STEPS} steps, seed {seed}",
    )


def _shown(pictures: Iterable[np.ndarray]) -> Tensor:
    """Pictures of any size as the transformer wants them."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    small = [
        F.interpolate(torch.from_numpy(np.array(x)).permute(2, 0, 1)[None].float() / 255, 16, mode="area")
        for x in pictures
    ]
    return (torch.cat(small) - mean) / std


def _digits(part: str) -> tuple[Tensor, Tensor]:
    pixels, labels = mnist.digits(part)
    pixels, labels = pixels[:4000], labels[:4000]
    return _shown(np.repeat(np.pad(x, 2)[..., None], 3, -1) for x in pixels), torch.from_numpy(labels)


def _cells(part: str) -> tuple[Tensor, Tensor]:
    root = benchmarks.find("bccd")
    listed = (root / "ImageSets" / "Main" / ("trainval.txt" if part == "train" else "test.txt")).read_text().split()
    found, labels = [], []
    for name in listed:
        smear = np.asarray(Image.open(root / "JPEGImages" / f"{name}.jpg").convert("RGB"))
        tree = ElementTree.parse(root / "Annotations" / f"{name}.xml")  # noqa: S314 - a set of the data folder
        for item in tree.iter("object"):
            left, top, right, bottom = (int(item.findtext(f"bndbox/{side}") or 0) for side in _SIDES)
            if right - left >= 8 and bottom - top >= 8:
                found.append(smear[max(0, top) : bottom, max(0, left) : right])
                labels.append(_CELLS.index(str(item.findtext("name"))))
    return _shown(found), torch.tensor(labels)


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _things(part: str) -> tuple[Tensor, Tensor]:
    with np.load(benchmarks.find("imagenette") / f"{'train' if part == 'train' else 'val'}.npz") as data:
        ends, packed, labels = data["offsets"], data["jpeg"], data["labels"][:1000]
    opened = (
        np.asarray(Image.open(io.BytesIO(packed[ends[i] : ends[i + 1]].tobytes())).convert("RGB").resize((64, 64)))
        for i in range(len(labels))
    )
    return _shown(opened), torch.from_numpy(labels.astype(np.int64))


@cached(maxsize=6)
def _part(name: str, part: str) -> tuple[Tensor, Tensor]:
    if rehearsing():
        generator = torch.Generator().manual_seed(0)
        return torch.randn(40, 3, 16, 16, generator=generator), torch.arange(40) % TRANSFERS[name]
    reading: dict[str, Callable[[str], tuple[Tensor, Tensor]]] = {"digits": _digits, "cells": _cells, "things": _things}
    return reading[name](part)


def shots(name: str, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labelled pictures to learn from.

    Args:
        name: one of `TRANSFERS`.
        count: pictures of each class.
        seed: seed of the choice.

    Returns:
        Pictures, (n, 3, 16, 16); labels, (n,).
    """
    x, labels = _part(name, "train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([order[labels[order] == k][:count] for k in range(TRANSFERS[name])])
    return x[rows], labels[rows]


def held(name: str) -> tuple[Tensor, Tensor]:
    """Held-out pictures, as many of each class as there are at most.

    Args:
        name: one of `TRANSFERS`.

    Returns:
        Pictures, (n, 3, 16, 16); labels, (n,).
    """
    x, labels = _part(name, "test")
    most = HELD // TRANSFERS[name]
    rows = torch.cat([(labels == k).nonzero()[:most, 0] for k in range(TRANSFERS[name])])
    return x[rows], labels[rows]


def kept_right(delta: Delta, name: str, *, seed: int = 0) -> float:
    """Accuracy of the transformer with a delta.

    Args:
        delta: what an adaptation of `base(seed)` changes, its head among it.
        name: one of `TRANSFERS`.
        seed: seed of the transformer.

    Returns:
        Percent of the held-out pictures.
    """
    model = base(seed)
    undo = delta.fold_(model)
    try:
        return score(model, *held(name))
    finally:
        undo()
