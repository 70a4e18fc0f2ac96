"""Evidence of foveal.shrink.quantize.quamba."""

from __future__ import annotations

import copy
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.record import equal, faster, kept
from foveal.shrink.quantize.quamba import Quamba, quamba_, rotate_

if TYPE_CHECKING:
    from collections.abc import Callable


PLAIN = Quamba(percentile=1.0, rotate=False)


def _small_vim() -> nn.Module:
    from foveal.models.backbone.vim import vim

    return vim(64, depth=4, state=8, patch_size=4, grid=(8, 8), num_classes=10)


@lru_cache(maxsize=4)
def small_vim(seed: int) -> nn.Module:
    from foveal.evidence.tasks.cifar10 import train_classifier

    return train_classifier(_small_vim, steps=500, seed=seed)


@lru_cache(maxsize=16)
def _accuracy(seed: int, config: Quamba | None) -> float:
    from foveal.evidence.tasks.cifar10 import accuracy, pictures

    model = copy.deepcopy(small_vim(seed))
    if config is not None:
        quamba_(model, pictures("train")[0][:512], config)
    return accuracy(model, pictures("test", limit=4000))


def _folding(*, folded: bool) -> Tensor:
    from foveal.nn.mamba import Mamba

    torch.manual_seed(0)
    model = nn.Sequential(Mamba(192, bidirectional=True), Mamba(192, bidirectional=True))
    x = torch.randn(2, 49, 192)
    with torch.inference_mode():
        return (rotate_(model) if folded else model)(x)


def _projection(*, eight_bits: bool) -> Callable[[], Any]:
    """The input projection of Vim-Tiny on the tokens of a picture, by ONNX Runtime."""
    import logging

    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    rng = np.random.default_rng(0)
    tokens, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((197, 192), (192, 768)))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "projection", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "projection.onnx"
        path.write_bytes(model.SerializeToString())
        if eight_bits:
            logging.disable(logging.WARNING)  # it recommends a pass for graphs that are not folded yet
            try:
                quantize_dynamic(path, path, weight_type=QuantType.QInt8)
            finally:
                logging.disable(logging.NOTSET)
        data = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": tokens})


CLAIMS = (
    equal(
        "Rotating the scan's output changes nothing before rounding, two mixers of Vim-Tiny's width.",
        paper="compute-invariant",
        ours=lambda: _folding(folded=True),
        theirs=lambda: _folding(folded=False),
        tolerance=1e-4,
    ),
    kept(
        "In eight bits a small trained Vim loses at most one point of accuracy.",
        paper="0.9 points on average, Mamba-2.8B",
        quality=lambda seed: _accuracy(seed, Quamba()) - _accuracy(seed, None),
        at_least=-1.0,
        unit="points",
        data="CIFAR-10, 4,000 test pictures; 500 steps, calibrated on 512 training pictures",
        needs=("minutes", "cifar10_train", "cifar10_test"),
    ),
    kept(
        "Plain rounding with one scale a tensor loses at least a tenth of a point more.",
        paper="",
        quality=lambda seed: _accuracy(seed, Quamba()) - _accuracy(seed, PLAIN),
        at_least=0.1,
        unit="points",
        data="CIFAR-10, 4,000 test pictures; the same network",
        needs=("minutes", "cifar10_train", "cifar10_test"),
    ),
    faster(
        "A projection of Vim-Tiny takes less processor time in eight bits than in floating point, ONNX Runtime.",
        paper="1.72 times, all of Mamba-2.8B on Orin Nano",
        ours=lambda: _projection(eight_bits=True),
        theirs=lambda: _projection(eight_bits=False),
    ),
)
