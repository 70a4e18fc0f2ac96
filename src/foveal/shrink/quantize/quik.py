"""QUIK: 4-bit weights and activations, with the few input columns of large activations left in floating point.

*Source*: S. Ashkboos et al., "QUIK: Towards End-to-End 4-Bit Inference on Generative Large Language Models", EMNLP 2024
(arXiv:2310.09259), section 3. The columns of a layer's input whose largest value during calibration is largest are
outliers; they stay in floating point with their weights. For the others, integers a of each token x and integers w of
each output, with steps s and t, offset z = min x and half range h = 2^(bits - 1):

    a = round((x - z) / s) - h,  s = (max x - min x) / (2^bits - 1);   w = clamp(round(W / t), -h, h - 1)
    y = s·t · (a wᵀ) + (z + h·s) · t·Σ w + x_o W_oᵀ + bias

a wᵀ is a product of integers, and t·Σ w is known beforehand. W is rounded column after column as in GPTQ, with the
outliers last, so that they absorb the errors: with M the upper Cholesky factor of the inverse of the damped Hessian
X Xᵀ, e = (W_i - t·w_i) / M_ii and W_j ← W_j - e·M_ij for all j > i, outliers included. t is the one of a few clipped
steps that rounds an output with the least squared error. Layers that are hard to quantise have 8 bits.

Shapes: x (…, inputs); W (outputs, inputs); k outliers.

*Differs from the paper*: the Hessians of all layers come from the network in floating point. Integers of 4 bits are
multiplied as int8. The sparse form (2:4) is not part of it.

*Provenance*: written from the paper; damping and the order of columns looked up in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.shrink.data import calibration

if TYPE_CHECKING:
    from foveal.shrink.data import Data
    from foveal.shrink.step import Inputs

__all__ = [
    "QUIK",
    "QuikLinear",
    "clipped_step",
    "gptq_outliers_last",
    "low_bit_share",
    "quantize_tokens",
    "quik_linear",
]


def quantize_tokens(x: Tensor, *, bits: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Integers of each token, asymmetric.

    Args:
        x: tokens, (…, inputs).
        bits: bits of an integer, 2 to 8.

    Returns:
        Integers a in [-2^(bits - 1), 2^(bits - 1)), int8, (…, inputs); steps s and offsets z, (…, 1).
    """
    zero, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = ((high - zero) / (2**bits - 1)).clamp(min=1e-8)
    codes = ((x - zero) / step).round().clamp(0, 2**bits - 1) - 2 ** (bits - 1)
    return codes.to(torch.int8), step, zero


def quik_linear(
    x: Tensor,
    *,
    codes: Tensor,
    step: Tensor,
    outlier_weight: Tensor,
    kept: Tensor,
    outliers: Tensor,
    bias: Tensor | None = None,
    bits: int = 4,
) -> Tensor:
    """A layer by integer arithmetic.

    Args:
        x: tokens, (…, inputs).
        codes: integers w, int8, (outputs, inputs - k).
        step: steps t, (outputs,).
        outlier_weight: weights of the outliers, (outputs, k).
        kept: indices of the quantised columns, (inputs - k,).
        outliers: indices of the outliers, (k,).
        bias: bias, (outputs,).
        bits: bits of an integer.

    Returns:
        Outputs, (…, outputs).
    """
    wide = torch.promote_types(x.dtype, torch.float32)  # sums of integers would overflow in half precision
    a, s, zero = quantize_tokens(x[..., kept].to(wide), bits=bits)
    product = torch._int_mm(a.flatten(0, -2), codes.T).to(wide).view(*x.shape[:-1], len(step))
    total = step * codes.sum(1, dtype=torch.int32).to(wide)
    y = s * step * product + (zero + 2 ** (bits - 1) * s) * total + x[..., outliers] @ outlier_weight.T
    return (y if bias is None else y + bias).to(x.dtype)


def quik_reference(
    x: Tensor,
    *,
    codes: Tensor,
    step: Tensor,
    outlier_weight: Tensor,
    kept: Tensor,
    outliers: Tensor,
    bias: Tensor | None = None,
    bits: int = 4,
) -> Tensor:
    """The same with dequantised tokens and weights (fake quantisation).

    Args:
        x: tokens, (…, inputs).
        codes: integers w, int8, (outputs, inputs - k).
        step: steps t, (outputs,).
        outlier_weight: weights of the outliers, (outputs, k).
        kept: indices of the quantised columns, (inputs - k,).
        outliers: indices of the outliers, (k,).
        bias: bias, (outputs,).
        bits: bits of an integer.

    Returns:
        Outputs, (…, outputs).
    """
    a, s, zero = quantize_tokens(x[..., kept], bits=bits)
    weight = x.new_empty(len(step), x.shape[-1]).index_copy(1, outliers, outlier_weight)
    weight = weight.index_copy(1, kept, codes * step[:, None])
    whole = x.index_copy(-1, kept, (a.to(x.dtype) + 2 ** (bits - 1)) * s + zero)
    return nn.functional.linear(whole, weight, bias)


def clipped_step(weight: Tensor, *, bits: int = 4, ratios: int = 16) -> Tensor:
    """Step of each output: of clipped ranges from 1 down to 1/2 of the largest weight, that of least squared error.

    Args:
        weight: weights, (outputs, inputs).
        bits: bits of an integer.
        ratios: number of ranges.

    Returns:
        Steps t, (outputs,).
    """
    half = 2 ** (bits - 1)
    whole = (2 * weight.abs().amax(1) / (2**bits - 1)).clamp(min=1e-8)
    steps = whole * torch.linspace(1, 0.5, ratios, dtype=weight.dtype, device=weight.device)[:, None]
    errors = torch.stack(
        [(weight - (weight / s).round().clamp(-half, half - 1) * s).square().sum(1) for s in steps[..., None]]
    )
    return steps.gather(0, errors.argmin(0)[None])[0]


def gptq_outliers_last(
    weight: Tensor, hessian: Tensor, outliers: int, *, bits: int = 4, damping: float = 0.01
) -> tuple[Tensor, Tensor, Tensor]:
    """Round all columns but the last ones, which absorb the errors.

    Args:
        weight: weight with the outliers as the last columns, (outputs, inputs).
        hessian: matrix X Xᵀ of the calibration inputs in the same order, (inputs, inputs).
        outliers: number of outliers, k.
        bits: bits of an integer.
        damping: term added to the diagonal, relative to its mean.

    Returns:
        Integers w, int8, (outputs, inputs - k); steps t, (outputs,); the outliers' weights, (outputs, k).
    """
    left, curve, half = weight.double().clone(), hessian.double().clone(), 2 ** (bits - 1)
    count = weight.shape[1] - outliers
    step = clipped_step(left[:, :count], bits=bits).to(weight.dtype)
    diagonal = curve.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(curve)), upper=True)
    codes = torch.empty(len(weight), count, dtype=torch.int8, device=weight.device)
    for i in range(count):
        codes[:, i] = (left[:, i] / step).round().clamp(-half, half - 1).to(torch.int8)
        error = (left[:, i] - codes[:, i] * step.double()) / factor[i, i]
        left[:, i + 1 :] -= error[:, None] * factor[i, i + 1 :]
    return codes, step, left[:, count:].to(weight.dtype)


class QuikLinear(nn.Module):
    """A linear layer in QUIK's format, (…, inputs) to (…, outputs).

    Args:
        layer: the layer.
        largest: largest absolute value of each input column, (inputs,).
        hessian: matrix X Xᵀ of the calibration inputs, (inputs, inputs); None rounds to nearest.
        outliers: number of outliers.
        bits: bits of weights and activations.
        damping: damping of the Hessian.
    """

    codes: Tensor
    step: Tensor
    outlier_weight: Tensor
    kept: Tensor
    outliers: Tensor

    def __init__(
        self,
        layer: nn.Linear,
        largest: Tensor,
        hessian: Tensor | None,
        *,
        outliers: int,
        bits: int = 4,
        damping: float = 0.01,
    ) -> None:
        super().__init__()
        self.bits, self.in_features, self.out_features = bits, layer.in_features, layer.out_features
        order = largest.argsort()
        weight, count = layer.weight.detach()[:, order], layer.in_features - outliers
        if hessian is None:
            half, step = 2 ** (bits - 1), (2 * weight[:, :count].abs().amax(1) / (2**bits - 1)).clamp(min=1e-8)
            codes = (weight[:, :count] / step[:, None]).round().clamp(-half, half - 1).to(torch.int8)
            rest = weight[:, count:]
        else:
            hessian = hessian[order][:, order]
            codes, step, rest = gptq_outliers_last(weight, hessian, outliers, bits=bits, damping=damping)
        parts = {"codes": codes, "step": step, "outlier_weight": rest, "kept": order[:count], "outliers": order[count:]}
        for name, part in parts.items():
            self.register_buffer(name, part.clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def parts(self) -> dict[str, Any]:
        """Arguments of `quik_linear` and `quik_reference`.

        Returns:
            All but the tokens.
        """
        return {**self._buffers, "bits": self.bits}

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: tokens, (…, inputs).

        Returns:
            Outputs, (…, outputs).
        """
        return quik_linear(x, **self.parts())


@dataclass(frozen=True)
class QUIK:
    """Step: quantise weights and activations of the linear layers of a trained model, all but the last layer.

    Args:
        outliers: number of input columns in floating point in each layer, at least 0; the paper takes 256 of 4,096 and
            more.
        bits: bits of weights and activations, 2 to 8.
        eight: ends of the names of layers that have 8 bits instead, such as `("down_proj",)`.
        gptq: whether errors are compensated; otherwise weights are rounded to nearest.
        damping: damping of the Hessian, above 0.

    Raises:
        ValueError: a number outside its range.
    """

    outliers: int = 256
    bits: int = 4
    eight: tuple[str, ...] = ()
    gptq: bool = True
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.outliers < 0:
            raise ValueError(f"outliers must be at least 0, got {self.outliers}")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be in 2 to 8, got {self.bits}")
        if not self.damping > 0:
            raise ValueError(f"damping must be above 0, got {self.damping}")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Quantise, in place.

        Args:
            model: trained network in eval mode, with at least two linear layers.
            data: inputs for calibration.

        Returns:
            The same model.

        Raises:
            ValueError: no data, a model that is quantised already, too few linear layers, or more outliers than
                inputs.
        """
        if any(isinstance(module, QuikLinear) for module in model.modules()):
            raise ValueError("the model is quantised already; quantise the original")
        layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if len(layers) < 2:
            raise ValueError(
                f"{type(model).__name__} needs two linear layers, the last of which stays; got {len(layers)}"
            )
        layers.popitem()
        narrowest = min(layer.in_features for layer in layers.values())
        if self.outliers >= narrowest:
            raise ValueError(
                f"outliers must be below the {narrowest} inputs of the narrowest layer, got {self.outliers}"
            )
        seen = _observe(model, layers, calibration(data, step="QUIK"))
        for name, layer in layers.items():
            largest, hessian = seen[name]
            bits = 8 if name.endswith(self.eight) and self.eight else self.bits
            made = QuikLinear(
                layer,
                largest,
                hessian if self.gptq else None,
                outliers=self.outliers,
                bits=bits,
                damping=self.damping,
            )
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, made)
        return model


@torch.no_grad()
def _observe(model: nn.Module, layers: dict[str, nn.Linear], inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Largest absolute value of each input column and X Xᵀ, by layer."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor]) -> None:  # noqa: ARG001 - torch's signature
            x = arguments[0].flatten(0, -2)
            largest, hessian = x.abs().amax(0), x.double().T @ x.double()
            if name in seen:
                largest, hessian = torch.maximum(largest, seen[name][0]), hessian + seen[name][1]
            seen[name] = largest, hessian

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for batch in inputs.split(64):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def low_bit_share(model: nn.Module, inputs: Tensor, *, bits: int = 4) -> float:
    """Share of the multiply-adds of all linear layers that are done on integers of few bits.

    Args:
        model: network that `QUIK` quantised.
        inputs: inputs of the model.
        bits: largest number of bits that counts.

    Returns:
        Share in [0, 1].
    """
    low, total = 0, 0

    def count(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        nonlocal low, total
        total += output.numel() * arguments[0].shape[-1]
        if isinstance(module, QuikLinear) and module.bits <= bits:
            low += output.numel() * len(module.kept)

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | QuikLinear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return low / total


def _case(seed: int) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer, x = nn.Linear(13, 7), torch.randn(3, 5, 13) * torch.linspace(0.1, 9, 13)
        tokens = x.flatten(0, 1)
        made = QuikLinear(layer, tokens.abs().amax(0), tokens.T @ tokens, outliers=2)
    return {"x": x, **made.parts()}


METHOD = Method(
    id=261,
    name="QUIK",
    kind="operator",
    summary="4-bit weights and activations; columns of large activations stay in floating point and absorb errors.",
    cases={"two outliers": Operator(quik_linear, quik_reference, _case)},
    paper=Paper(
        "QUIK: Towards End-to-End 4-Bit Inference on Generative Large Language Models",
        "S. Ashkboos et al.",
        2024,
        "arXiv:2310.09259",
    ),
)
