"""Files of a network whose constants are set by a look at the whole picture: see `foveal.runtime.control`.

The exported form holds the constants under the names in `controls`; they are set to numbers that occur nowhere else and
looked for in the file, so that the table knows offsets and no format but that of raw little-endian floats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from foveal.export.deployable import ExportError
from foveal.export.levels import place
from foveal.export.onnx import to_onnx

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["write_control"]

TABLE, NETWORK = "control.npz", "control.onnx"


class _Control(nn.Module):
    """A network's `control` as a module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        numbers: torch.Tensor = self.model.control(view)
        return numbers


def write_control(model: Any, names: Sequence[str], folder: Path) -> tuple[str, str]:
    """Write `control.onnx` and `control.npz` beside `model.onnx`, whose constants are marked and set again.

    Args:
        model: network with `view` and `control`, whose exported form lies in `folder`.
        names: constants of that form, in the order of `control`'s numbers.
        folder: the bundle's folder.

    Returns:
        Names of the table and of the network's file.

    Raises:
        ExportError: a constant that is not in the file, or numbers that do not fill the constants.
    """
    path = folder / "model.onnx"
    proto = onnx.load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if t.name in names}
    if missing := [name for name in names if name not in constants]:
        raise ExportError(f"{missing[0]} is no constant of the exported file; let `collapse` keep it as a parameter")
    places, _ = place(path, proto, [{name: constants[name] for name in names}])
    with torch.no_grad():
        view = model.view(torch.rand(2, 3, 64, 80))
        numbers = model.control(view)
    if numbers.shape[1] != (wanted := int(places[:, 1].sum())):
        raise ExportError(f"control gives {numbers.shape[1]} numbers for constants of {wanted}; let it give as many")
    to_onnx(_Control(model), folder / NETWORK, view, output="numbers")
    with (folder / TABLE).open("wb") as file:
        np.savez(file, places=places, view=np.array(view.shape[-2:], np.int64))
    return TABLE, NETWORK
