"""Constants of a bundle's file that a look at the whole picture sets. ONNX Runtime and NumPy only.

A network that adapts to a picture (`foveal.models.restore.iat`) has a small part that sees the picture averaged to one
size and says some numbers, and a large part that runs tile by tile with these numbers as constants. So the bundle has
two files and a table: where in the large file's bytes the numbers stand. No engine has to know of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.runtime.card import BundleError
from foveal.runtime.ort import load_onnxruntime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.runtime.bundle import Bundle

__all__ = ["Control", "averaged"]


def averaged(pixels: NDArray, rows: int, columns: int) -> NDArray[np.float32]:
    """A picture averaged to a size: each value is the mean of the pixels whose part it is.

    Args:
        pixels: (H, W, C), uint8, uint16 or floats in [0, 1].
        rows: height of the result.
        columns: its width.

    Returns:
        (rows, columns, C) in [0, 1]; the bins are those of torch's `adaptive_avg_pool2d`.
    """
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    values: NDArray = pixels
    for axis, size in ((0, rows), (1, columns)):
        length = values.shape[axis]
        first = np.arange(size) * length // size
        last = -(-(np.arange(size) + 1) * length // size)
        # Bin by bin: the running sums of a large picture would take sixteen times its memory.
        bins = [np.take(values, range(a, b), axis).mean(axis, np.float64) for a, b in zip(first, last, strict=True)]
        values = np.stack(bins, axis)
    return (values / white).astype(np.float32)


class Control:
    """The part of a bundle that sees the whole picture.

    Args:
        bundle: bundle with a table of control.
        threads: processor threads.

    Raises:
        BundleError: the table or the network is missing or damaged.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        if not bundle.card.control:
            raise BundleError(f"{bundle.card.name}: nothing in it looks at the whole picture; choose another bundle")
        bundle.file("float")  # which checks the hashes of the table and of the network as well
        try:
            with np.load(bundle.folder / bundle.card.control, allow_pickle=False) as table:
                self._places: list[tuple[int, int]] = [(int(a), int(n)) for a, n in table["places"]]
                self._view = tuple(int(n) for n in table["view"])
        except (OSError, ValueError, KeyError) as error:
            raise BundleError(f"{bundle.folder}: its control cannot be read ({error}); install it again") from error
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        network = (bundle.folder / bundle.card.control).with_suffix(".onnx")
        self._session = ort.InferenceSession(network.read_bytes(), options, providers=["CPUExecutionProvider"])

    def numbers(self, pixels: NDArray) -> NDArray[np.float32]:
        """The numbers of a picture.

        Args:
            pixels: (H, W, 1) or (H, W, 3).

        Returns:
            (n,).
        """
        view = averaged(pixels, *self._view)
        if view.shape[2] == 1:
            view = view.repeat(3, axis=2)
        made = self._session.run(None, {"image": np.ascontiguousarray(view.transpose(2, 0, 1)[None])})[0][0]
        numbers: NDArray[np.float32] = made.astype(np.float32)
        return numbers

    def at(self, numbers: NDArray[np.float32], data: bytes) -> bytes:
        """The file with the numbers of a picture.

        Args:
            numbers: (n,).
            data: the bundle's float file.

        Returns:
            The same with these numbers.
        """
        made, begin = bytearray(data), 0
        for offset, count in self._places:
            made[offset : offset + 4 * count] = numbers[begin : begin + count].astype("<f4").tobytes()
            begin += count
        return bytes(made)
