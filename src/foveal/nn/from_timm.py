"""Networks from timm, with foveal's names for the shared arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm

if TYPE_CHECKING:
    from torch import nn

__all__ = ["from_timm"]


def from_timm(
    name: str, *, in_channels: int = 3, num_classes: int = 1000, drop_path: float = 0.0, **sizes: Any
) -> nn.Module:
    """Build a timm network with randomly initialised weights.

    Args:
        name: model name, as for `timm.create_model`.
        in_channels: number of channels of the picture.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise from 0.
        **sizes: further arguments of the network, under timm's names; timm rejects unknown ones.

    Returns:
        The network.
    """
    return timm.create_model(name, in_chans=in_channels, num_classes=num_classes, drop_path_rate=drop_path, **sizes)
