"""Static int8 of the exported file by NNCF: rounding placed where OpenVINO computes in bytes, an ordinary QDQ graph.

Source: A. Kozlov et al., "Neural Network Compression Framework for Fast Model Inference", 2020, arXiv:2002.08679; the
work is done by `nncf.quantize` on the ONNX file. NNCF is an extra and imported when it is used.

Shapes: any exported network with one input, (n, …).

Differs from the paper: nothing is trained; biases are corrected, which the library does by itself.
"""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import onnx

from foveal._install import install_hint
from foveal.shrink.step import ShrinkError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["quantise_by_nncf", "why_not"]


def why_not() -> str:
    """Why NNCF cannot be used here.

    Returns:
        What is missing and the command that installs it; "" if it can be used.
    """
    return "" if find_spec("nncf") is not None else f"nncf is not installed; {install_hint('nncf')}"


def quantise_by_nncf(source: Path, target: Path, batches: Sequence[NDArray], *, skip: Sequence[str] = ()) -> None:
    """Write the int8 form of an ONNX file.

    Args:
        source: file in floats, for inputs of one shape.
        target: file to write.
        batches: inputs of that shape to calibrate on.
        skip: types of ONNX nodes left in floats.

    Raises:
        ShrinkError: NNCF is missing, or cannot quantise the file.
    """
    if reason := why_not():
        raise ShrinkError(f"Quantise: {reason}")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # its progress bars
        warnings.simplefilter("ignore")
        import nncf

        nncf.set_log_level(logging.ERROR)
        try:
            model = onnx.load(source)
            entry = model.graph.input[0].name
            options: dict[str, Any] = {}
            if any(node.op_type == "Softmax" for node in model.graph.node):
                options["model_type"] = nncf.ModelType.TRANSFORMER
            if skip:
                options["ignored_scope"] = nncf.IgnoredScope(types=[*skip], validate=False)
            data = nncf.Dataset([*batches], lambda x: {entry: x})
            onnx.save(nncf.quantize(model, data, subset_size=len(batches), **options), target)
        except Exception as error:
            raise ShrinkError(f"Quantise: NNCF cannot quantise {source.name}: {error}") from error
