"""AdAdaGrad: the batch grows whenever its gradient is too noisy, and AdaGrad takes the steps.

*Source*: T. T.-K. Lau, H. Liu, M. Kolar, "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods", 2024
(arXiv:2402.11215), sections 3 and 4. With the gradients g_i, (P,), of b pictures, their mean g and

    V = 1 / (b - 1) Σ_i (g_i - g)²                                    (P,), the sample variance of each coordinate

a batch of b passes a test, for an η in (0, 1), if

    norm test             Σ_p V_p / b ≤ η² ‖g‖²
    coordinate-wise       V_p / b ≤ η² g_p² for each p
    inner product         Var_i⟨g_i, g⟩ / b ≤ η² ‖g‖⁴
    next batch            the smallest that passes, never less than b, at most a largest one

    AdaGrad-Norm          v ← v + ‖g‖²,  w ← w - α g / √v
    AdaGrad               the same for each coordinate

V is that of per-sample gradients (`torch.func`), or of the means of m micro-batches of s pictures, whose variance is
V / s: that costs no more than adding up the gradients of micro-batches, and allows batch norms.

*Differs from the paper*: batches are multiples of the number of micro-batches, and V of per-sample gradients may be
taken from a part of the batch.
*Provenance*: written from the paper; no code of the authors was found.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "AdAdaGrad",
    "AdaGradNorm",
    "coordinate_test",
    "inner_product_test",
    "next_batch",
    "norm_test",
    "per_sample_gradients",
]


def per_sample_gradients(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> Tensor:
    """Gradients of the loss of each picture, all at once.

    Args:
        model: network whose output for a picture does not depend on others: no batch norm in train mode.
        loss: function from outputs and targets to their mean loss.
        inputs: (B, …).
        targets: (B, …).

    Returns:
        g_i of the parameters that are trained, (B, P).
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    others = {
        name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers()) if name not in trained
    }

    def one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, {**others, **weights}, (x[None],)), y[None])

    found = vmap(grad(one), in_dims=(None, 0, 0), randomness="different")(trained, inputs, targets)
    return torch.cat([g.flatten(1) for g in found.values()], 1)


def norm_test(variance: Tensor, gradient: Tensor, *, eta: float) -> float:
    """The smallest batch that passes the norm test.

    Args:
        variance: V, (P,).
        gradient: g, (P,).
        eta: η.

    Returns:
        Batch, not rounded; infinite where the gradient is 0 and the variance is not.
    """
    return _over(float(variance.sum()), eta**2 * float(gradient.square().sum()))


def coordinate_test(variance: Tensor, gradient: Tensor, *, eta: float) -> float:
    """The smallest batch that passes the coordinate-wise test.

    Args:
        variance: V, (P,).
        gradient: g, (P,).
        eta: η.

    Returns:
        Batch, not rounded, at least that of the norm test.
    """
    needed = (variance / (eta * gradient).square()).masked_fill(variance == 0, 0)
    return float(needed.max())


def inner_product_test(gradients: Tensor, gradient: Tensor, *, eta: float) -> float:
    """The smallest batch that passes the inner product test.

    Args:
        gradients: g_i, (B, P), B at least 2.
        gradient: g, (P,).
        eta: η.

    Returns:
        Batch, not rounded, at most that of the norm test.
    """
    return _over(float((gradients @ gradient).var()), eta**2 * float(gradient.square().sum()) ** 2)


def _over(variance: float, allowed: float) -> float:
    return 0.0 if variance == 0 else variance / allowed if allowed else math.inf


def next_batch(batch: int, needed: float, *, largest: int, multiple: int = 1) -> int:
    """The batch after a test.

    Args:
        batch: b.
        needed: the smallest batch that passes.
        largest: the largest batch that is taken.
        multiple: what batches are multiples of.

    Returns:
        Batch, never less than `batch`.
    """
    if needed <= batch:
        return batch
    wanted = largest if needed >= largest else math.ceil(needed / multiple) * multiple
    return max(batch, min(wanted, largest))


class AdaGradNorm(torch.optim.Optimizer):
    """AdaGrad with one step size for all parameters of a group, which have one norm.

    Args:
        params: parameters or groups.
        lr: α.
        start: v at the start, above 0 for smaller first steps.

    Raises:
        ValueError: a rate that is not above 0, or a start below 0.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.1, start: float = 0.0) -> None:
        if not (lr > 0 and start >= 0):
            raise ValueError(f"lr must be above 0 and start at least 0, got {lr} and {start}")
        super().__init__(params, {"lr": lr, "start": start})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update.

        Args:
            closure: None; present for the optimiser interface only.
        """
        del closure
        for group in self.param_groups:
            pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if not pairs:
                continue
            state = self.state[group["params"][0]]
            if not state:
                state["v"] = torch.full_like(pairs[0][1].sum(), group["start"])
            state["v"] += torch.stack([g.square().sum() for _, g in pairs]).sum()
            if state["v"] > 0:
                for p, g in pairs:
                    p.sub_(group["lr"] * g / state["v"].sqrt())


class AdAdaGrad:
    """Steps of an optimiser on batches whose size, `batch`, the norm test raises.

    Args:
        model: network.
        loss: function from outputs and targets to their mean loss.
        optimizer: `torch.optim.Adagrad` or `AdaGradNorm`.
        batch: pictures of the first steps, a multiple of `parts`.
        largest: largest batch, a multiple of `parts`.
        eta: η.
        every: number of steps from one test to the next.
        parts: m, micro-batches of a step, at least 2.
        samples: pictures of a batch whose own gradients give V; 0 for V from the micro-batches.

    Raises:
        ValueError: a batch that is not a multiple of two parts or more, a largest one below the first, one sample, or
            an η or a number of steps that is not above 0.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        batch: int = 32,
        largest: int = 512,
        eta: float = 0.5,
        every: int = 1,
        parts: int = 8,
        samples: int = 0,
    ) -> None:
        if parts < 2 or batch < parts or batch % parts or largest % parts or largest < batch:
            raise ValueError(
                f"batch and largest must be ascending multiples of parts ≥ 2, got {batch}, {largest} and {parts}"
            )
        if not (eta > 0 and every > 0) or samples == 1 or samples < 0:
            raise ValueError(
                f"eta and every must be above 0 and samples 0 or at least 2, got {eta}, {every} and {samples}"
            )
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.batch, self.largest, self.eta = batch, largest, eta
        self.every, self.parts, self.samples = every, parts, samples
        self.steps = 0

    def _gradient(self) -> Tensor:
        return torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self._trained()]
        )

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Take one step, and raise `batch` where this one fails the test.

        Args:
            inputs: (`batch`, …).
            targets: (`batch`, …).

        Returns:
            Mean loss, ().

        Raises:
            ValueError: another number of pictures.
        """
        if len(inputs) != self.batch:
            raise ValueError(f"this step takes batch = {self.batch} pictures, got {len(inputs)}")
        testing = self.steps % self.every == 0 and self.batch < self.largest
        variance = None
        if testing and self.samples:
            rows = slice(self.samples)
            variance = per_sample_gradients(self.model, self.loss, inputs[rows], targets[rows]).var(0)
        self.optimizer.zero_grad()
        total, size = inputs.new_zeros(()), self.batch // self.parts
        sums, means = None, []
        for x, y in zip(inputs.split(size), targets.split(size), strict=True):
            share = self.loss(self.model(x), y) / self.parts
            share.backward()
            total += share.detach()
            if testing and variance is None:
                now = self._gradient()
                means.append(self.parts * (now if sums is None else now - sums))
                sums = now
        if testing:
            variance = size * torch.stack(means).var(0) if variance is None else variance
            needed = norm_test(variance, self._gradient(), eta=self.eta)
            self.batch = next_batch(self.batch, needed, largest=self.largest, multiple=self.parts)
        self.optimizer.step()
        self.steps += 1
        return total


def _run(seed: int) -> Tensor:
    """Batches and weights of a few steps."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 3, generator=generator)
    y, model = x.sum(1, keepdim=True) + torch.randn(64, 1, generator=generator), nn.Linear(3, 1)
    for p in model.parameters():
        nn.init.zeros_(p)
    ours = AdAdaGrad(
        model, nn.functional.mse_loss, AdaGradNorm(model.parameters(), 0.5), batch=4, largest=64, parts=2, samples=64
    )
    found = []
    for _ in range(5):
        found.append(float(ours.batch))
        ours.step(x[: ours.batch], y[: ours.batch])
    return torch.cat([torch.tensor(found), *(p.detach().flatten() for p in model.parameters())])


METHOD = Method(
    id=74,
    name="AdAdaGrad",
    kind="procedure",
    summary="AdaGrad on batches that grow when the gradients of their pictures differ too much.",
    paper=Paper(
        "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
        "T. T.-K. Lau et al.",
        2024,
        "arXiv:2402.11215",
    ),
    cases={
        "line": Procedure(
            _run,
            empty=lambda: AdAdaGrad(
                nn.Linear(1, 1), nn.functional.mse_loss, AdaGradNorm(nn.Linear(1, 1).parameters())
            ).step(torch.ones(0, 1), torch.ones(0, 1)),
            refuses="this step takes batch = 32 pictures, got 0",
        )
    },
)
