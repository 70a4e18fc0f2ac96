"""Networks of timm as they are used: batch norms and branches folded into the layers before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.shrink.fold.step import fold_batch_norms_, fold_branches

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["folded"]


def folded(build: Callable[[], nn.Module], *, side: int = 64) -> Callable[[], nn.Module]:
    """A builder of a network without batch norms.

    Args:
        build: builder of the network, (B, 3, H, W) to (B, classes).
        side: side of the picture on which each fold is checked.

    Returns:
        Builder without arguments; it raises `RuntimeError` where a batch norm remains.
    """

    def build_folded() -> nn.Module:
        model = fold_branches(build().eval())
        fold_batch_norms_(model, torch.randn(1, 3, side, side))
        left = [
            name for name, module in model.named_modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        ]
        if left:
            raise RuntimeError(f"expected all batch norms to fold, {len(left)} remain: {', '.join(left[:3])}")
        return model

    return build_folded
