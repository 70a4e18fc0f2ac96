"""GPUSQ-ViT: linear layers keep two of four weights, then their integers of eight or four bits; the dense one teaches.

*Source*: C. Yu et al., "Boost Vision Transformer with GPU-Friendly Sparsity and Quantization", CVPR 2023
(arXiv:2305.10727), section 3.

    mask: of every four weights in a row, the two of largest magnitude stay
    loss = α·CE(s, y) + β·T²·KL(t/T ‖ s/T) + γ·Σ w·d,   d = ‖F_s − F_t‖² / ‖F_t‖²,   w = d / Σ d

First a network trains under the masks, then under the same masks with fake-quantised weights (a scale for each output)
and inputs; both times the dense network is the teacher. F are tokens after each block; the sum is over pictures and
blocks, so those that match worst weigh most (w carries no gradient). Without labels, y is the teacher's decision.

A group of four weights is stored as two integers of b bits and two positions of two bits, 2b + 4 bits: 6.4 times fewer
than FP32 for INT8, 10.7 for INT4.

Shapes: weights (out, in); features (B, N, C); logits (B, classes).

*Differs from the paper*: distances are relative to the teacher's features, so that blocks of different scale compare.
Defaults of α, β, γ and T are our own. INT4 is stored as 2:4; the paper's 12.7 times counts positions of pairs (4:8).
*Provenance*: written from the paper.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.data import Data
from foveal.shrink.distill.distillation import Distil, Views, soft_targets
from foveal.shrink.prune.masks import bake_, mask_, n_of_m_mask
from foveal.shrink.quantize.fake import MinMax, QuantizedLayer, quantized_, quantized_layers
from foveal.shrink.quantize.packed import pack

if TYPE_CHECKING:
    from foveal.shrink.step import Inputs

__all__ = [
    "GPUSQViT",
    "compress",
    "expand",
    "feature_loss",
    "mixed_loss",
    "quantize_sparse_",
    "sparse_",
    "stored",
    "stored_bits",
]


def feature_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """Distance of features; pictures and layers that match worst weigh most.

    Args:
        student: the student's features, each (B, …).
        teacher: the teacher's features, of the same shapes.

    Returns:
        Scalar.
    """
    pairs = list(zip(student, teacher, strict=True))
    # (layers, B)
    distance = torch.stack(
        [(s - t).square().flatten(1).mean(1) / t.square().flatten(1).mean(1).clamp(min=1e-8) for s, t in pairs]
    )
    weight = distance.detach() / distance.detach().sum().clamp(min=1e-12)
    return (weight * distance).sum()


def mixed_loss(
    views: Views,
    *,
    hard: float = 1.0,
    soft: float = 1.0,
    feature: float = 1.0,
    temperature: float = 2.0,
    supervised: bool = True,
) -> Tensor:
    """Distillation by labels, logits and features.

    Args:
        views: what student and teacher make of a batch.
        hard: weight of the labels, α.
        soft: weight of the logits, β.
        feature: weight of the features, γ.
        temperature: T of the logits, above 0.
        supervised: whether labels are those of the data; else they are the teacher's decisions.

    Returns:
        Scalar.
    """
    labels = views.targets if supervised else views.teacher.argmax(1)
    loss = hard * F.cross_entropy(views.student, labels)
    loss = loss + soft * soft_targets(views.student, views.teacher, temperature=temperature)
    if not views.student_features:
        return loss
    return loss + feature * feature_loss(views.student_features, views.teacher_features)


def sparse_(model: nn.Module) -> nn.Module:
    """Mask the linear layers of a network: of every four weights in a row, the two largest stay.

    Args:
        model: network; layers whose number of inputs is no multiple of four stay dense.

    Returns:
        The same model.

    Raises:
        ValueError: no layer to mask.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.in_features % 4 == 0}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer whose number of inputs is a multiple of four")
    return mask_(model, {name: n_of_m_mask(layer.weight.detach().abs(), 2, 4) for name, layer in layers.items()})


def quantize_sparse_(model: nn.Module, *, bits: int = 8) -> nn.Module:
    """Quantise the masked linear layers of a network: weights with a scale for each output, inputs with one range.

    Zeros stay zeros, so quantised weights follow the mask.

    Args:
        model: network with masks.
        bits: bits of weights and inputs, 2 to 16.

    Returns:
        The same model.
    """
    return quantized_(
        model,
        weight=lambda layer: MinMax(bits, axis=0, symmetric=True),  # noqa: ARG005 - the same for all layers
        inputs=lambda layer: MinMax(bits),  # noqa: ARG005
        choose=lambda name, layer: isinstance(layer, nn.Linear) and layer.in_features % 4 == 0,  # noqa: ARG005
    )


def compress(values: Tensor) -> tuple[Tensor, Tensor]:
    """Two values and two positions for every four in a row.

    Args:
        values: values with at most two of four other than zero, (out, in).

    Returns:
        Values that stay, (out, in/2), and their positions in the group, 0 to 3, ascending, (out, in/2).

    Raises:
        ValueError: a row that does not divide into groups, or a group with more than two values.
    """
    if values.shape[1] % 4:
        raise ValueError(f"rows of {values.shape[1]} values do not divide into groups of four; keep this layer dense")
    groups = values.view(len(values), -1, 4)
    if int((groups != 0).sum(-1).max()) > 2:
        raise ValueError("a group of four holds more than two values other than zero; mask it with sparse_")
    positions = (groups != 0).int().sort(dim=-1, descending=True, stable=True).indices[..., :2].sort(-1).values
    return groups.gather(-1, positions).flatten(1), positions.flatten(1)


def expand(values: Tensor, positions: Tensor) -> Tensor:
    """Undo `compress`.

    Args:
        values: values that stay, (out, in/2).
        positions: their positions, (out, in/2).

    Returns:
        Values, (out, in).
    """
    groups = values.new_zeros(len(values), values.shape[1] // 2, 4)
    return groups.scatter(-1, positions.view(len(values), -1, 2), values.view(len(values), -1, 2)).flatten(1)


def stored(layer: QuantizedLayer) -> dict[str, Tensor]:
    """What a file holds of a layer's weight.

    Args:
        layer: layer made by `quantize_sparse_`.

    Returns:
        Packed bytes of its `codes` and of their `positions`; `scale` of each output.
    """
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, MinMax)
    codes, constants = quantizer.encode(layer.layer.weight)
    zero = 2 ** (quantizer.bits - 1)
    values, positions = compress(codes - zero)
    return {
        "codes": pack(values + zero, quantizer.bits),
        "positions": pack(positions, 2),
        "scale": constants["scale"].flatten(),
    }


def stored_bits(out_features: int, in_features: int, *, bits: int = 8) -> int:
    """Bits of a weight's codes and positions.

    Args:
        out_features: number of outputs.
        in_features: number of inputs, a multiple of four.
        bits: bits of a code, b.

    Returns:
        out·in/4·(2b + 4).
    """
    return out_features * in_features // 4 * (2 * bits + 4)


@dataclass(frozen=True)
class GPUSQViT:
    """Step: prune the linear layers to 2:4, then quantise them, each time with the dense network as teacher.

    Args:
        bits: bits of weights and inputs, 2 to 16.
        steps: number of training steps of each of the two stages, at least 1.
        lr: peak learning rate of AdamW, above 0.
        hard: weight of the labels.
        soft: weight of the logits.
        feature: weight of the features.
        temperature: temperature of the logits.
        supervised: whether labels are those of the data; else they are the teacher's decisions.
        taps: modules whose outputs are the features; None takes `blocks.0`, `blocks.1` … of a vision transformer.
    """

    bits: int = 8
    steps: int = 500
    lr: float = 5e-4
    hard: float = 1.0
    soft: float = 1.0
    feature: float = 1.0
    temperature: float = 2.0
    supervised: bool = True
    taps: tuple[str, ...] | None = None

    def distil(self, teacher: nn.Module) -> Distil:
        """Training of one stage.

        Args:
            teacher: dense network.

        Returns:
            The step.
        """
        taps = self.taps
        if taps is None:
            taps = tuple(f"blocks.{i}" for i in range(len(getattr(teacher, "blocks", ()))))
        loss = partial(
            mixed_loss,
            hard=self.hard,
            soft=self.soft,
            feature=self.feature,
            temperature=self.temperature,
            supervised=self.supervised,
        )
        return Distil(teacher, lambda: loss, steps=self.steps, lr=self.lr, student_taps=taps, teacher_taps=taps)

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Prune, quantise and train a model.

        Args:
            model: trained network with linear layers.
            data: `Data` with `batches` and `loss`.

        Returns:
            The same model in eval mode, with `QuantizedLayer`s whose weights hold at most two of four values.

        Raises:
            ValueError: a model that is quantised already.
        """
        if found := next((name for name, _ in quantized_layers(model)), None):
            raise ValueError(f"the model is quantised already ({found}); give the dense one")
        distil = self.distil(copy.deepcopy(model))
        distil.apply(sparse_(model), data)
        distil.apply(quantize_sparse_(model, bits=self.bits), data)
        return bake_(model)


class _Tiny(nn.Module):
    """(B, 6) to (B, 3), with two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)  # stays dense: six inputs
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Tiny()


def _inputs(seed: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


def _applied(model: nn.Module) -> nn.Module:
    labels = torch.arange(4) % 3
    data = Data(_inputs(0), lambda _: 0.0, batches=lambda step: (_inputs(step), labels), loss=F.cross_entropy)
    return GPUSQViT(steps=2).apply(model, data)


METHOD = Method(
    id=210,
    name="GPUSQ-ViT",
    kind="transform",
    summary="Linear layers keep two of four weights as eight-bit integers; the dense network teaches the sparse one.",
    paper=Paper(
        "Boost Vision Transformer with GPU-Friendly Sparsity and Quantization", "C. Yu et al.", 2023, "arXiv:2305.10727"
    ),
    cases={"linear layers": Transform(_applied, _tiny, _inputs, twice="is quantised already")},
)
