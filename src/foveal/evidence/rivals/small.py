"""Plain small networks for 32×32 pictures: teachers, students and rivals of the claims."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CifarResNet", "resnet8", "resnet20", "resnet20_wide", "resnet32", "small_vit"]


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut; a wider or smaller output pads and strides it (option A)."""

    def __init__(self, dim: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.more, self.stride = out - dim, stride

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.more:
            x = F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet for 32×32 pictures (He et al., arXiv:1512.03385, section 4.2): (B, in_channels, H, W) to (B, num_classes).

    Args:
        depth: number of layers, 6n + 2.
        width: channels of the first of three stages; the others have twice and four times as many.
        num_classes: number of classes.
        in_channels: number of input channels.
    """

    def __init__(self, depth: int = 20, *, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        dims = [width, width, 2 * width, 4 * width]
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                _Block(dims[i], dims[i + 1], 1 if i == 0 else 2),
                *(_Block(dims[i + 1], dims[i + 1], 1) for _ in range(blocks - 1)),
            )
            for i in range(3)
        )
        self.fc = nn.Linear(dims[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features of the last stage.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            Features, (B, 4·width, H/4, W/4).
        """
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            Logits, (B, num_classes).
        """
        return self.fc(self.forward_features(x).mean((2, 3)))


resnet8 = partial(CifarResNet, 8)
resnet20 = partial(CifarResNet, 20)
resnet20_wide = partial(CifarResNet, 20, width=32)
resnet32 = partial(CifarResNet, 32)


def small_vit(*, dim: int = 96, depth: int = 6, num_heads: int = 3, patch: int = 4, **words: Any) -> nn.Module:
    """Vision transformer of timm for 32×32 pictures: (B, 3, 32, 32) to (B, 10).

    Args:
        dim: channels of a token.
        depth: number of blocks.
        num_heads: number of heads.
        patch: side of a patch.
        **words: further arguments of `timm.models.VisionTransformer`.

    Returns:
        The network.
    """
    from timm.models.vision_transformer import VisionTransformer

    settings = {"img_size": 32, "num_classes": 10, "global_pool": "avg", "class_token": False, **words}
    return VisionTransformer(patch_size=patch, embed_dim=dim, depth=depth, num_heads=num_heads, **settings)
