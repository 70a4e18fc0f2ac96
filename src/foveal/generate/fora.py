"""FORA: attention and MLP blocks of a diffusion transformer run every N-th step, and repeat themselves in between.

*Source*: P. Selvaraju et al., "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration", 2024
(arXiv:2407.01425), sections 3.2 and 3.3. In step t = 0, 1, … of a sampler, a layer of a DiT does, twice,

    x ← x + g · kept,   kept = block(norm(x) (1 + a) + b) if t mod N = 0, else what it was in the step before

with x and kept (B, N tokens, C), block its attention, then its MLP, and (a, b, g) from time and class, (B, C) each.
Norms, modulation and gates are computed in every step. Of T steps ⌈T / N⌉ run the blocks; nothing is trained, and 2 L
outputs are kept for L layers.

*Differs from the paper*: nothing. Any network whose blocks are modules can be cached, not only DiT and PixArt.

*Provenance*: written from the paper. Repeating an output is the Taylor expansion of order 0 of TaylorSeer: ten steps of
diffusers' `DiTTransformer2DModel` at N = 3 give the same samples as its `TaylorSeerCacheConfig` of `max_order=0`, bit
for bit (0.42.1), as does a loop that keeps the outputs in a list.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["NAMES", "Cache", "fora"]

NAMES = ("attn", "attn1", "attn2", "ff", "mlp")  # of blocks: timm's and DiT's, and those of diffusers


class Cache:
    """Kept outputs of blocks, and where in the cycle of N steps they are.

    Args:
        every: N.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.calls: dict[str, int] = {}
        self.kept: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what is kept: the next step runs all blocks, as the first one of new pictures must."""
        self.step = -1
        self.kept = {}

    def _next(self, *_: Any) -> None:
        self.step += 1
        if self.step % self.every == 0:
            self.kept = {}

    def _wrapped(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        self.calls[name] = 0

        def run(*inputs: Any, **words: Any) -> Any:
            if name not in self.kept:
                self.calls[name] += 1
                self.kept[name] = forward(*inputs, **words)
            return self.kept[name]

        return run


@contextmanager
def fora(network: nn.Module, every: int = 3, *, names: tuple[str, ...] = NAMES) -> Iterator[Cache]:
    """Let blocks of a network run at every N-th call of it only, for one run of a sampler.

    Args:
        network: the diffusion transformer, called once a step; a block is called once in it.
        every: N; at 1 nothing changes.
        names: last part of the names of the modules whose outputs are kept.

    Yields:
        The cache, which counts how often each block ran; `reset` begins another run.

    Raises:
        ValueError: N below 1, or no block of these names.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from foveal.generate.fora import fora
        >>> network = nn.Sequential()
        >>> network.add_module("mlp", nn.Linear(2, 2))
        Sequential(
          (mlp): Linear(in_features=2, out_features=2, bias=True)
        )
        >>> with fora(network, 3) as cache:
        ...     outs = [network(torch.full((1, 2), float(t))) for t in range(7)]
        >>> cache.calls
        {'mlp': 3}
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}; 3 is usual")
    blocks = {name: module for name, module in network.named_modules() if name.rpartition(".")[2] in names}
    if not blocks:
        raise ValueError(f"fora keeps blocks named {', '.join(names)}, {type(network).__name__} has none; give names")
    cache = Cache(every)
    hook = network.register_forward_pre_hook(cache._next)
    before = {name: module.__dict__.get("forward") for name, module in blocks.items()}
    try:
        for name, module in blocks.items():
            module.__dict__["forward"] = cache._wrapped(name, module.forward)
        yield cache
    finally:
        hook.remove()
        for name, module in blocks.items():
            module.__dict__.pop("forward", None)
            if before[name] is not None:
                module.__dict__["forward"] = before[name]
        cache.reset()


def _run(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential()
    network.add_module("mlp", nn.Identity())
    x = torch.rand(7, 3, generator=generator)
    with fora(network, 3):
        return torch.stack([network(row) for row in x])


METHOD = Method(
    id=229,
    name="FORA",
    kind="procedure",
    summary="Attention and MLP blocks of a diffusion transformer run every N-th step and repeat themselves in between.",
    paper=Paper(
        "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration",
        "P. Selvaraju et al.",
        2024,
        "arXiv:2407.01425",
    ),
    cases={"repeats": Procedure(_run, lambda: fora(nn.Sequential(), 3).__enter__(), "has none; give names")},
)
