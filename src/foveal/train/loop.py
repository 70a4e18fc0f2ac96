"""The training loop.

It takes a model, an objective, optimisers and batches, whatever the task. A batch depends on its step
only, random numbers drawn by the model or the objective depend on seed and step only, and the state handed to `save`
holds everything else that changes (weights, their running average, the optimisers), so a training that was interrupted
and resumed ends with the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import ctypes
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.train.muon import Muon
from foveal.train.trainable import LinearKernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.optim import Optimizer

    from foveal.train.objective import Objective

__all__ = [
    "PRECISIONS",
    "Progress",
    "fast_denormals",
    "fit",
    "kept_memory",
    "learning_rate",
    "muon_and_adam",
    "to_device",
]

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Progress:
    """Progress of a training after a step.

    Args:
        step: steps done.
        steps: total number of steps.
        loss: mean loss since the last checkpoint.
        rate: steps per second since the training began or resumed.
        left: estimated seconds left at that rate.
        seconds: seconds since the training began or resumed.
        saved: whether a checkpoint was written at this step.
        quality: result of `validate`; None where it was not called at this step.
    """

    step: int
    steps: int
    loss: float
    rate: float
    left: float
    seconds: float = 0.0
    saved: bool = False
    quality: float | None = None


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then half a cosine down to 0.

    Args:
        step: number of the step, from 0.
        steps: total number of steps.
        warmup: number of warm-up steps.

    Returns:
        Share in [0, 1].
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


def muon_and_adam(model: nn.Module, *, lr: float = 2e-3, muon_lr: float = 1e-2) -> list[Optimizer]:
    """Muon for kernels and matrices, Adam for the rest.

    Args:
        model: network to train; parameters named in its `linear` go to Adam whatever their shape.
        lr: Adam's peak learning rate.
        muon_lr: Muon's peak learning rate.

    Returns:
        One or two optimisers, which together hold every parameter exactly once.
    """
    linear = set(model.linear) if isinstance(model, LinearKernels) else set()
    kernels = [p for n, p in model.named_parameters() if p.ndim >= 2 and n not in linear]
    rest = [p for n, p in model.named_parameters() if p.ndim < 2 or n in linear]
    muon: list[Optimizer] = [Muon(kernels, lr=muon_lr)] if kernels else []
    return [*muon, torch.optim.Adam(rest, lr=lr, betas=(0.9, 0.99))] if rest else muon


@contextmanager
def fast_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero inside the block and restore the previous setting after it.

    Adam's second moments start as denormal numbers, which a CPU handles a hundred times slower. The setting belongs to
    the calling thread; worker threads that torch starts inside the block inherit and keep it.

    Yields:
        Nothing.
    """
    # `set_flush_denormal` returns whether the processor supports it, not the previous setting; a denormal product
    # shows that one.
    flushed = float(torch.full((), 2e-38).mul(0.1)) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Ask glibc inside the block not to return freed memory to the system; do nothing outside Linux.

    Every step allocates the same large tensors, and page faults are slow. Afterwards glibc's documented defaults apply
    again and free memory is returned; other settings made by the environment are not restored.

    Yields:
        Nothing.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(library, "mallopt", None)  # not every C library has it
    if mallopt is None:
        yield
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 << 20)
    mallopt(mmap_max, 0)
    try:
        yield
    finally:
        mallopt(trim_threshold, 128 << 10)
        mallopt(top_pad, 128 << 10)
        mallopt(mmap_max, 1 << 16)
        ctypes.CDLL(None).malloc_trim(0)


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Move a batch's arrays and tensors to a device, as tensors.

    Args:
        batch: tensor, NumPy array, or a tuple, list or dict of batches; anything else is returned unchanged.
        device: target device.

    Returns:
        The same structure.
    """
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch).to(device)
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(value, device) for value in batch]
        return tuple(moved) if isinstance(batch, tuple) else moved
    return batch


def _ahead(batches: Callable[[int], Any], steps: range) -> Iterator[tuple[int, Any]]:
    """Steps and their batches; each batch is prepared in another thread while the previous one is used."""
    with ThreadPoolExecutor(1) as thread:
        waiting = [thread.submit(batches, step) for step in steps[:1]]
        for step in steps:
            batch = waiting.pop().result()
            waiting += [thread.submit(batches, following) for following in (step + 1,) if following in steps]
            yield step, batch


def _seed(seed: int, step: int, device: torch.device) -> None:
    """Seed torch from seed and step; its CPU generator uses 32 bits of the seed only, so both numbers are mixed."""
    mixed = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        torch.cuda.manual_seed(mixed)


def _autocast(precision: str, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _precision(asked: str, loss: Callable[[], Tensor], model: nn.Module, device: torch.device) -> str:
    """The faster of fp32 and bf16 autocast for a forward and backward pass on this machine, timed alternately."""
    if asked != "auto":
        return asked
    buffers = [b.clone() for b in model.buffers()]
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(3):
        for name, taken in times.items():
            begun = time.perf_counter()
            with _autocast(name, device):
                value = loss()
            value.backward()
            taken.append(time.perf_counter() - begun)
    model.zero_grad()
    for buffer, kept in zip(model.buffers(), buffers, strict=True):  # statistics that a pass has changed
        buffer.copy_(kept)
    return min(times, key=lambda name: min(times[name]))


class _State:
    """Weights, their running average and the optimisers, saved and loaded together."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], saved: dict[str, Any] | None) -> None:
        self.model, self.optimizers, self.step = model, optimizers, 0
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.peaks = [group["lr"] for group in self.groups]
        if saved is not None:
            model.load_state_dict(saved["model"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            self.step = int(saved["step"])
        self.average = [p.detach().clone() for p in model.parameters()]
        if saved is not None:
            for a, (name, _) in zip(self.average, model.named_parameters(), strict=True):
                a.copy_(saved["average"][name])

    def dict(self) -> dict[str, Any]:
        names = (name for name, _ in self.model.named_parameters())
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": dict(zip(names, self.average, strict=True)),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap the weights and their running average."""
        for p, a in zip(self.model.parameters(), self.average, strict=True):
            kept = p.detach().clone()
            p.copy_(a)
            a.copy_(kept)

    def averaged(self, measure: Callable[[nn.Module], float]) -> float:
        """Measure the model with its averaged weights."""
        self.exchange()
        try:
            return measure(self.model.eval())
        finally:
            self.model.train()
            self.exchange()

    def update(self, loss: Tensor, share: float, clip: float | None, ema: float) -> None:
        """One optimiser step on `loss`, then the update of the average."""
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * share
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        for optimizer in self.optimizers:
            optimizer.step()
        # The average follows faster at the beginning, while the weights still change fast.
        keep = min(ema, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.model.parameters()], 1 - keep)
        self.step += 1


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int], Any],
    optimizers: Sequence[Optimizer],
    *,
    steps: int,
    warmup: int = 0,
    ema: float = 0.0,
    clip: float | None = None,
    precision: str = "fp32",
    seed: int = 0,
    every: int = 500,
    state: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    report: Callable[[Progress], None] | None = None,
    stop_after: int | None = None,
) -> nn.Module:
    """Train a model.

    Args:
        model: network to train, in place, on the device it is already on.
        objective: loss of the model on a batch.
        batches: function that returns the batch of a step, from 0; called one step ahead in another thread, so it must
            depend on nothing but the step. Arrays and tensors in the batch are moved to the model's device.
        optimizers: optimisers that hold the model's parameters; their current learning rates are the peaks of the
            schedule.
        steps: number of steps.
        warmup: number of steps over which the learning rate rises to its peak; a cosine then brings it to 0.
        ema: decay of the running average of the weights, in [0, 1); 0 turns it off.
        clip: largest norm of the gradient; None for no limit.
        precision: "fp32", "bf16" (autocast), or "auto": whichever is faster on this machine, timed over a few steps.
        seed: seed of the random numbers drawn by the model and the objective (dropout, noise).
        every: number of steps between two checkpoints.
        state: state to resume from, as an earlier training passed it to `save`; None starts from step 0.
        save: function called at every checkpoint with the state: plain values and tensors, which are the ones in use
            and must be written or copied at once.
        validate: quality measure, called after each checkpoint with the model's averaged weights.
        report: function called about once a second and at every checkpoint.
        stop_after: step after which to save and return, as an interruption would.

    Returns:
        The model with its averaged weights, in eval mode.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    device = next(model.parameters()).device
    training = _State(model.train(), optimizers, state)
    first = training.step
    # The caller's random state is left unchanged.
    drawing = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with fast_denormals(), kept_memory(), drawing:
        if precision == "auto" and first < steps:
            batch = to_device(batches(first), device)
            precision = _precision(precision, lambda: objective(model, batch), model, device)
        losses: list[Tensor] = []
        begun = spoken = time.perf_counter()
        for step, made in _ahead(batches, range(first, steps)):
            batch = to_device(made, device)
            _seed(seed, step, device)
            with _autocast(precision, device):
                loss = objective(model, batch)
            training.update(loss, learning_rate(step, steps, warmup), clip, ema)
            losses.append(loss.detach())

            done, now = step + 1, time.perf_counter()
            saving = done in (steps, stop_after) or done % every == 0
            if saving or now - spoken > 1:
                rate, mean, quality = (done - first) / (now - begun), float(torch.stack(losses).mean()), None
                if saving:
                    if save is not None:
                        save(training.dict())
                    quality = None if validate is None else training.averaged(validate)
                    losses.clear()
                spoken = time.perf_counter()
                if report is not None:
                    report(Progress(done, steps, mean, rate, (steps - done) / rate, now - begun, saving, quality))
            if done == stop_after:
                break
    training.exchange()
    return model.eval()
