"""TuneMode-ConvBN: a convolution and its frozen batch norm train as one convolution, whose output alone is kept.

*Source*: K. You et al., "Efficient ConvBN Blocks for Transfer Learning and Beyond", ICLR 2024 (arXiv:2305.11624),
the Tune mode of table 2. A convolution with weight w, (C', C, k, k), and bias b is followed by a batch norm
with weight γ, bias β and running statistics μ, σ², all (C',):

    s = γ / √(σ² + ε)
    Eval mode    y = s (w ∗ x + b - μ) + β                    keeps x and w ∗ x + b
    Tune mode    y = (s w) ∗ x + (s (b - μ) + β)              keeps x and s w, recomputed in each step
    Deploy mode  y = w' ∗ x + b'                              γ, β and w are no parameters any more

Tune mode gives Eval mode's y and Eval mode's gradients of w, b, γ and β, so an optimiser takes the same steps.

`tune_` finds the pairs by tracing: a batch norm that alone reads the output of a convolution, each run once. The
modules stay in their places with all names of parameters; only what their `forward` does is replaced.

*Differs from the paper*: a tuned batch norm keeps using its running statistics after `model.train()`, so a training
loop needs no care for it; the authors' goes back to batch statistics. Linear layers are left alone, because after one a
`BatchNorm1d` may normalise another axis than its outputs.
*Provenance*: written from the paper. The authors' function is part of PyTorch
(`torch._inductor.fx_passes.efficient_conv_bn_eval`); outputs equal its own to 1e-14 in float64.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn

from foveal.cases import Transform
from foveal.record import Method, Paper

__all__ = ["conv_bn_pairs", "tune_", "tuned", "tuned_parameters", "untune_"]

ModelT = TypeVar("ModelT", bound=nn.Module)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)


def tuned_parameters(
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    *,
    eps: float = 1e-5,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution.

    Args:
        weight: w, (C', C / groups, …), or (C, C' / groups, …) if transposed.
        bias: b, (C',); None for zeros.
        gamma: γ, (C',); None for ones.
        beta: β, (C',); None for zeros.
        mean: μ, (C',).
        variance: σ², (C',).
        eps: ε.
        transposed: whether the convolution is a transposed one.
        groups: number of groups.

    Returns:
        s w, of the shape of w, and s (b - μ) + β, (C',).
    """
    scale = torch.rsqrt(variance + eps)
    if gamma is not None:
        scale = scale * gamma
    shift = -(mean * scale) if bias is None else (bias - mean) * scale
    if beta is not None:
        shift = shift + beta
    ones = [1] * (weight.ndim - 2)
    if transposed:
        # (groups, C / groups, C' / groups, …)
        scaled = (weight.unflatten(0, (groups, -1)) * scale.view(groups, 1, -1, *ones)).flatten(0, 1)
    else:
        scaled = weight * scale.view(-1, 1, *ones)
    return scaled, shift


def _convolved(conv: Any, norm: Any, x: Tensor) -> Tensor:
    """What a tuned convolution computes: the batch norm's output."""
    transposed = isinstance(conv, _TRANSPOSED)
    layer = conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var
    weight, bias = tuned_parameters(*layer, eps=norm.eps, transposed=transposed, groups=conv.groups)
    y: Tensor
    if transposed:
        convolve = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[weight.ndim - 3]
        y = convolve(x, weight, bias, conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
    else:
        y = conv._conv_forward(x, weight, bias)
    return y


def _passed(norm: Any, x: Tensor) -> Tensor:
    """What is left of a tuned batch norm: nothing, or the activation that timm's brings along."""
    y: Tensor = norm.act(norm.drop(x)) if isinstance(norm, BatchNormAct2d) else x
    return y


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _CONVS + _TRANSPOSED + _NORMS) or super().is_leaf_module(m, module_qualified_name)


def _fits(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether these are layers whose `forward` is known and whose parameters are their own."""
    plain = any(type(conv).forward is kind.forward for kind in _CONVS + _TRANSPOSED)
    known = type(norm) in _NORMS and getattr(norm, "running_var", None) is not None
    return plain and known and "weight" in conv._parameters


def conv_bn_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Convolutions whose output one batch norm reads and nothing else.

    Args:
        model: network that `torch.fx` can trace.

    Returns:
        Names of the convolution and of the batch norm, in the order in which they run.

    Raises:
        ValueError: the network cannot be traced.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise ValueError(
            f"model must be traceable by torch.fx, got {type(model).__name__} ({error}); tune the parts that are"
        ) from error
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    found = []
    for node in calls:
        before = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        names = str(before.target), str(node.target)
        # a second argument is the output size of a transposed convolution
        if (
            len(before.args) == 1
            and _fits(*map(model.get_submodule, names))
            and all(targets.count(name) == 1 for name in names)
        ):
            found.append(names)
    return found


def tuned(model: nn.Module) -> list[str]:
    """Names of the layers in Tune mode.

    Args:
        model: network.

    Returns:
        Names of convolutions and batch norms.
    """
    return [
        name
        for name, module in model.named_modules()
        if getattr(module.__dict__.get("forward"), "func", None) in (_convolved, _passed)
    ]


def tune_(model: ModelT) -> ModelT:
    """Put a network into Tune mode, in place, to train it with frozen statistics in less memory.

    Args:
        model: network with convolutions and batch norms that `torch.fx` can trace.

    Returns:
        The network; names and values of its parameters and buffers are what they were.

    Raises:
        ValueError: it cannot be traced, is in Tune mode already, or has no batch norm right after a convolution.
    """
    if tuned(model):
        raise ValueError("model is in Tune mode already; untune_ takes it back")
    pairs = conv_bn_pairs(model)
    if not pairs:
        raise ValueError(
            f"model must have a batch norm with running statistics right after a convolution, got none in "
            f"{type(model).__name__}; train it as it is"
        )
    for conv, norm in ([model.get_submodule(name) for name in pair] for pair in pairs):
        conv.forward = partial(_convolved, conv, norm)  # type: ignore[method-assign]
        norm.forward = partial(_passed, norm)  # type: ignore[method-assign]
    return model


def untune_(model: ModelT) -> ModelT:
    """Take a network out of Tune mode, in place.

    Args:
        model: network; one that is not in Tune mode stays as it is.

    Returns:
        The network.
    """
    for name in tuned(model):
        del model.get_submodule(name).__dict__["forward"]
    return model


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm = BatchNormAct2d(5)
        model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), norm, nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4))
        for layer in (norm, model[3]):
            for value in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(value, 0.5, 1.5)  # type: ignore[arg-type]
        return model


METHOD = Method(
    id=315,
    name="TuneMode-ConvBN",
    kind="transform",
    summary="A convolution and its frozen batch norm train as one convolution, at the gradients of two.",
    paper=Paper("Efficient ConvBN Blocks for Transfer Learning and Beyond", "K. You et al.", 2024, "arXiv:2305.11624"),
    cases={
        "conv_bn": Transform(
            tune_,
            _tiny,
            lambda seed: torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(seed)),
            tune_,
            twice="model is in Tune mode already",
        )
    },
    except_for={"changes": "it computes and holds what the model did; the evidence compares what backward keeps"},
)
