"""Vision transformers with modules between their blocks that turn the patches into other tokens.

    [p, x] = [p, module(x)]                    before a chosen block; p: tokens of the prefix, such as a class token
    [p, x] = block([p, x])
    x = whole + fuser(x, whole)                after it, if it has a fuser; whole: patches before the module

Shapes: B batch, N tokens, M tokens that a module makes of them, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.runtime.route import Route, recorded

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BlocksBetween", "blocks_of", "insert_"]


def blocks_of(model: nn.Module, *, step: str) -> nn.Sequential:
    """The blocks of a vision transformer.

    Args:
        model: vision transformer of timm.
        step: name of the step that asks, for errors.

    Returns:
        Its blocks.

    Raises:
        TypeError: a network without such blocks.
        ValueError: a network whose blocks already make tokens fewer.
    """
    from timm.models.vision_transformer import VisionTransformer

    from foveal.shrink.tokens.blocks import ReducedBlocks

    blocks: Any = getattr(model, "blocks", None)
    if isinstance(blocks, ReducedBlocks | BlocksBetween):
        raise ValueError(
            f"model makes tokens fewer already, by its {type(blocks).__name__}; give {step} a fresh network"
        )
    if not isinstance(model, VisionTransformer) or not isinstance(blocks, nn.Sequential) or not len(blocks):
        raise TypeError(f"{step} needs a vision transformer of timm, got {type(model).__name__}; build one by timm")
    return blocks


def insert_(
    model: nn.Module, modules: Mapping[int, nn.Module], fusers: Mapping[int, nn.Module] | None = None, *, step: str
) -> nn.Module:
    """Put modules between the blocks of a vision transformer, in place.

    Args:
        model: vision transformer of timm.
        modules: number of a block, from 0 → module of the patches before it, (B, N, C) to (B, M, C).
        fusers: number of a block → module of what it gives and of the patches before its module, (B, M, C) and
            (B, N, C) to (B, N, C); blocks without one hand on M tokens.
        step: name of the step that asks, for errors.

    Returns:
        The same network; the modules are on the device and in the type of its weights.
    """
    blocks = blocks_of(model, step=step)
    like = next(blocks.parameters())
    model.blocks = BlocksBetween(blocks, modules, fusers or {}, protect=int(getattr(model, "num_prefix_tokens", 0))).to(
        like.device, like.dtype
    )
    return model


class BlocksBetween(nn.Module):
    """Blocks with modules between them, (B, N, C) to (B, M, C).

    Names of the blocks' parameters are kept, so state dicts of the network fit; the modules are `before_<number>` and
    `fuser_<number>`. Not iterable: one by one, blocks would get other tokens.

    Args:
        blocks: blocks of timm's vision transformer; they are shared, not copied.
        modules: number of a block, from 0 → module before it.
        fusers: number of a block → fuser after it.
        protect: number of tokens at the start that pass the modules by.

    Raises:
        ValueError: a number that no block has, or a fuser without a module.
    """

    def __init__(
        self, blocks: nn.Module, modules: Mapping[int, nn.Module], fusers: Mapping[int, nn.Module], *, protect: int
    ) -> None:
        super().__init__()
        names = [name for name, _ in blocks.named_children()]
        self.depth, self.protect = len(names), protect
        if wrong := [number for number in modules if not 0 <= number < self.depth]:
            raise ValueError(f"modules must stand before one of {self.depth} blocks, got number {wrong[0]}")
        if wrong := sorted(fusers.keys() - modules.keys()):
            raise ValueError(f"a fuser needs the module before its block, got a fuser alone at {wrong[0]}")
        for name, block in blocks.named_children():
            self.add_module(name, block)
        for number in sorted(modules):
            self.add_module(f"before_{number}", modules[number])
            if number in fusers:
                self.add_module(f"fuser_{number}", fusers[number])

    def __len__(self) -> int:
        return self.depth

    def forward(self, x: Tensor) -> Tensor:
        counts, length = [], x.shape[1]
        parts = self._modules
        for number in range(self.depth):
            block: Any = parts[str(number)]
            module, fuser = parts.get(f"before_{number}"), parts.get(f"fuser_{number}")
            whole = x[:, self.protect :]
            if module is not None:
                x = torch.cat((x[:, : self.protect], module(whole)), 1)
            counts.append(float(x.shape[1]))
            x = block(x)
            if fuser is not None:
                x = torch.cat((x[:, : self.protect], whole + fuser(x[:, self.protect :], whole)), 1)
        if (routes := recorded()) is not None:
            share = torch.full((x.shape[0], 1, 1), sum(counts) / (self.depth * length))
            routes.append(Route(share.numpy(), tuple(counts), (float(length),) * self.depth))
        return x
