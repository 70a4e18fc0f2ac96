"""A small trainer for claims: minutes, not hours, and the same result for the same seed.

`foveal.train.loop` is what trains networks to be used. This one keeps no checkpoints and no running average; it answers
"is this method better than that one after as many steps on the same patches?".
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from foveal.export.onnx import to_onnx
from foveal.measure import benchmarks
from foveal.measure.quality import benchmark_pairs, bicubic, from_torch, luma, psnr
from foveal.train.loop import fast_denormals, learning_rate
from foveal.train.restore.pairs import Pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

__all__ = ["brief", "gain", "quantized", "trained"]

STEPS = "FOVEAL_BRIEF_STEPS"  # overrides every number of steps, to try a claim's code in seconds
HELD_OUT = ("Set5", "Set14", "BSD100")
LIMIT = 30  # pictures of each set: a third of BSD100 tells as much as all of it, in a third of the time


def _tensor(pictures: NDArray[np.uint8], *, luminance: bool) -> Tensor:
    """(B, H, W, 3) pictures to (B, 3, H, W), or (B, 1, H, W) of luminance, in [0, 1]."""
    if luminance:
        flat = luma(pictures.reshape(-1, pictures.shape[2], 3))
        return torch.from_numpy(flat.astype(np.float32) / 255).view(len(pictures), 1, *pictures.shape[1:3])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)


@fast_denormals()
def brief(
    model: nn.Module,
    scale: int,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    fraction: float = 0.5,
    folder: Path | None = None,
    luminance: bool = False,
    patch: int = 24,
    batch: int = 8,
    lr: float = 2e-3,
) -> nn.Module:
    """Train for a little while: Adam, absolute error, half a cosine.

    Args:
        model: (B, C, H, W) to (B, C, s·H, s·W) in [0, 1]; trained in place.
        scale: s.
        steps: how many; the result then depends on nothing but the arguments and the model's first weights. The
            environment variable FOVEAL_BRIEF_STEPS overrides it.
        seconds: train for so long instead; the result then depends on the machine.
        seed: of the batches.
        fraction: most informative share of each picture's patches that is drawn from, in (0, 1]; 1 is uniform.
        folder: training pictures; None takes the benchmark set bsds400.
        luminance: C = 1: train on luminance.
        patch: side of a low-resolution patch, in pixels.
        batch: B.
        lr: peak step size.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: not exactly one of `steps` and `seconds`.
    """
    if (steps is None) == (seconds is None):
        raise ValueError(f"give exactly one of steps and seconds, got {steps} and {seconds}")
    if steps is not None:
        steps = int(os.environ.get(STEPS, steps))
    pairs = Pairs.from_folder(folder or benchmarks.find("bsds400"), scale, patch=patch, fraction=fraction)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
    model.train()
    begun, step, share = time.perf_counter(), 0, 0.0
    while share < 1:
        low, high = (_tensor(p, luminance=luminance) for p in pairs.batch(batch, np.random.default_rng((seed, step))))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 20) * learning_rate(round(share * 10_000), 10_000, 0)
        loss = F.l1_loss(model(low), high)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        share = step / steps if steps is not None else (time.perf_counter() - begun) / (seconds or 1.0)
    return model.eval()


@lru_cache(maxsize=4)
def trained(
    build: Callable[..., nn.Module],
    scale: int,
    *,
    steps: int,
    seed: int,
    fraction: float = 0.5,
    luminance: bool = False,
) -> nn.Module:
    """Build a network under a seed and train it; claims about the same network share it.

    Args:
        build: called with `scale` and `in_channels`.
        scale: s.
        steps: of training.
        seed: of weights and batches.
        fraction: see `brief`.
        luminance: see `brief`.

    Returns:
        The network in eval mode; not to be changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = build(scale, in_channels=1 if luminance else 3)
    return brief(model, scale, steps=steps, seed=seed, fraction=fraction, luminance=luminance)


@lru_cache(maxsize=4)
def _held_out(name: str, scale: int) -> tuple[tuple[NDArray[np.uint8], NDArray[np.uint8], float], ...]:
    """Low resolution, high resolution and bicubic's PSNR of each picture."""
    pairs = benchmark_pairs(benchmarks.find(name), scale, limit=LIMIT)
    return tuple((low, high, psnr(bicubic(scale)(low), high, shave=scale)) for _, low, high in pairs)


def gain(model: nn.Module, scale: int, *, luminance: bool = False, sets: Sequence[str] = HELD_OUT) -> float:
    """How far a network is above bicubic on pictures it has not seen.

    Args:
        model: (1, C, h, w) to (1, C, s·h, s·w) in [0, 1].
        scale: s.
        luminance: C = 1.
        sets: benchmark names; the first 30 pictures of each are taken.

    Returns:
        Difference of luminance PSNR, dB, averaged over all pictures.
    """
    upscale = from_torch(model, luminance=luminance)
    return float(
        np.mean([psnr(upscale(low), high, shave=scale) - base for s in sets for low, high, base in _held_out(s, scale)])
    )


class _Calibration:
    """Training patches in the form that ONNX Runtime's quantizer asks for."""

    def __init__(self, pictures: Tensor) -> None:
        self.left = iter(pictures.split(1))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        picture = next(self.left, None)
        return None if picture is None else {"image": picture.numpy()}


class _Onnx(torch.nn.Module):
    """An ONNX file as a module, for `gain`."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"image": x.numpy()})[0])


def quantized(
    model: nn.Module, scale: int, *, seed: int = 0, folder: Path | None = None, pictures: int = 64, patch: int = 24
) -> nn.Module:
    """Static eight-bit quantisation of weights and activations by ONNX Runtime, calibrated on training patches.

    Args:
        model: (B, 3, H, W) to (B, 3, s·H, s·W), exportable.
        scale: s.
        seed: of the choice of patches.
        folder: pictures to calibrate on; None takes the benchmark set bsds400.
        pictures: patches to calibrate on.
        patch: their side.

    Returns:
        A module that runs the quantised file.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    pairs = Pairs.from_folder(folder or benchmarks.find("bsds400"), scale, patch=patch)
    low, _ = pairs.batch(pictures, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as place:
        plain, eight = Path(place) / "model.onnx", Path(place) / "model_int8.onnx"
        to_onnx(model, plain, torch.rand(1, 3, 24, 20))
        logging.disable(logging.WARNING)  # it recommends a pass for graphs that are not folded yet; ours is
        try:
            quantize_static(
                plain,
                eight,
                _Calibration(_tensor(low, luminance=False)),  # type: ignore[arg-type]
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        finally:
            logging.disable(logging.NOTSET)
        return _Onnx(eight.read_bytes())
