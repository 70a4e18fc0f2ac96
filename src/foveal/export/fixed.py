"""Export of a network to an ONNX file that takes inputs of one shape, the form in which engines are fastest.

`foveal.export.onnx` leaves batch, height and width free, for pictures of any size; a classifier or a transformer with a
table of positions has one size anyway.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import onnx
import torch

from foveal.export.deployable import ExportError
from foveal.export.onnx import OPSET, Parity, parity
from foveal.export.scan import lower_scans
from foveal.ops.selective_scan.onnx import lowered_later

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

__all__ = ["to_fixed_onnx"]


def to_fixed_onnx(model: nn.Module, path: Path, example: Tensor, *, tolerance: float = 1e-3) -> Parity:
    """Write a network as an ONNX file for inputs of one shape, and compare the two.

    Args:
        model: network in eval mode, with one input and one output.
        path: target file; its folder must exist.
        example: input whose shape the file takes.
        tolerance: largest difference from torch allowed, relative to the largest output.

    Returns:
        Agreement with torch.

    Raises:
        ExportError: torch cannot export the network, or the file computes something else.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad(), lowered_later():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["answer"],
            )
    except Exception as error:
        raise ExportError(f"torch cannot export {type(model).__name__}: {error}") from error
    assert program is not None
    proto = program.model_proto
    lower_scans(proto)
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())
    (found,) = parity(model, path, [tuple(example.shape)], tolerance=tolerance)
    return found
