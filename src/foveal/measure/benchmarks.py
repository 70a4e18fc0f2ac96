"""Finds benchmark data on this machine: pictures and labels that are never part of the package.

A set is searched for in the folder named by `FOVEAL_DATA`, then in `data` and `../shared/data` relative to the working
folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from foveal.errors import FovealError

__all__ = ["SETS", "DataError", "find", "folders"]

# Name → possible paths below a data folder, first match wins.
SETS: dict[str, tuple[str, ...]] = {
    "Set5": ("sr/Set5", "Set5"),
    "Set14": ("sr/Set14", "Set14"),
    "BSD100": ("sr/BSD100", "BSD100"),
    "Urban100_20": ("sr/Urban100_20", "Urban100_20"),
    "bsds400": ("bsds400",),
    "bccd": ("bccd/BCCD", "BCCD"),
    "roadscene": ("roadscene",),
    "cifar10": ("cifar10",),
    "cifar10_train": ("cifar10_train.npz", "cifar10/cifar10_train.npz"),
    "cifar10_test": ("cifar10_test.npz", "cifar10/cifar10_test.npz"),
}


class DataError(FovealError, FileNotFoundError):
    """Benchmark data that is not on this machine, or an unknown set."""


def folders() -> list[Path]:
    """Folders that are searched for data.

    Returns:
        Folders in order, whether they exist or not.
    """
    named = os.environ.get("FOVEAL_DATA")
    return ([Path(named).expanduser()] if named else []) + [Path("data"), Path("../shared/data")]


def find(name: str) -> Path:
    """The folder or file of a benchmark set.

    Super-resolution sets hold `x2`, `x3` and `x4` with `NNN_HR.png` and `NNN_LR.png`; `cifar10` is the folder that
    holds `cifar10_train.npz` and `cifar10_test.npz`.

    Args:
        name: "Set5", "Set14", "BSD100", "Urban100_20", "bsds400", "bccd", "roadscene", "cifar10", "cifar10_train" or
            "cifar10_test".

    Returns:
        An existing path.

    Raises:
        DataError: an unknown set, or one that is not on this machine; the text lists the folders searched.
    """
    if name not in SETS:
        raise DataError(f"no benchmark set is called {name!r}; known are {', '.join(SETS)}")
    for folder in folders():
        if name == "cifar10" and all((folder / f"cifar10_{part}.npz").is_file() for part in ("train", "test")):
            return folder
        for place in SETS[name]:
            if (folder / place).exists():
                return folder / place
    looked = ", ".join(str(folder / SETS[name][0]) for folder in folders())
    raise DataError(
        f"benchmark data {name!r} is not on this machine (looked for {looked}); set FOVEAL_DATA to the folder that "
        f"holds it, or pass --data"
    )
