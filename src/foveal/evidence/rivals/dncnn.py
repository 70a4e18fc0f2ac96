"""DnCNN: the plain deep network that denoisers are measured against.

*Source*: K. Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", IEEE TIP
26(7), 2017 (arXiv:1608.03981), section III: 3×3 convolutions of 64 channels with batch normalisation and ReLU between
the first and the last; the network makes what is subtracted from the picture.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DnCNN"]


class DnCNN(nn.Module):
    """(B, 3, H, W) to the same.

    Args:
        depth: convolutions; 17 in the paper for one level of noise, 20 for blind denoising.
        dim: channels.
        in_channels: channels of the picture.
    """

    def __init__(self, depth: int = 17, dim: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, dim, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(dim, in_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.layers(x)
