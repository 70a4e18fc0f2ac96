"""Levels of a bundle: constants of its files that depend on how damaged a picture is. NumPy only.

A network that is told a level (`foveal.models.restore.luma_clean`) has the same kernels at every level; only biases, a
small filter and, of the int8 file, what lifts its channels differ. So a bundle has one file of each kind, and a table:
for each level of a grid the numbers, and where in the file's bytes they stand. A file of another level is the same
bytes with those numbers put in. No engine and no ONNX library has to know of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foveal.errors import FovealError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Levels", "LevelsError"]


class LevelsError(FovealError, ValueError):
    """A table of levels that cannot be read, or does not fit its file."""


@dataclass(frozen=True)
class Levels:
    """A table of levels.

    Args:
        points: the levels of the grid, (L, 3): step of the JPEG's table, noise, noise of colour; see `luma_clean`.
        places: for each kind of file where its numbers stand, (n, 2): offset in bytes, and how many float32 follow.
        values: for each kind of file the numbers of every level, (L, m), in the order of `places`.
    """

    points: NDArray[np.float32]
    places: Mapping[str, NDArray[np.int64]]
    values: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 3 or not len(self.points):
            raise LevelsError(f"levels must be (L, 3), got {self.points.shape}; export the bundle anew")
        for kind, places in self.places.items():
            wanted = (len(self.points), int(places[:, 1].sum()))
            got = self.values[kind].shape if kind in self.values else None
            if got != wanted:
                raise LevelsError(f"the {kind} file's numbers must be {wanted}, got {got}; export the bundle anew")

    @classmethod
    def read(cls, path: Path) -> Levels:
        """Read a table.

        Args:
            path: of an `.npz` file that `write` made.

        Returns:
            The table.

        Raises:
            LevelsError: it cannot be read, or lacks something.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError) as error:
            raise LevelsError(f"{path}: cannot be read ({error}); install the bundle again") from error
        kinds = [name.removeprefix("places_") for name in arrays if name.startswith("places_")]
        if "points" not in arrays or not kinds or any(f"values_{kind}" not in arrays for kind in kinds):
            raise LevelsError(f"{path}: no table of levels, it has {', '.join(arrays) or 'nothing'}; export it anew")
        return cls(
            arrays["points"].astype(np.float32),
            {kind: arrays[f"places_{kind}"].astype(np.int64) for kind in kinds},
            {kind: arrays[f"values_{kind}"].astype(np.float32) for kind in kinds},
        )

    def write(self, path: Path) -> None:
        """Write the table.

        Args:
            path: `.npz` file to write.
        """
        arrays: dict[str, NDArray] = {"points": self.points}
        arrays |= {f"places_{kind}": places for kind, places in self.places.items()}
        arrays |= {f"values_{kind}": values for kind, values in self.values.items()}
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def nearest(self, level: Sequence[float]) -> int:
        """The level of the grid that is nearest: by roots, since a step counts more where there is little.

        Args:
            level: step of the JPEG's table, noise, and noise of colour.

        Returns:
            Its row.

        Raises:
            LevelsError: not three numbers of at least 0.
        """
        wanted = np.asarray(level, np.float64)
        if wanted.shape != (3,) or not (wanted >= 0).all():
            raise LevelsError(f"a level must be three numbers of at least 0, got {tuple(level)}")
        return int(np.square(np.sqrt(self.points) - np.sqrt(wanted)).sum(1).argmin())

    def at(self, row: int, kind: str, data: bytes) -> bytes:
        """A file of a level.

        Args:
            row: of the level, as `nearest` says.
            kind: of the file: "float", "uint8" or "int8".
            data: the bundle's file of that kind.

        Returns:
            The same with that level's numbers.

        Raises:
            LevelsError: no such kind, or a file that is shorter than the table says.
        """
        if kind not in self.places:
            raise LevelsError(f"the table has levels of {', '.join(self.places)}, none of {kind}; export it anew")
        places, numbers = self.places[kind], self.values[kind][row]
        if len(places) and int((places[:, 0] + 4 * places[:, 1]).max()) > len(data):
            raise LevelsError(f"the {kind} file has {len(data)} bytes, the table is of a longer one; export it anew")
        made = bytearray(data)
        begin = 0
        for offset, count in places.tolist():
            made[offset : offset + 4 * count] = numbers[begin : begin + count].astype("<f4").tobytes()
            begin += count
        return bytes(made)
