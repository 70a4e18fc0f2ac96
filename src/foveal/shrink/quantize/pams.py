"""PAMS: integers for super-resolution, with a trained bound at which each layer's inputs are clipped.

*Source*: H. Li et al., "PAMS: Quantized Super-Resolution via Parameterized Max Scale", ECCV 2020 (arXiv:2011.04212),
section 3. Networks without normalisation have activations of a wide range, most of which few values use. Inputs x of
a layer are clipped at ±α and rounded to n bits; weights are rounded without clipping, α being their largest magnitude:

    Q(x) = α/m · round(m/α · clip(x, −α, α)),   m = 2^(n−1) − 1
    ∂Q/∂x = 1 where |x| < α, else 0;   ∂Q/∂α = (Q(x) − x) / α where |x| < α, else sign(x)

α starts from the largest magnitudes seen on calibration data and is trained with the weights. Fine-tuning adds the
structured knowledge transfer (SKT) loss between the features F, (B, C, H, W), of the quantised network and those of
the original one:

    a(F) = mean_c F² as a vector of H·W,   L = L1 + w · mean |a(F_S)/‖a(F_S)‖ − a(F_T)/‖a(F_T)‖|²

*Differs from the paper*: each quantised layer's inputs are rounded; the authors' code rounds branch and shortcut of a
block instead. α starts from the mean over calibration inputs, where that code keeps a running mean over an epoch. w is
their 1000 for pictures in 0 to 255, divided by 255 for pictures in [0, 1]. Their learning rate of α, a hundred times
that of the weights on that scale, is the factor `pace` here.

*Provenance*: written from the paper; positions, loss weight and learning rates looked up in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.data import calibration
from foveal.shrink.quantize.fake import quantized_, round_through, straight_through

if TYPE_CHECKING:
    from foveal.shrink.data import Data
    from foveal.shrink.distill.distillation import Views
    from foveal.shrink.step import Inputs

__all__ = ["PAMS", "MaxScale", "MaxWeight", "max_scale", "skt", "transfer"]


def max_scale(x: Tensor, alpha: Tensor, *, bits: int) -> Tensor:
    """Clip to ±α and round to signed integers of α / (2^(bits−1) − 1).

    Args:
        x: values of any shape.
        alpha: α, above 0, a scalar.
        bits: n, at least 2.

    Returns:
        Values on the grid; gradients reach `x` inside the range, and `alpha` from values outside and from rounding.
    """
    step = alpha / (2 ** (bits - 1) - 1)
    clipped = torch.maximum(torch.minimum(x, alpha), -alpha)
    return round_through(clipped / step) * step


def skt(student: Tensor, teacher: Tensor) -> Tensor:
    """Structured knowledge transfer: squared difference of the normalised maps of mean squared features.

    Args:
        student: features of the student, (B, C, H, W).
        teacher: features of the teacher, (B, C', H, W).

    Returns:
        Scalar.
    """
    ours, theirs = (F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (student, teacher))
    return (ours - theirs).square().mean()


def transfer(views: Views, *, weight: float = 1000 / 255) -> Tensor:
    """Loss of the fine-tuning: absolute error against the picture plus SKT of the last tap.

    Args:
        views: what the quantised network and the original one make of a batch, with one tap or more of each.
        weight: w, the weight of SKT for pictures in [0, 1].

    Returns:
        Scalar.
    """
    pixels = F.l1_loss(views.student, views.targets)
    return pixels + weight * skt(views.student_features[-1], views.teacher_features[-1])


class MaxScale(nn.Module):
    """Quantiser of activations with a trained bound.

    Args:
        bits: n, 2 to 16.
        pace: how many times as fast as the weights α moves under an optimiser whose steps do not depend on the size of
            the gradient, such as Adam; α is stored divided by it.
    """

    def __init__(self, bits: int, *, pace: float = 10.0) -> None:
        super().__init__()
        self.bits, self.pace = bits, pace
        self.paced = nn.Parameter(torch.tensor(1.0 / pace))

    @property
    def alpha(self) -> Tensor:
        """The bound α, at least 1e-6."""
        return (self.pace * self.paced).clamp_min(1e-6)

    def start(self, alpha: float) -> None:
        """Set the bound.

        Args:
            alpha: α, above 0.
        """
        with torch.no_grad():
            self.paced.fill_(alpha / self.pace)

    def forward(self, x: Tensor) -> Tensor:
        return max_scale(x, self.alpha, bits=self.bits)


class MaxWeight(nn.Module):
    """Quantiser of a weight between plus and minus its largest magnitude; gradients pass as through the identity.

    Args:
        bits: n, 2 to 16.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.most = bits, 2 ** (bits - 1) - 1

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, self.decode(*self.encode(x)))

    def encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode a weight.

        Args:
            x: weight of any shape.

        Returns:
            Codes in [0, 2^bits − 2], int64, of the same shape; `scale`.
        """
        scale = (x.detach().abs().amax() / self.most).clamp_min(1e-12)
        return (x.detach() / scale).round().long() + self.most, {"scale": scale}

    def decode(self, codes: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Decode a weight.

        Args:
            codes: codes.
            constants: `scale`.

        Returns:
            Weight.
        """
        return (codes - self.most) * constants["scale"]


@dataclass(frozen=True)
class PAMS:
    """Step: quantise a part of a network, ready to be fine-tuned with `transfer`.

    Args:
        bits: bits of weights and activations, 2 to 16.
        part: name of the submodule whose layers are quantised, in the paper the blocks between the first and the last
            convolutions; "" for all layers but the first and the last.
        pace: see `MaxScale`.

    Raises:
        ValueError: bits outside their range.
    """

    bits: int = 8
    part: str = "body"
    pace: float = 10.0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be in 2 to 16, got {self.bits}")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Insert quantisers and set each α to the mean over the inputs of the largest magnitude that its layer sees.

        Args:
            model: network; layers are replaced in place.
            data: inputs of the model.

        Returns:
            The same model in eval mode.

        Raises:
            ValueError: no such part, nothing to quantise in it, a model that is quantised already, or no data.
        """
        parts = [name for name, _ in model.named_children()]
        if self.part and self.part not in dict(model.named_modules()):
            raise ValueError(
                f"{type(model).__name__} has no part {self.part!r}; give one of {', '.join(parts)}, or '' for all"
            )
        inputs = calibration(data, step="PAMS", limit=64)
        quantized_(
            model.eval(),
            weight=lambda _: MaxWeight(self.bits),
            inputs=lambda _: MaxScale(self.bits, pace=self.pace),
            choose=(lambda name, _: f"{name}.".startswith(f"{self.part}.")) if self.part else None,
        )
        found: dict[MaxScale, Tensor] = {}

        def watch(quantizer: MaxScale, given: tuple[Tensor], _: Tensor) -> Tensor:
            found[quantizer] = given[0].abs().flatten(1).amax(1).mean()
            return given[0]

        handles = [m.register_forward_hook(watch) for m in model.modules() if isinstance(m, MaxScale)]  # type: ignore[arg-type]
        with torch.no_grad():
            model(inputs)
        for handle in handles:
            handle.remove()
        for scale, value in found.items():
            scale.start(float(value))
        return model


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ends = [nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3)]
        return nn.Sequential(ends[0], nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), ends[1])


def _pictures(seed: int) -> Tensor:
    return torch.rand(2, 2, 10, 11, generator=torch.Generator().manual_seed(seed))


METHOD = Method(
    id=140,
    name="PAMS",
    kind="transform",
    summary="Super-resolution networks compute with integers, and the bound of each layer's inputs is trained.",
    paper=Paper(
        "PAMS: Quantized Super-Resolution via Parameterized Max Scale", "H. Li et al.", 2020, "arXiv:2011.04212"
    ),
    cases={
        "conv": Transform(
            lambda model: PAMS(4, part="1").apply(model, _pictures(1)),
            _tiny,
            _pictures,
            lambda model: PAMS(16, part="1").apply(model, 2 * _pictures(1)),
            tolerance=1e-3,
            twice="the model is quantised already",
        )
    },
)
