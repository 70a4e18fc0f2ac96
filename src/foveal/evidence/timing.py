"""Prepared functions for claims about time: a forward pass, a training step, or any function."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["call", "seconds", "step"]


def call(build: Callable[[], Callable[..., Any]], *shape: int, seed: int = 0) -> Callable[[], Callable[[], Any]]:
    """A forward pass, for `faster`.

    Args:
        build: builder of the network (set to eval mode) or of any function of one tensor.
        *shape: shape of its input, which is standard normal.
        seed: seed of weights and input.

    Returns:
        Function that prepares and returns the function to time.
    """

    def prepare() -> Callable[[], Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: Any = build()
            x = torch.randn(shape)
        network = network.eval() if isinstance(network, torch.nn.Module) else network

        def run() -> Any:
            with torch.inference_mode():
                return network(x)

        return run

    return prepare


def step(build: Callable[[], nn.Module], *shape: int, seed: int = 0) -> Callable[[], Callable[[], Tensor]]:
    """A forward and a backward pass, for `faster`; with several outputs, the first one is used.

    Args:
        build: builder of the network.
        *shape: shape of its input, which is standard normal.
        seed: seed of weights and input.

    Returns:
        Function that prepares and returns the function to time.
    """

    def prepare() -> Callable[[], Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, x = build().train(), torch.randn(shape)

        def run() -> Tensor:
            out = model(x)
            loss = (out[0] if isinstance(out, tuple) else out).square().mean()
            model.zero_grad()
            loss.backward()
            return loss.detach()

        return run

    return prepare


def seconds(prepare: Callable[[], Callable[[], Any]], *, repeats: int = 3) -> float:
    """Seconds of one call, the minimum of several: a cost for `grows`.

    Args:
        prepare: result of `call` or `step`.
        repeats: number of timed calls, after one untimed call.

    Returns:
        Seconds.
    """
    run = prepare()
    run()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)
