"""DoubleRounding: one file of 8-bit integers, from which weights of fewer bits follow by rounding the integers again.

*Source*: H. Huang et al., "Nearly Lossless Adaptive Bit Switching", 2025 (arXiv:2502.01199), section 3. Weights w are
rounded once to the highest precision h and a second time, as integers, to a lower one l. Each precision has a step s of
its own, learnt for weights and for inputs:

    q_h = clamp(round(w / s_h), -2^(h-1), 2^(h-1) - 1)
    q_l = clamp((q_h + 2^(h-l-1)) >> (h - l), -2^(l-1), 2^(l-1) - 1);   w_l = q_l · s_l

All precisions are trained together: one step of the weights follows the sum of their losses. The steps s of a precision
learn more slowly the lower it is and the larger their gradients are (adaptive learning rate scaling),

    λ_b = λ · η_b · (1 - mean_i min(|∇s_b,i|, 1)),   η_b = 10^(-(h - b) / 2),   i over the layers

*Differs from the paper*: weights are symmetric about 0, one step a layer; steps are learnt as logarithms, whose
gradients enter λ_b; the adaptive term multiplies λ, which keeps λ_b at 0 or above; batch norms have a mean and a
variance for each precision, since activations of 4 bits have others than those of 8. The first and the last layer stay
in floating point. Mixed precision (Hessian-aware bit switching) is not part of it.

*Provenance*: written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.data import Data, calibration
from foveal.shrink.quantize.fake import grid, quantized_, quantized_layers, round_through, straight_through
from foveal.train.loop import fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.shrink.step import Inputs

__all__ = [
    "DoubleRounding",
    "LearnedSteps",
    "RoundedTwice",
    "SwitchedNorm",
    "adaptive_rate",
    "double_round",
    "lower",
    "switch_",
]


BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def lower(codes: Tensor, high: int, low: int) -> Tensor:
    """Round integers of `high` bits to `low` bits, by an addition, a shift and a clamp.

    Args:
        codes: integers in [-2^(high - 1), 2^(high - 1)), of an integer type.
        high: their bits.
        low: bits of the result, 2 to `high`.

    Returns:
        Integers in [-2^(low - 1), 2^(low - 1)), int8 up to 8 bits, else int16.
    """
    shift = high - low
    wide = codes.to(torch.int32)
    rounded = (wide + (1 << shift >> 1)) >> shift
    return rounded.clamp(-(2 ** (low - 1)), 2 ** (low - 1) - 1).to(torch.int8 if low <= 8 else torch.int16)


def double_round(w: Tensor, *, scale_high: Tensor, scale_low: Tensor, high: int, low: int) -> Tensor:
    """Weights of a lower precision, differentiable straight through both roundings.

    Args:
        w: weights.
        scale_high: step s_h of the highest precision, scalar.
        scale_low: step s_l, scalar; not used if both precisions are the same.
        high: bits of the highest precision.
        low: bits of the lower precision.

    Returns:
        Weights on the levels of `low` bits.
    """
    codes = round_through((w / scale_high).clamp(-(2 ** (high - 1)), 2 ** (high - 1) - 1))
    if low == high:
        return codes * scale_high
    ratio = (codes / 2 ** (high - low)).clamp(-(2 ** (low - 1)), 2 ** (low - 1) - 1)
    return straight_through(ratio, (ratio.detach() + 0.5).floor().clamp(max=2 ** (low - 1) - 1)) * scale_low


class RoundedTwice(nn.Module):
    """Quantiser of a weight at the precision that `switch_` chose; what is packed has the highest one.

    Args:
        weight: weight to start from.
        precisions: bits, descending.
    """

    def __init__(self, weight: Tensor, precisions: Sequence[int]) -> None:
        super().__init__()
        self.precisions, self.bits, self.precision = tuple(precisions), precisions[0], precisions[0]
        first = (weight.detach().abs().max() / (2 ** (self.bits - 1) - 1)).clamp(min=1e-8).log()
        self.scale = nn.ParameterList([first + (self.bits - b) * torch.log(torch.tensor(2.0)) for b in precisions])

    def scales(self) -> Tensor:
        """Steps of all precisions.

        Returns:
            Steps, (number of precisions,).
        """
        return torch.stack(list(self.scale)).exp()

    def forward(self, x: Tensor) -> Tensor:
        """Quantise.

        Args:
            x: weights.

        Returns:
            Weights on the levels of the chosen precision.
        """
        scales = self.scales()
        chosen = scales[self.precisions.index(self.precision)]
        return double_round(x, scale_high=scales[0], scale_low=chosen, high=self.bits, low=self.precision)

    def encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode weights at the highest precision.

        Args:
            x: weights.

        Returns:
            Codes, the integers plus 2^(bits - 1), int64; `scale`, the steps of all precisions.
        """
        scales, half = self.scales().detach(), 2 ** (self.bits - 1)
        return (x.detach() / scales[0]).clamp(-half, half - 1).round().long() + half, {"scale": scales}

    def decode(self, codes: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Decode weights at the chosen precision.

        Args:
            codes: integers in [0, 2^bits).
            constants: `scale`.

        Returns:
            Weights.
        """
        integers = lower(codes - 2 ** (self.bits - 1), self.bits, self.precision)
        return integers * constants["scale"][self.precisions.index(self.precision)]


class LearnedSteps(nn.Module):
    """Quantiser of a layer's inputs with a learnt step for each precision, set by the first inputs it sees.

    Args:
        precisions: bits, descending.
    """

    signed: Tensor

    def __init__(self, precisions: Sequence[int]) -> None:
        super().__init__()
        self.precisions, self.precision = tuple(precisions), precisions[0]
        self.scale = nn.ParameterList([torch.tensor(torch.nan) for _ in precisions])
        self.register_buffer("signed", torch.tensor(False))

    def _range(self, bits: int) -> tuple[int, int]:
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if bool(self.signed) else (0, 2**bits - 1)

    def _start(self, x: Tensor) -> None:
        self.signed = x.amin() < 0
        for scale, bits in zip(self.scale, self.precisions, strict=True):
            step = 2 * x.abs().mean() / self._range(bits)[1] ** 0.5  # arXiv:1902.08153, section 2.1
            scale.data.copy_(step.clamp(min=1e-8).log())

    def forward(self, x: Tensor) -> Tensor:
        """Quantise.

        Args:
            x: inputs of the layer.

        Returns:
            Inputs on the levels of the chosen precision.
        """
        if bool(self.scale[0].isnan()):
            self._start(x.detach())
        low, high = self._range(self.precision)
        return grid(x, scale=self.scale[self.precisions.index(self.precision)].exp(), low=low, high=high)


class SwitchedNorm(nn.Module):
    """Batch norm with the statistics of the chosen precision; weight and bias are shared.

    Args:
        norm: batch norm to start from.
        precisions: bits, descending.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, norm: BatchNorm, precisions: Sequence[int]) -> None:
        super().__init__()
        self.precisions, self.precision = tuple(precisions), precisions[0]
        self.weight, self.bias = norm.weight, norm.bias
        self.momentum, self.eps = norm.momentum if norm.momentum is not None else 0.1, norm.eps
        for name, statistic in (("mean", norm.running_mean), ("variance", norm.running_var)):
            self.register_buffer(name, torch.stack([statistic] * len(precisions)))  # type: ignore[list-item]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: activations, (B, C, …).

        Returns:
            Normalised activations, of the same shape.
        """
        i = self.precisions.index(self.precision)
        statistics = self.mean[i], self.variance[i]
        return nn.functional.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


def switch_(model: nn.Module, precision: int) -> nn.Module:
    """Choose the precision of all quantised layers, in place.

    Args:
        model: model that `DoubleRounding` quantised.
        precision: bits.

    Returns:
        The same model.

    Raises:
        ValueError: a precision that was not trained.
    """
    for module in model.modules():
        if isinstance(module, RoundedTwice | LearnedSteps | SwitchedNorm):
            if precision not in module.precisions:
                raise ValueError(f"precision must be one of {module.precisions}, got {precision}; train it too")
            module.precision = precision
    return model


def adaptive_rate(gradients: Sequence[Tensor], *, precision: int, highest: int) -> float:
    """Share of the learning rate at which the steps of one precision learn, λ_b / λ.

    Args:
        gradients: gradients of its steps, scalars.
        precision: bits b.
        highest: bits h.

    Returns:
        Share in [0, 1].
    """
    large = torch.stack([g.detach().abs().clamp(max=1) for g in gradients]).mean()
    return float(10 ** (-(highest - precision) / 2) * (1 - large))


def _scale_rates(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step of the optimiser: scale the rate of each precision's group, which the loop has just set."""
    for group in optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        group["lr"] *= adaptive_rate(gradients, precision=group["precision"], highest=group["highest"])


@dataclass(frozen=True)
class DoubleRounding:
    """Step: quantise weights and inputs, and train all precisions together.

    Args:
        precisions: bits, descending, 2 to 8; the first is stored.
        steps: number of training steps, at least 1.
        lr: peak learning rate of AdamW, above 0.

    Raises:
        ValueError: a value outside its range.
    """

    precisions: tuple[int, ...] = (8, 6, 4)
    steps: int = 500
    lr: float = 1e-3

    def __post_init__(self) -> None:
        bits = self.precisions
        if not bits or list(bits) != sorted(set(bits), reverse=True) or not 2 <= bits[-1] <= bits[0] <= 8:
            raise ValueError(f"precisions must be descending numbers of bits in 2 to 8, got {bits}")
        if self.steps < 1 or not self.lr > 0:
            raise ValueError(f"steps must be at least 1 and lr above 0, got {self.steps} and {self.lr}")

    def quantize_(self, model: nn.Module, inputs: Tensor) -> nn.Module:
        """Replace layers and batch norms and set the steps of the layers' inputs, without training, in place.

        Args:
            model: trained network.
            inputs: inputs for calibration.

        Returns:
            The same model, in eval mode.
        """
        quantized_(
            model,
            weight=lambda layer: RoundedTwice(layer.weight, self.precisions),
            inputs=lambda _: LearnedSteps(self.precisions),
        )
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):
                if isinstance(child, BatchNorm) and child.track_running_stats:
                    parent._modules[name] = SwitchedNorm(child, self.precisions)
        with torch.no_grad():
            model.eval()(inputs)
        return model

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Quantise and train.

        Args:
            model: trained network.
            data: `Data` with `batches` and `loss`.

        Returns:
            The same model, at the highest precision; `switch_` chooses another.

        Raises:
            ValueError: data without labelled batches.
        """
        if not isinstance(data, Data) or data.batches is None or data.loss is None:
            raise ValueError("DoubleRounding trains and needs Data with batches and loss; give both")
        self.quantize_(model, calibration(data, step="DoubleRounding"))
        loss = data.loss

        def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            x, target = batch
            return torch.stack([loss(switch_(network, b)(x), target) for b in self.precisions]).sum()

        quantizers = [
            q for _, layer in quantized_layers(model) for q in (layer.weight_quantizer, layer.input_quantizer)
        ]
        scales: list[nn.ParameterList] = [q.scale for q in quantizers]  # type: ignore[union-attr, misc]
        steps = {id(p) for scale in scales for p in scale}
        groups = [
            {"params": [scale[i] for scale in scales], "precision": b, "highest": self.precisions[0]}
            for i, b in enumerate(self.precisions)
        ]
        adaptive = torch.optim.Adam(groups, lr=self.lr)
        adaptive.register_step_pre_hook(_scale_rates)
        weights = torch.optim.AdamW([p for p in model.parameters() if id(p) not in steps], lr=self.lr, weight_decay=0.0)
        fit(model, objective, data.batches, [weights, adaptive], steps=self.steps, warmup=min(20, self.steps))
        return switch_(model.eval(), self.precisions[0])


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))


def _pictures(seed: int) -> Tensor:
    return torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))


def _tiny_data() -> Data:
    def batches(step: int) -> tuple[Tensor, Tensor]:
        return _pictures(step), torch.tensor([0, 1])

    return Data(_pictures(9), quality=lambda _: 0.0, batches=batches, loss=nn.functional.cross_entropy)


METHOD = Method(
    id=133,
    name="DoubleRounding",
    kind="transform",
    summary="One file of 8-bit integers; weights of fewer bits follow by rounding the integers a second time.",
    cases={
        "convolutions": Transform(
            lambda model: DoubleRounding(steps=2).apply(model, _tiny_data()),
            _tiny,
            _pictures,
            twice="is quantised already",
        )
    },
    paper=Paper("Nearly Lossless Adaptive Bit Switching", "H. Huang et al.", 2025, "arXiv:2502.01199"),
)
