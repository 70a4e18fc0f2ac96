"""CFSR: large depthwise kernels that gate a 1×1 convolution in place of attention, and edges that fold into a kernel.

*Source*: G. Wu et al., "Transforming Image Super-Resolution: A ConvFormer-based Efficient Approach", 2024
(arXiv:2401.05633), section III. A 3×3 convolution to C features, groups of blocks with a 1×1 convolution and a skip, a
norm, a 3×3 convolution, a skip around all of it, a 3×3 convolution and a pixel shuffle. A block for x: (B, C, H, W)
and γ: (C,):

    mixer (ConvFormer):    x + γ₁ W₃ (D * gelu(W₁ y) ⊙ W₂ y)                 y = norm x, D: depthwise 9×9
    feed-forward (EFN):    x + γ₂ W₅ (z + gelu(E * z))                       z = gelu(W₄ norm x), E: depthwise 3×3
    edges (EDC):           E = K + α₁ S_x + α₂ S_y + α₃ L                    α: one number a channel and filter

S_x, S_y and L are Sobel's filters and Laplace's. A convolution is linear in its kernel, so E is summed before it is
applied, in training too; `fold` stores the sum.

*Differs from the paper*: the branches share one bias, which is the sum of theirs. In the authors' code one weight of
S_x and one of L stand in another place than in the filters of these names; here they are the filters.

*Provenance*: written from the paper; layer sizes, the start of γ at 1e-6 and that of α were looked up in the authors'
code. Folded, the network equals that code to 1e-6 under shared weights at 23×31, ×2 to ×4.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.record import Method, Paper

__all__ = ["CFSR", "ConvMixer", "EdgeConv2d", "edge_filters"]

MEAN = (0.4488, 0.4371, 0.4040)  # of the colours in DIV2K


def edge_filters() -> Tensor:
    """The fixed filters.

    Returns:
        Sobel's along the row, Sobel's along the column and Laplace's, (3, 3, 3).
    """
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    return torch.stack([across, across.mT, torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])])


class EdgeConv2d(nn.Conv2d):
    """Depthwise 3×3 convolution plus edge filters, (B, C, H, W) to the same.

    Args:
        dim: C.
    """

    filters: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        self.scales = nn.Parameter(1e-3 * torch.randn(3, dim))
        self.register_buffer("filters", edge_filters(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.kernel(), self.bias)

    def kernel(self) -> Tensor:
        """The sum of the kernel and the weighted filters.

        Returns:
            (C, 1, 3, 3).
        """
        return self.weight + torch.einsum("fc,fij->cij", self.scales, self.filters)[:, None]

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """The same map as a plain convolution.

        Returns:
            Depthwise 3×3 convolution.
        """
        dim = self.in_channels
        conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim).to(self.weight)
        conv.load_state_dict({"weight": self.kernel(), "bias": self.bias})
        return conv


class ConvMixer(nn.Module):
    """Large depthwise kernels gate a 1×1 convolution, (B, C, H, W) to the same.

    Args:
        dim: C.
        kernel_size: side of the kernels, odd.
    """

    def __init__(self, dim: int, kernel_size: int = 9) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.a = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim),
        )
        self.v, self.proj = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.proj(self.a(x) * self.v(x))


class _FeedForward(nn.Module):
    """EFN, (B, C, H, W) to the same."""

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        hidden = round(expansion * dim)
        self.norm = LayerNorm2d(dim)
        self.fc1, self.fc2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
        self.pos: nn.Conv2d = EdgeConv2d(hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(self.norm(x)))
        return self.fc2(x + F.gelu(self.pos(x)))


class _Block(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, kernel_size: int, expansion: float) -> None:
        super().__init__()
        self.attn, self.mlp = ConvMixer(dim, kernel_size), _FeedForward(dim, expansion)
        self.layer_scale_1, self.layer_scale_2 = (nn.Parameter(torch.full((dim,), 1e-6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1[:, None, None] * self.attn(x)
        return x + self.layer_scale_2[:, None, None] * self.mlp(x)


class _Group(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, depth: int, kernel_size: int, expansion: float) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_Block(dim, kernel_size, expansion) for _ in range(depth)))
        self.conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.conv(x) + x


class CFSR(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s, at least 1.
        dim: width.
        depths: number of blocks of each group.
        kernel_size: side of the large kernels, odd.
        expansion: ratio of a feed-forward's hidden width to `dim`.
        in_channels: C.

    Raises:
        ValueError: if the scale is below 1 or the kernels are even.
    """

    mean: Tensor

    def __init__(
        self,
        scale: int = 2,
        *,
        dim: int = 48,
        depths: tuple[int, ...] = (6, 6),
        kernel_size: int = 9,
        expansion: float = 2,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        self.scale = scale
        self.margin = 3 + sum(depths) * (kernel_size // 2 + 1)
        mean = MEAN if in_channels == len(MEAN) else (0.5,) * in_channels
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.conv_first = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.layers = nn.Sequential(*(_Group(dim, depth, kernel_size, expansion) for depth in depths))
        self.norm = LayerNorm2d(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2d(dim, in_channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_first(x - self.mean)
        return self.upsample(first + self.conv_after_body(self.norm(self.layers(first)))) + self.mean

    def fold(self) -> CFSR:
        """The same network with its edge filters in the kernels.

        Returns:
            A copy for use, not for training; its parameters have the names of the authors' code.
        """
        network = copy.deepcopy(self)
        for module in list(network.modules()):
            if isinstance(module, _FeedForward) and isinstance(module.pos, EdgeConv2d):
                module.pos = module.pos.fold()
        return network


METHOD = Method(
    id=305,
    name="CFSR",
    kind="model",
    summary="Large depthwise kernels in place of attention; edge filters fold into a small one.",
    paper=Paper(
        "Transforming Image Super-Resolution: A ConvFormer-based Efficient Approach",
        "G. Wu et al.",
        2024,
        "arXiv:2401.05633",
    ),
    models={"cfsr": CFSR},
    cases={"cfsr": {"scale": 2, "dim": 4, "depths": (1, 1), "kernel_size": 5}},
)
