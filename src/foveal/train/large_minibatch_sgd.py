"""Large minibatch SGD: k times the batch at k times the learning rate, reached gradually, and what must go with it.

*Source*: P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017 (arXiv:1706.02677),
sections 2, 3 and 5.1. A batch of k n pictures, n of each of k workers, is used at epoch t of a training with

    rate       η̂ = η k n / 256 after the warm-up; η n / 256 + (η̂ - η n / 256) t / 5 in the first five epochs;
               a tenth of it from each of the epochs 30, 60 and 80 of 90 on
    gradient   (1 / k n) Σ_j Σ_i ∇ℓ_ij: losses are divided by the whole batch, whatever a worker holds
    statistics of batch norms are those of a worker's n pictures, so that n, and not k, sets the loss
    momentum   u ← m u + g, w ← w - η u as PyTorch has it; or u ← m u + η g, w ← w - u, which must be corrected by
               u ← u η_new / η_old where η changes
    norms      γ = 0 in the last one of each residual block at the start; γ and β never decay

One process runs its workers one after the other: `accumulate` adds up the gradients of micro-batches of n.

*Differs from the paper*: one process; the classifier's own initialisation and the pictures' shuffling are left to the
trainer. The warm-up starts at one worker's rate at t = 0, and each step has the rate of its start.
*Provenance*: written from the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["accumulate", "corrected_step", "decay_groups", "large_minibatch_rate", "zero_last_norms_"]

ModelT = TypeVar("ModelT", bound=nn.Module)
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
UNIT = 256  # pictures of a batch that the base rate is for


def large_minibatch_rate(
    epoch: float,
    *,
    batch: int,
    rate: float = 0.1,
    worker: int = 32,
    warmup: float = 5.0,
    milestones: Sequence[float] = (30, 60, 80),
    factor: float = 0.1,
) -> float:
    """Learning rate of a step.

    Args:
        epoch: t, epochs that were done before the step, with a fraction.
        batch: k n, pictures of a step.
        rate: η, of 256 pictures.
        worker: n, pictures of a worker, at most the batch; the warm-up starts at their rate.
        warmup: epochs of the warm-up; 0 for none.
        milestones: epochs from which on the rate is smaller.
        factor: by what it becomes smaller at each.

    Returns:
        The rate.

    Raises:
        ValueError: an epoch or a warm-up below 0, or a worker with no pictures or more than the batch.
    """
    if not 1 <= worker <= batch:
        raise ValueError(f"worker must be in 1…{batch}, the batch, got {worker}")
    if not (epoch >= 0 and warmup >= 0):
        raise ValueError(f"epoch and warmup must be at least 0, got {epoch} and {warmup}")
    small, large = rate * worker / UNIT, rate * batch / UNIT
    if epoch < warmup:
        large = small + (large - small) * epoch / warmup
    return large * factor ** sum(epoch >= milestone for milestone in milestones)


def accumulate(
    model: nn.Module, loss: Callable[[Tensor, Any], Tensor], inputs: Tensor, targets: Any, *, worker: int = 32
) -> Tensor:
    """Add the gradients of a large batch's mean loss to those of the parameters, a micro-batch at a time.

    Args:
        model: network; batch norms see a micro-batch.
        loss: function from outputs and targets to their mean loss.
        inputs: (B, …).
        targets: what `loss` takes, with B rows.
        worker: n, pictures of a micro-batch; the last one may be smaller and counts by its size.

    Returns:
        Mean loss of the batch, ().

    Raises:
        ValueError: no pictures, or a micro-batch below 1.
    """
    if not len(inputs) or worker < 1:
        raise ValueError(f"inputs and worker must have at least 1 picture, got {len(inputs)} and {worker}")
    total = inputs.new_zeros(())
    for start in range(0, len(inputs), worker):
        rows = slice(start, start + worker)
        share = loss(model(inputs[rows]), targets[rows]) * (len(inputs[rows]) / len(inputs))
        share.backward()
        total += share.detach()
    return total


def decay_groups(model: nn.Module, *, weight_decay: float = 1e-4) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser: all but γ and β of norms decay.

    Args:
        model: network.
        weight_decay: decay of the others.

    Returns:
        Two groups, or one where the other would be empty; each parameter that is trained once.
    """
    norms = {p for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p not in norms], "weight_decay": weight_decay},
        {"params": [p for p in trained if p in norms], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def zero_last_norms_(model: ModelT) -> ModelT:
    """Set γ of the last norm of each residual block to 0, so that blocks start as their shortcuts.

    A block is a module other than a sequence that holds two or more norms itself; those of its shortcut lie deeper.

    Args:
        model: network, changed in place.

    Returns:
        The network.

    Raises:
        ValueError: no such block.
    """
    blocks = []
    for module in model.modules():
        norms = [child for child in module.children() if isinstance(child, NORMS) and child.weight is not None]
        if len(norms) > 1 and not isinstance(module, nn.Sequential | nn.ModuleList):
            blocks.append(norms[-1])
    if not blocks:
        raise ValueError(f"model must have residual blocks with two norms or more, got none in {type(model).__name__}")
    for norm in blocks:
        nn.init.zeros_(norm.weight)
    return model


def corrected_step(
    weight: Tensor, gradient: Tensor, velocity: Tensor, *, lr: float, before: float, momentum: float = 0.9
) -> tuple[Tensor, Tensor]:
    """A step of the other form of momentum, whose velocity holds the rate, with the correction of section 3.

    Args:
        weight: w.
        gradient: g, of its shape.
        velocity: u, zeros at the start.
        lr: η_new, rate of this step.
        before: η_old, rate of the step before.
        momentum: m.

    Returns:
        w and u after the step, which makes w what PyTorch's SGD makes it.
    """
    velocity = momentum * velocity * (lr / before) + lr * gradient
    return weight - velocity, velocity


def _run(seed: int) -> Tensor:
    """Gradients of a small network, accumulated."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, x = nn.Linear(3, 2), torch.randn(7, 3)
    accumulate(model, nn.functional.cross_entropy, x, torch.arange(7) % 2, worker=3)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


METHOD = Method(
    id=153,
    name="LargeMinibatchSGD",
    kind="procedure",
    summary="Batches k times larger learn as well with k times the learning rate, reached by a gradual warm-up.",
    paper=Paper(
        "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", "P. Goyal et al.", 2017, "arXiv:1706.02677"
    ),
    cases={
        "linear": Procedure(
            _run,
            empty=lambda: accumulate(nn.Linear(1, 1), nn.functional.mse_loss, torch.ones(0, 1), torch.ones(0, 1)),
            refuses="inputs and worker must have at least 1 picture, got 0 and 32",
        )
    },
)
