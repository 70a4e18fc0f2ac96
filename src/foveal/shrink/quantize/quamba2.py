"""Quamba2: four-bit weights for a Mamba mixer, with the scan's channels sorted and clustered to share scales.

*Source*: H.-Y. Chiang et al., "Quamba2: A Robust and Scalable Post-training Quantization Framework for Selective State
Space Models", ICML 2025 (arXiv:2503.22879), section 3. The scan processes every channel independently, so its channels
can be in any order, and large ones stay large. They are sorted by their largest value during calibration, together with
every weight, which leaves the output unchanged; then neighbours are clustered, and each cluster has one scale:

    order = argsort(max_c);   k-means of max_c → clusters;   scale_g = (largest in cluster g) / 127

B and C have one scale per group of states. Four-bit weights have one scale per output and `group_size`
inputs. They are rounded input by input as in GPTQ (E. Frantar et al., arXiv:2210.17323): with M the upper Cholesky
factor of the inverse of the damped Hessian X Xᵀ, the error of input i is compensated by the following inputs,

    e = (w_i - round(w_i)) / M_ii;   w_j ← w_j - e · M_ij,  j > i

The output is rotated as in Quamba.

*Differs from the paper*: for Mamba-1, whose channels are not grouped into heads and whose states are one group: the
channels are clustered in one step, and groups of states are neighbours among the D. The Hessians of all layers come
from the network in floating point. The residual stream is not rotated. Integer arithmetic is simulated.

*Provenance*: written from the paper; damping, group size and which weights have four bits looked up in the authors'
code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.quantize.codes import Codes, per_tensor, round_to
from foveal.shrink.quantize.mamba import IntegerMamba, integers_
from foveal.shrink.quantize.points import Watch, watched
from foveal.shrink.quantize.quamba import ROUNDED, floating, given, rotate_, tiny_mixers, tiny_tokens

if TYPE_CHECKING:
    from foveal.shrink.step import Inputs

__all__ = ["Quamba2", "clips", "cluster", "clustered", "gptq", "packed_bytes", "permute_", "sort_"]

SEEN_BY = {"in_proj": "tokens", "x_proj": "u", "out_proj": "y"}  # four-bit weights and the points before them


def cluster(largest: Tensor, groups: int, *, rounds: int = 50) -> Tensor:
    """Clusters of neighbours in a sorted list: one-dimensional k-means, initialised with equal parts.

    Args:
        largest: sorted values, (C,).
        groups: number of clusters, at most C.
        rounds: largest number of k-means iterations.

    Returns:
        Cluster of each value, int64 from 0 upward, (C,).
    """
    count = len(largest)
    label = torch.arange(count, device=largest.device) * groups // count
    for _ in range(rounds):
        sums = largest.new_zeros(groups).index_add_(0, label, largest)
        sizes = largest.new_zeros(groups).index_add_(0, label, torch.ones_like(largest))
        centre = sums / sizes
        nearest = (largest[:, None] - centre).abs().argmin(1)
        # An empty cluster would have no centre; the last clusters without an empty one are kept.
        if len(nearest.unique()) < groups or torch.equal(nearest, label):
            break
        label = nearest
    return label


def gptq(
    weight: Tensor, hessian: Tensor, *, bits: int = 4, group_size: int = 128, damping: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Round a weight so that its layer's outputs change little.

    Args:
        weight: weight W, (outputs, inputs).
        hessian: matrix X Xᵀ of the calibration inputs, (inputs, inputs).
        bits: bits per code.
        group_size: number of inputs that share a scale.
        damping: term added to the diagonal, relative to its mean.

    Returns:
        Codes, int8, (outputs, inputs); scales, half precision, (outputs, groups).
    """
    left, curve = weight.double().clone(), hessian.double().clone()
    diagonal = curve.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    left[:, dead] = 0
    diagonal += damping * diagonal.mean()
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(curve)), upper=True)
    codes, scales = torch.empty_like(weight, dtype=torch.int8), []
    for i in range(weight.shape[1]):
        if i % group_size == 0:
            # rounded to half precision here, so that the codes fit the stored scales
            peak = left[:, i : i + group_size].abs().amax(1).clamp(min=1e-6)
            scales.append((peak * 2 / (2**bits - 1)).half())
        scale = scales[-1].double()
        codes[:, i] = round_to(left[:, i], scale, bits=bits).to(torch.int8)
        error = (left[:, i] - codes[:, i] * scale) / factor[i, i]
        left[:, i + 1 :] -= error[:, None] * factor[i, i + 1 :]
    return codes, torch.stack(scales, dim=1)


def permute_(mixer: IntegerMamba, order: Tensor) -> None:
    """Permute the scanned channels of a mixer, in place; its output stays the same.

    Args:
        mixer: mixer that is not rotated yet.
        order: permutation of its inner channels, (E,).
    """
    both = torch.cat([order, order + len(order)])  # x and z
    mixer.put("in_proj", mixer.weight("in_proj")[both])
    mixer.put("out_proj", mixer.weight("out_proj")[:, order])
    for way in mixer.ways:
        mixer.put(f"x_proj{way}", mixer.weight(f"x_proj{way}")[:, order])
        for name in ("conv1d", "conv_bias", "dt_proj", "dt_bias", "A_log", "D"):
            mixer.put(f"{name}{way}", mixer.weight(f"{name}{way}")[order])


def sort_(mixers: list[IntegerMamba], model: nn.Module, calibration: Tensor | list[Tensor]) -> None:
    """Sort the channels of every mixer by their largest value in either direction, in place.

    Args:
        mixers: mixers of the model.
        model: model that contains them.
        calibration: inputs of the model.
    """
    watches = {mixer.point(f"u{way}"): Watch() for mixer in mixers for way in mixer.ways}
    watched(model, calibration, watches)
    for mixer in mixers:
        largest = torch.stack([_largest(watches[mixer.point(f"u{way}")]) for way in mixer.ways]).amax(0)
        permute_(mixer, largest.argsort())


def _largest(watch: Watch) -> Tensor:
    assert watch.largest is not None
    return watch.largest


def clips(watch: Watch, label: Tensor) -> Tensor:
    """Largest value of each channel's group.

    Args:
        watch: statistics of the channels.
        label: group of each channel, (C,).

    Returns:
        Largest values, (C,).
    """
    largest = _largest(watch)
    return largest.new_zeros(int(label.max()) + 1).scatter_reduce(0, label, largest, "amax")[label]


def clustered(mixer: IntegerMamba, watches: dict[str, Watch], clusters: int) -> Tensor:
    """Clusters of the sorted channels of a mixer, shared by both directions.

    Args:
        mixer: mixer with sorted channels.
        watches: statistics of its points.
        clusters: number of clusters.

    Returns:
        Cluster of each channel, (C,).
    """
    largest = torch.stack([_largest(watches[f"u{way}"]) for way in mixer.ways]).amax(0)
    return cluster(largest.sort().values, min(clusters, len(largest)))


def _scales_(mixer: IntegerMamba, watches: dict[str, Watch], config: Quamba2) -> None:
    clusters = clustered(mixer, watches, config.clusters)
    for name, watch in watches.items():
        kind, largest = name.removesuffix("_b"), _largest(watch)
        if kind == "u":
            mixer.point(name).set(clips(watch, clusters))
        elif kind in ("B", "C"):
            if len(largest) % config.state_groups:
                raise ValueError(f"state_groups must divide the {len(largest)} states, got {config.state_groups}")
            label = torch.arange(len(largest), device=largest.device) * config.state_groups // len(largest)
            mixer.point(name).set(clips(watch, label))
        else:
            mixer.point(name).set(watch.clip())


@dataclass(frozen=True)
class Quamba2:
    """Quantise the Mamba mixers of a trained model with weights of four or eight bits.

    Args:
        weight_bits: bits of the weights of `in_proj`, `x_proj` and `out_proj`: 4 or 8.
        activation_bits: bits of the activations: 8, or 16 for no rounding.
        clusters: number of clusters of scanned channels, at least 1.
        state_groups: number of groups of states in B and C, at least 1; must divide the number of states.
        group_size: number of inputs that share a scale with four-bit weights, even.
        damping: damping of the Hessian, above 0.
        rotate: whether to rotate the scan's output.

    Raises:
        ValueError: a value out of range.
    """

    weight_bits: int = 4
    activation_bits: int = 8
    clusters: int = 4
    state_groups: int = 4
    group_size: int = 128
    damping: float = 0.01
    rotate: bool = True

    def __post_init__(self) -> None:
        if self.weight_bits not in (4, 8):
            raise ValueError(f"weight_bits must be 4 or 8, got {self.weight_bits}")
        if self.activation_bits not in (8, 16):
            raise ValueError(f"activation_bits must be 8 or 16, got {self.activation_bits}")
        if self.clusters < 1 or self.state_groups < 1:
            raise ValueError(
                f"clusters and state_groups must be at least 1, got {self.clusters} and {self.state_groups}"
            )
        if self.group_size < 2 or self.group_size % 2:
            raise ValueError(f"group_size must be even, got {self.group_size}; two codes share a byte")
        if self.damping <= 0:
            raise ValueError(f"damping must be above 0, got {self.damping}")

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:
        """Quantise the Mamba mixers of a trained model, in place.

        Args:
            model: network that contains mixers of `foveal.nn.mamba`.
            data: calibration inputs of the model, as one tensor or in batches.

        Returns:
            The model.

        Raises:
            ValueError: no calibration inputs, a model that is already quantised, or a number of states that
                `state_groups` does not divide.
        """
        mixers = floating(model)
        data = given(data)
        batches = data if isinstance(data, Tensor) else list(data)
        sort_(mixers, model, batches)
        if self.rotate:
            rotate_(model)
        before = set(SEEN_BY.values())
        watches = {
            mixer: {name: Watch(gram=name.removesuffix("_b") in before) for name in mixer.points} for mixer in mixers
        }
        watched(model, batches, {m.point(name): watch for m, seen in watches.items() for name, watch in seen.items()})
        for mixer, seen in watches.items():
            if self.activation_bits == 8:
                _scales_(mixer, seen, self)
            for name in mixer.weights:
                kind = name.removesuffix("_b")
                if kind in SEEN_BY and self.weight_bits == 4:
                    gram = seen[name.replace(kind, SEEN_BY[kind])].gram
                    assert gram is not None
                    codes, scale = gptq(mixer.weight(name), gram, group_size=self.group_size, damping=self.damping)
                    mixer.put(name, Codes(codes, scale, bits=4, group_size=self.group_size))
                elif kind in ROUNDED:
                    mixer.put(name, Codes(*per_tensor(mixer.weight(name))))
        return model


def packed_bytes(model: nn.Module) -> tuple[int, int]:
    """Size of a model's quantised weights.

    Args:
        model: model quantised by `Quamba` or `Quamba2`.

    Returns:
        Bytes of codes and scales; bytes of the same weights in half precision.
    """
    parts = [part for part in model.modules() if isinstance(part, Codes)]
    return sum(part.nbytes for part in parts), sum(2 * part.codes().numel() for part in parts)


METHOD = Method(
    id=283,
    name="Quamba2",
    kind="transform",
    summary="Mamba with four-bit weights: channels are sorted and clustered, and each cluster has its scale.",
    cases={
        "two mixers": Transform(
            lambda model: Quamba2(state_groups=2, group_size=4).apply(model, tiny_tokens(1)),
            tiny_mixers,
            tiny_tokens,
            lambda model: sort_(integers_(model), model, tiny_tokens(1)),
            twice="is quantised",
        )
    },
    paper=Paper(
        "Quamba2: A Robust and Scalable Post-training Quantization Framework for Selective State Space Models",
        "H.-Y. Chiang et al.",
        2025,
        "arXiv:2503.22879",
    ),
)
