"""Quamba: eight bits for a Mamba mixer, with the scan's input clipped and its output rotated.

*Source*: H.-Y. Chiang et al., "Quamba: A Post-Training Quantization Recipe for Selective State Space Models", ICLR 2025
(arXiv:2410.13229), section 4. Every tensor has one scale, found on calibration data. Two tensors are treated
specially. The few largest values of the scan's input u, to which the recurrence is sensitive, are clipped:

    scale_u = (percentile p of |u|) / 127

The gated output y has large outliers in a few channels. A Hadamard transform spreads them over all channels, and its
inverse is folded into the projection, so that only rounding changes:

    out = W_out y = (W_out Hᵀ)(H y),   H Hᵀ = 1

*Differs from the paper*: p is averaged over batches with equal weights, where the authors' code forgets slowly; step, B
and C have a scale each, where that code takes one for the three; biases of the convolution and the state stay in
floating point; integer arithmetic is simulated. Widths are 2^k · m with m = 1 or m - 1 prime (Paley's construction),
which covers those of the published networks.

*Provenance*: written from the paper; which tensors are rounded looked up in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.nn.mamba import Mamba
from foveal.record import Method, Paper
from foveal.shrink.quantize.codes import Codes, per_tensor
from foveal.shrink.quantize.mamba import IntegerMamba, integers_
from foveal.shrink.quantize.points import Watch, watched

if TYPE_CHECKING:
    from foveal.shrink.step import Inputs

__all__ = ["Quamba", "Rotation", "floating", "given", "hadamard", "rotate", "rotate_", "tiny_mixers", "tiny_tokens"]

ROUNDED = ("in_proj", "out_proj", "conv1d", "x_proj", "dt_proj", "dt_bias", "A_log", "D")


@lru_cache(maxsize=16)
def hadamard(size: int) -> Tensor:
    """The small factor of a Hadamard matrix whose order is not a power of two.

    Paley's construction: for a prime q of the form 4k + 3, the bordered matrix of residues modulo q has order q + 1.

    Args:
        size: width of the transform, n.

    Returns:
        Matrix of ±1, (m, m), with the least m for which n / m is a power of two. Cached between calls: do not modify
        it.

    Raises:
        ValueError: no construction for this size.
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
            with torch.inference_mode(False):  # the cached tensor must also work with gradients
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
        x: values, (…, n).

    Returns:
        Transformed values, (…, n), of the same norm.
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
        model: network that contains mixers of `foveal.nn.mamba`.

    Returns:
        The model, with the same outputs.
    """
    for mixer in integers_(model):
        if not isinstance(mixer.rotation, Rotation):
            mixer.put("out_proj", rotate(mixer.weight("out_proj")))
            mixer.rotation = Rotation()
    return model


def floating(model: nn.Module) -> list[IntegerMamba]:
    """The mixers of a model in floating point, prepared for quantisation.

    Args:
        model: network that contains mixers of `foveal.nn.mamba`.

    Returns:
        Its mixers.

    Raises:
        ValueError: the model is already quantised, or has no mixers.
    """
    mixers = integers_(model)
    if any(isinstance(part, Codes) for mixer in mixers for part in mixer.modules()):
        raise ValueError("model must be in floating point, got one that is quantised; load its weights again")
    return mixers


def given(data: Inputs | None) -> Inputs:
    """Check that there are calibration inputs.

    Args:
        data: argument of `Step.apply`.

    Returns:
        `data`.

    Raises:
        ValueError: `data` is None.
    """
    if data is None:
        raise ValueError(
            "calibration inputs are needed, got None; give a tensor of pictures or batches of them as data"
        )
    return data


@dataclass(frozen=True)
class Quamba:
    """Quantise the Mamba mixers of a trained model to eight bits; `Quamba(1.0, rotate=False)` is plain rounding.

    Args:
        percentile: p, share of the scan's input that is not clipped, in (0, 1].
        rotate: whether to rotate the scan's output.

    Raises:
        ValueError: a percentile out of range.
    """

    percentile: float = 0.99999
    rotate: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile must be in (0, 1], got {self.percentile}; 1 clips nothing")

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:
        """Quantise the Mamba mixers of a trained model to eight bits, in place.

        Args:
            model: network that contains mixers of `foveal.nn.mamba`.
            data: calibration inputs of the model, as one tensor or in batches.

        Returns:
            The model.

        Raises:
            ValueError: no calibration inputs, or a model that is already quantised.
        """
        mixers = floating(model)
        data = given(data)
        if self.rotate:
            rotate_(model)
        watches = {
            mixer.point(name): Watch(percentile=self.percentile if name in ("u", "u_b") else 1.0)
            for mixer in mixers
            for name in mixer.points
        }
        for point, watch in watched(model, data, watches).items():
            point.set(watch.clip())
        for mixer in mixers:
            for name in mixer.weights:
                if name.removesuffix("_b") in ROUNDED:
                    mixer.put(name, Codes(*per_tensor(mixer.weight(name))))
        return model


def tiny_mixers(seed: int) -> nn.Module:
    """Two small mixers for the common suite.

    Args:
        seed: seed of their weights.

    Returns:
        Network, (B, N, 16) to the same.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(Mamba(16, state=4), Mamba(16, state=4, bidirectional=True))


def tiny_tokens(seed: int) -> Tensor:
    """Inputs for `tiny_mixers`.

    Args:
        seed: seed of the values.

    Returns:
        Tokens, (2, 9, 16).
    """
    return torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(seed))


METHOD = Method(
    id=275,
    name="Quamba",
    kind="transform",
    summary="Eight-bit Mamba after training: the scan's input is clipped, its output rotated.",
    cases={
        "two mixers": Transform(
            lambda model: Quamba().apply(model, tiny_tokens(1)), tiny_mixers, tiny_tokens, rotate_, twice="is quantised"
        )
    },
    paper=Paper(
        "Quamba: A Post-Training Quantization Recipe for Selective State Space Models",
        "H.-Y. Chiang et al.",
        2025,
        "arXiv:2410.13229",
    ),
)
