"""Static int8 quantisation by ONNX Runtime: the loss that int8 causes with standard tools."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foveal.export.onnx import to_onnx
from foveal.runtime.ort import load_onnxruntime

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

__all__ = ["static_int8"]


class _Calibration:
    """The calibration pictures, in ONNX Runtime's interface."""

    def __init__(self, pictures: Tensor) -> None:
        self.left = iter(pictures.split(1))

    def get_next(self) -> dict[str, NDArray] | None:
        picture = next(self.left, None)
        return None if picture is None else {"image": picture.numpy()}


class _Onnx(torch.nn.Module):
    """An ONNX file as a module."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.session = load_onnxruntime().InferenceSession(data, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"image": x.numpy()})[0])


def static_int8(model: nn.Module, pictures: Tensor) -> nn.Module:
    """Quantise an exportable network.

    Args:
        model: exportable network, (B, C, H, W) to anything.
        pictures: calibration pictures, (n, C, H, W).

    Returns:
        A module that runs the quantised file.
    """
    quantization = load_onnxruntime("quantization")

    with tempfile.TemporaryDirectory() as place:
        plain, eight = Path(place) / "model.onnx", Path(place) / "model_int8.onnx"
        to_onnx(model, plain, torch.rand(1, pictures.shape[1], 24, 20))
        logging.disable(logging.WARNING)  # it recommends a pass for unfolded graphs; ours is folded
        try:
            quantization.quantize_static(
                plain,
                eight,
                _Calibration(pictures),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
            )
        finally:
            logging.disable(logging.NOTSET)
        return _Onnx(eight.read_bytes())
