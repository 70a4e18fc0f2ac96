"""A network that timm has, under the words for arguments that are shared here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm

if TYPE_CHECKING:
    from torch import nn

__all__ = ["from_timm"]


def from_timm(
    name: str, *, in_channels: int = 3, num_classes: int = 1000, drop_path: float = 0.0, **sizes: Any
) -> nn.Module:
    """Build timm's network of that name, with fresh weights.

    Args:
        name: as `timm.create_model` takes it.
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: probability of dropping the last block's branch; it rises to that from 0.
        **sizes: other arguments of the network, under timm's names; timm refuses those it does not know.

    Returns:
        The network.
    """
    return timm.create_model(name, in_chans=in_channels, num_classes=num_classes, drop_path_rate=drop_path, **sizes)
