"""Labelled pictures as data of a shrinking: a folder of class folders, or a set that is on this machine."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.measure.benchmarks import DataError, find, folders
from foveal.runtime.classify import Framing, framed
from foveal.shrink.data import Data
from foveal.shrink.step import ShrinkError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SETS", "Labelled", "below", "labelled", "picture_data"]

SETS = ("cifar10", "imagenette")
_HELD, _TRAIN = ("val", "validation", "test"), ("train", "training")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".gif"}


@dataclass(frozen=True)
class Labelled:
    """Labelled pictures, to train on and held out.

    Args:
        train: pictures, (n, height, width, 3) uint8, and labels, (n,).
        held: the same, for scores.
        classes: names of the classes, in the labels' order.
        rows: row of each class among ImageNet's 1000; empty if the classes are no part of them.
        name: name for reports.
    """

    train: tuple[NDArray[np.uint8], NDArray[np.int64]]
    held: tuple[NDArray[np.uint8], NDArray[np.int64]]
    classes: tuple[str, ...]
    rows: tuple[int, ...] = ()
    name: str = "held-out pictures"


def labelled(source: str, framing: Framing, *, limit: int | None = None) -> Labelled:
    """Read labelled pictures.

    A folder is split by its `train` and `val` folders if it has them, else by a hash of each file's path: a fifth is
    held out, the same on every machine.

    Args:
        source: "cifar10", "imagenette", or a folder that holds a folder of pictures for each class.
        framing: size of the pictures.
        limit: number of pictures held out at most.

    Returns:
        Pictures and labels.

    Raises:
        ShrinkError: no such set or folder, or one without two classes of pictures.
    """
    if source in SETS:
        return _set(source, framing, limit)
    folder = Path(source)
    if not folder.is_dir():
        raise ShrinkError(f"{source}: no folder of class folders, and no set; sets are {', '.join(SETS)}")
    parts = {path.name: path for path in folder.iterdir() if path.is_dir()}
    train = next((parts[name] for name in _TRAIN if name in parts), None)
    held = next((parts[name] for name in _HELD if name in parts), None)
    root = train if train is not None and held is not None else folder
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and any(below(path))))
    if len(classes) < 2:
        raise ShrinkError(f"{root}: wanted a folder of pictures for each class, got {len(classes)} with any")
    found: dict[bool, list[tuple[Path, int]]] = {True: [], False: []}
    for label, name in enumerate(classes):
        if train is not None and held is not None:
            found[False] += [(path, label) for path in below(train / name)]
            found[True] += [(path, label) for path in below(held / name)]
        else:
            for path in below(folder / name):
                digest = hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest()
                found[digest[0] % 5 == 0].append((path, label))
    for is_held, what in ((False, "to train on"), (True, "to hold out")):
        if not found[is_held]:
            raise ShrinkError(f"{folder}: no pictures {what}; add more, or split them into train and val folders")
    if limit is not None:
        step = max(1, len(found[True]) // limit)  # spread over the classes
        found[True] = found[True][::step][:limit]
    count = f"{len(found[True])} held-out pictures of {folder.name}"
    return Labelled(_read(found[False], framing), _read(found[True], framing), classes, name=count)


def below(folder: Path) -> list[Path]:
    """Pictures in a folder and the folders below it.

    Args:
        folder: any; one that is not there holds none.

    Returns:
        Their paths, sorted.
    """
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES) if folder.is_dir() else []


def _read(paths: list[tuple[Path, int]], framing: Framing) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pictures = np.empty((len(paths), *framing.size, 3), np.uint8)
    for i, (path, _) in enumerate(paths):
        try:
            pictures[i] = framed(path, framing)
        except (FovealError, OSError) as error:
            raise ShrinkError(f"{error}; take the file out of the data") from error
    return pictures, np.array([label for _, label in paths], np.int64)


def _set(name: str, framing: Framing, limit: int | None) -> Labelled:
    if name == "cifar10":
        paths = [find("cifar10_train"), find("cifar10_test")]
    else:
        places = [folder / "imagenette" for folder in folders()]
        place = next((p for p in places if (p / "val.npz").is_file()), None)
        if place is None:
            looked = ", ".join(map(str, places))
            raise DataError(f"imagenette is not on this machine (looked for {looked}); set FOVEAL_DATA to its folder")
        paths = [place / "train.npz", place / "val.npz"]
    parts = []
    for path, most in zip(paths, (None, limit), strict=True):
        with np.load(path) as data:
            ends, packed, labels = data["offsets"], data["jpeg"], data["labels"]
            classes = tuple(map(str, data["classes"]))
            rows = tuple(map(int, data["imagenet_index"])) if "imagenet_index" in data else ()
        count = len(labels) if most is None else min(most, len(labels))
        pictures = np.empty((count, *framing.size, 3), np.uint8)
        for i in range(count):
            with Image.open(io.BytesIO(packed[ends[i] : ends[i + 1]].tobytes())) as opened:
                pictures[i] = framed(opened.convert("RGB"), framing)
        parts.append((pictures, labels[:count].astype(np.int64)))
    return Labelled(parts[0], parts[1], classes, rows, f"{len(parts[1][0])} test pictures of {name}")


def picture_data(pictures: Labelled, framing: Framing, *, outputs: int, batch: int = 64, samples: int = 256) -> Data:
    """Labelled pictures as `Data`: cross-entropy with flips and shifts to train on, accuracy in percent as quality.

    Args:
        pictures: labelled pictures.
        framing: colours.
        outputs: number of classes that the model tells apart.
        batch: size of a training batch.
        samples: number of training pictures to calibrate on.

    Returns:
        Data.

    Raises:
        ShrinkError: a model with another number of classes.
    """
    rows = np.arange(len(pictures.classes))
    if outputs != len(rows):
        if outputs != 1000 or not pictures.rows:
            raise ShrinkError(
                f"the model tells {outputs} classes apart, the data has {len(rows)}; give a model trained for them, or "
                "its arguments (--arg num_classes=N)"
            )
        rows = np.array(pictures.rows)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (framing.mean, framing.std))

    def normal(pixels: Any) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
        return (x - mean) / std

    train, labels = pictures.train
    targets = torch.from_numpy(rows[labels])
    held, wanted = pictures.held[0], torch.from_numpy(rows[pictures.held[1]])
    shift = max(1, framing.size[0] // 8)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(step)
        chosen = rng.integers(len(train), size=batch)
        x = np.pad(train[chosen], ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="reflect")
        top, left = rng.integers(2 * shift + 1, size=2)
        x = x[:, top : top + framing.size[0], left : left + framing.size[1]]
        flips = rng.random(batch) < 0.5
        x = np.where(flips[:, None, None, None], x[:, :, ::-1], x)
        return normal(x), targets[torch.from_numpy(chosen)]

    def accuracy(model: nn.Module) -> float:
        with torch.inference_mode():
            right = sum(
                int((model(normal(held[i : i + 100])).argmax(1) == wanted[i : i + 100]).sum())
                for i in range(0, len(held), 100)
            )
        return 100 * right / len(held)

    some = np.linspace(0, len(train) - 1, min(samples, len(train))).astype(int)
    return Data(normal(train[some]), accuracy, "points", pictures.name, batches, F.cross_entropy)
