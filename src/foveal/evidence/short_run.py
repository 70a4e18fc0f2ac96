"""The short trainer for claims: minutes, not hours, and the same result for the same seed.

`foveal.train` trains networks for use. This loop has no checkpoints and no running average; it answers "is this method
better than that one after the same number of steps on the same batches?".
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from foveal.evidence.rehearsal import STEPS, rehearsing
from foveal.train.loop import fast_denormals, learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["short_run"]


def short_run(
    model: nn.Module,
    batches: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    lr: float = 2e-3,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    clip: float | None = None,
) -> nn.Module:
    """Train briefly: AdamW, twenty steps of warm-up, half a cosine down to 0.

    Args:
        model: network to train in place; parameters without `requires_grad` are not changed.
        batches: function from a step, counted from 0, to a batch; it must depend on step and seed only.
        loss: function from model and batch to a scalar.
        steps: number of steps; two during a rehearsal. The result then depends on the arguments only.
        seconds: duration of the training instead of `steps`; the result then depends on the machine.
        lr: peak learning rate.
        weight_decay: weight decay of parameters with two or more axes.
        betas: betas of AdamW.
        clip: largest norm of the gradient; None for no limit.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: both or neither of `steps` and `seconds`.
    """
    if (steps is None) == (seconds is None):
        raise ValueError(f"give exactly one of steps and seconds, got {steps} and {seconds}")
    if rehearsing():
        steps, seconds = STEPS, None
    learnt = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas)
    model.train()
    begun, step, share = time.perf_counter(), 0, 0.0
    with fast_denormals():  # Adam's second moments start as denormal numbers, slow on CPUs
        while share < 1:
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 20) * learning_rate(round(share * 10_000), 10_000, 0)
            value = loss(model, batches(step))
            optimizer.zero_grad()
            value.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(learnt, clip)
            optimizer.step()
            step += 1
            share = step / steps if steps is not None else (time.perf_counter() - begun) / (seconds or 1.0)
    return model.eval()
