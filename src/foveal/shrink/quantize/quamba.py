"""Quamba: eight bits for a Mamba mixer, with the scan's input clipped and its output rotated.

*Source*: H.-Y. Chiang et al., "Quamba: A Post-Training Quantization Recipe for Selective State Space Models", ICLR 2025
(arXiv:2410.13229), section 4. Every tensor has one scale, found on calibration data beforehand. Two tensors are treated
apart. Of the scan's input u, on which the recurrence is sensitive, the few largest values are given up:

    scale_u = (percentile p of |u|) / 127

The gated output y has large outliers in a few channels. A Hadamard transform spreads them over all, and its inverse is
folded into the projection, so that nothing but rounding changes:

    out = W_out y = (W_out Hᵀ)(H y),   H Hᵀ = 1

*Differs from the paper*: p is averaged over batches with equal weights, where the authors' code forgets slowly; step, B
and C have a scale each, where that code takes one for the three; biases of the convolution and the state stay in
floating point; integer arithmetic is simulated. Widths are 2^k · m with m = 1 or m - 1 prime (Paley's construction),
which covers those of the published networks.

*Provenance*: written from the paper; which tensors are rounded looked up in the authors' code.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.record import Method, Paper, equal, faster, kept
from foveal.shrink.quantize.mamba import Codes, Watch, integers_, per_tensor, watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Quamba", "Rotation", "hadamard", "quamba_", "rotate", "rotate_"]

ROUNDED = ("in_proj", "out_proj", "conv1d", "x_proj", "dt_proj", "dt_bias", "A_log", "D")


@lru_cache(maxsize=16)
def hadamard(size: int) -> Tensor:
    """The small factor of a Hadamard matrix whose order is not a power of two.

    Paley: for a prime q of the form 4k + 3, the matrix of residues modulo q with a border has order q + 1.

    Args:
        size: n.

    Returns:
        ±1, (m, m), with the least m for which n / m is a power of two. Kept between calls: do not write into it.

    Raises:
        ValueError: no such matrix is built here.
    """
    odd = size
    while odd % 2 == 0:
        odd //= 2
    order = odd
    while 1 < order <= size:
        prime = order - 1
        if order % 4 == 0 and all(prime % d for d in range(2, int(prime**0.5) + 1)):
            residues = {d * d % prime for d in range(1, prime)}
            sign = [0] + [1 if d in residues else -1 for d in range(1, prime)]
            below = [[-1] + [sign[(i - j) % prime] + (i == j) for j in range(prime)] for i in range(prime)]
            with torch.inference_mode(False):  # what is kept must also serve where gradients are wanted
                return torch.tensor([[1] * order, *below])
        order *= 2
    if odd == 1:
        with torch.inference_mode(False):
            return torch.ones(1, 1, dtype=torch.int64)
    raise ValueError(
        f"the inner width must be a power of two times an m with m - 1 prime, such as 12 or 20, got {size}; "
        "take rotate=False"
    )


def rotate(x: Tensor) -> Tensor:
    """Orthonormal Hadamard transform of the last axis, in n·log n additions.

    Args:
        x: (…, n).

    Returns:
        (…, n), of the same length.
    """
    size = x.shape[-1]
    small = hadamard(size).to(x)
    step, y = 1, x
    while step * len(small) < size:
        # (…, n / 2h, 2, h): butterflies between neighbours h apart
        first, second = y.reshape(*x.shape[:-1], -1, 2, step).unbind(-2)
        y = torch.stack([first + second, first - second], dim=-2)
        step *= 2
    y = y.reshape(*x.shape[:-1], len(small), -1)
    return (small @ y).reshape(x.shape) / size**0.5


class Rotation(nn.Module):
    """`rotate` as a module, (…, n) to (…, n)."""

    def forward(self, x: Tensor) -> Tensor:
        return rotate(x)


def rotate_(model: nn.Module) -> nn.Module:
    """Fold the transform into every mixer of a model, in place and without rounding.

    Args:
        model: holds mixers of `foveal.nn.mamba`.

    Returns:
        The model, which computes what it did.
    """
    for mixer in integers_(model):
        if not isinstance(mixer.rotation, Rotation):
            mixer.put("out_proj", rotate(mixer.weight("out_proj")))
            mixer.rotation = Rotation()
    return model


@dataclass(frozen=True)
class Quamba:
    """What `quamba_` does.

    Args:
        percentile: p, share of the scan's input in (0, 1] that is not clipped.
        rotate: whether the scan's output is rotated.

    Raises:
        ValueError: a percentile out of range.
    """

    percentile: float = 0.99999
    rotate: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile must be in (0, 1], got {self.percentile}; 1 clips nothing")


def quamba_(
    model: nn.Module,
    calibration: Tensor | Iterable[Tensor],
    config: Quamba = Quamba(),
) -> nn.Module:
    """Quantise the Mamba mixers of a trained model to eight bits, in place.

    Args:
        model: holds mixers of `foveal.nn.mamba`.
        calibration: inputs of the model, in batches or as one tensor.
        config: what to do; `Quamba(percentile=1, rotate=False)` is plain rounding with one scale a tensor.

    Returns:
        The model.

    Raises:
        ValueError: it was quantised before.
    """
    mixers = integers_(model)
    if any(isinstance(part, Codes) for mixer in mixers for part in mixer.modules()):
        raise ValueError("model must be in floating point, got one that is quantised; load its weights again")
    if config.rotate:
        rotate_(model)
    watches = {
        mixer.point(name): Watch(percentile=config.percentile if name in ("u", "u_b") else 1.0)
        for mixer in mixers
        for name in mixer.points
    }
    for point, watch in watched(model, calibration, watches).items():
        point.set(watch.clip())
    for mixer in mixers:
        for name in mixer.weights:
            if name.removesuffix("_b") in ROUNDED:
                mixer.put(name, Codes(*per_tensor(mixer.weight(name))))
    return model


PLAIN = Quamba(percentile=1.0, rotate=False)


def _small_vim() -> nn.Module:
    from foveal.models.backbone.vim import vim

    return vim(64, depth=4, state=8, patch_size=4, grid=(8, 8), num_classes=10)


@lru_cache(maxsize=4)
def small_vim(seed: int) -> nn.Module:
    from foveal.train.classify import train_classifier

    return train_classifier(_small_vim, steps=500, seed=seed)


@lru_cache(maxsize=16)
def _accuracy(seed: int, config: Quamba | None) -> float:
    from foveal.train.classify import accuracy, cifar10

    model = copy.deepcopy(small_vim(seed))
    if config is not None:
        quamba_(model, cifar10("train")[0][:512], config)
    return accuracy(model, cifar10("test", limit=4000))


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
    from onnx import TensorProto, helper, numpy_helper

    from foveal.runtime.ort import load_onnxruntime

    onnxruntime, quantization = load_onnxruntime(), load_onnxruntime("quantization")
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
                quantization.quantize_dynamic(path, path, weight_type=quantization.QuantType.QInt8)
            finally:
                logging.disable(logging.NOTSET)
        data = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": tokens})


METHOD = Method(
    id=275,
    name="Quamba",
    kind="transform",
    summary="Eight-bit Mamba after training: the scan's input is clipped, its output rotated.",
    paper=Paper(
        "Quamba: A Post-Training Quantization Recipe for Selective State Space Models",
        "H.-Y. Chiang et al.",
        2025,
        "arXiv:2410.13229",
    ),
    claims=(
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
    ),
)
