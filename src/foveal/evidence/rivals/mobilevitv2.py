"""MobileViTv2 for pictures of 32×32: the rival of backbones that mix pixels cheaply.

Blocks, norms and separable self-attention are timm's. Of the five published stages (arXiv:2206.02680) three remain:
inverted residuals at 16×16, then MobileViTv2 blocks on maps of 8×8 and 4×4, with patches of 2×2 as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

if TYPE_CHECKING:
    from torch import nn

__all__ = ["mobilevitv2"]


def _inverted(channels: int, stride: int) -> ByoBlockCfg:
    """MobileNetV2's block, hidden channels twice the input's."""
    options = {"bottle_in": True, "linear_out": True}
    return ByoBlockCfg("bottle", d=1, c=channels, s=stride, gs=1, br=2.0, block_kwargs=options)


def _mixing(channels: int, depth: int) -> ByoBlockCfg:
    """A depthwise convolution and `depth` transformer blocks of half the channels."""
    options = {"transformer_depth": depth, "patch_size": 2}
    return ByoBlockCfg("mobilevit2", d=1, c=channels, s=1, gs=1, br=0.5, block_kwargs=options)


def mobilevitv2(dim: int, *, depths: tuple[int, int] = (2, 2), num_classes: int = 10) -> nn.Module:
    """A small MobileViTv2 with a stem of stride 2.

    Args:
        dim: channels of the first stage; the others have twice and three times as many. timm rounds each to a multiple
            of 8, and the transformer's half of them too.
        depths: transformer blocks of the second and the third stage.
        num_classes: number of classes.

    Returns:
        (B, 3, 32, 32) to (B, num_classes).
    """
    stages = (
        _inverted(dim, 1),
        (_inverted(2 * dim, 2), _mixing(2 * dim, depths[0])),
        (_inverted(3 * dim, 2), _mixing(3 * dim, depths[1])),
    )
    config = ByoModelCfg(
        blocks=stages, stem_chs=dim // 2, stem_type="3x3", stem_pool="", downsample="", act_layer="silu"
    )
    network: nn.Module = ByobNet(config, num_classes=num_classes)
    return network
