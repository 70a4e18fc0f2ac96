"""Training of an adaptation: few parameters on few pictures, everything else held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.adapt.delta import AdaptError
from foveal.train.loop import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["batches_of", "classifier", "norm_layers", "renew_statistics_", "tune", "with_classes_"]

_STATISTICS = nn.modules.batchnorm._BatchNorm


def batches_of(
    inputs: Tensor, labels: Tensor, *, batch: int = 64, flip: bool = False, seed: int = 0
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Random batches of labelled inputs.

    Args:
        inputs: (n, …).
        labels: (n,).
        batch: B.
        flip: whether half of the inputs are flipped along their last axis.
        seed: seed of the choice.

    Returns:
        Function from a step to (B, …) and (B,), depending on nothing but the step.
    """

    def batches(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        rows = torch.randint(len(labels), (batch,), generator=generator)
        x = inputs[rows]
        if flip:
            chosen = torch.rand(batch, generator=generator) < 0.5
            x = torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
        return x, labels[rows]

    return batches


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers that normalise.

    Args:
        model: network.

    Returns:
        Name → layer: batch, layer, group and instance norms, and RMS norms.
    """
    kinds = (_STATISTICS, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@torch.no_grad()
def renew_statistics_(model: nn.Module, inputs: Tensor, *, batch: int = 256) -> int:
    """Let batch norms take mean and variance from some inputs, in place: a plain mean over batches.

    Args:
        model: network; in eval mode afterwards.
        inputs: (n, …).
        batch: B; a last batch of one input is left out.

    Returns:
        Number of batch norms.
    """
    model.eval()
    norms: list[Any] = [m for m in model.modules() if isinstance(m, _STATISTICS) and m.track_running_stats]
    kept = [(module.momentum, module.num_batches_tracked.clone()) for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None
        module.train()
    for x in inputs.split(batch):
        if norms and (len(x) > 1 or len(inputs) == 1):
            model(x)
    for module, (momentum, count) in zip(norms, kept, strict=True):
        module.momentum, module.num_batches_tracked = momentum, count
        module.eval()
    return len(norms)


def classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer, the head of a classifier.

    Args:
        model: network.

    Returns:
        Its name and the layer.

    Raises:
        AdaptError: a network without one.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise AdaptError(f"{type(model).__name__} has no linear layer to be its head; give a classifier")
    return found[-1]


def with_classes_(model: nn.Module, num_classes: int) -> nn.Module:
    """Give a classifier a head for another number of classes, in place; equal numbers leave it as it is.

    Args:
        model: classifier.
        num_classes: number of classes, at least 2.

    Returns:
        The same network; a new head is zero, so that every class starts with the same score.

    Raises:
        AdaptError: fewer than two classes, or no head.
    """
    if num_classes < 2:
        raise AdaptError(f"num_classes must be at least 2, got {num_classes}; a classifier tells classes apart")
    head = classifier(model)[1]
    if head.out_features != num_classes:
        head.out_features = num_classes
        head.weight = nn.Parameter(head.weight.new_zeros(num_classes, head.in_features))
        head.bias = nn.Parameter(head.weight.new_zeros(num_classes))
    return model


def tune(
    model: nn.Module,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    learns: Iterable[nn.Parameter],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    statistics: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Train some parameters of a model: AdamW, a short warm-up, half a cosine.

    Args:
        model: network, trained in place.
        batches: function from a step to inputs and targets.
        learns: parameters that learn; all others are held.
        steps: number of steps, at least 1.
        lr: peak learning rate.
        weight_decay: weight decay of parameters with two or more axes.
        loss: function of output and target.
        statistics: whether batch norms go on collecting their statistics.
        seed: seed of dropout and the like.

    Returns:
        The same network in eval mode.

    Raises:
        AdaptError: nothing learns.
    """
    chosen = list(learns)
    if not chosen:
        raise AdaptError(f"no parameter of {type(model).__name__} is to learn; choose another method for it")
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    groups = [
        {"params": [p for p in chosen if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in chosen if p.ndim < 2], "weight_decay": 0.0},
    ]
    held = [] if statistics else [module for module in model.modules() if isinstance(module, _STATISTICS)]

    def objective(network: nn.Module, batch: tuple[Tensor, Tensor], /) -> Tensor:
        for module in held:
            module.eval()
        return loss(network(batch[0]), batch[1])

    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr)
    fit(model, objective, batches, [optimizer], steps=steps, warmup=min(20, steps), clip=1.0, seed=seed)
    return model.eval()
