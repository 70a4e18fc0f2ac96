"""A2N: each block weighs a branch with pixel attention against a plain one, anew for each picture.

*Source*: H. Chen et al., "Attention in Attention Network for Image Super-Resolution", 2021 (arXiv:2104.09497),
section 3. A 3×3 convolution to C features, blocks, a 3×3 convolution, a skip around them, an upsampling step for each
factor of 2 (or one of 3), a 3×3 convolution, bilinear upscaling of the picture added. A block, x: (B, C, H, W), of 1×1
convolutions W and 3×3 convolutions K:

    x + W₂ lrelu(π₁ attention(y) + π₂ plain(y))           y = lrelu(W₁ x)
    attention(y) = K₃ (K₂ y ⊙ σ(W lrelu(K₁ y))),  plain(y) = K₄ y
    π = softmax(M₂ relu(M₁ mean(y)) / t)                  (B, 2), mean over H and W, t = 30

An upsampling step is nearest-neighbour upsampling, a 3×3 convolution to C' channels, pixel attention x ⊙ σ(W x), a
leaky ReLU, a 3×3 convolution and another one.

*Differs from the paper*: without one of the branches (the paper's ablations) the other has weight 1, and there is no M.

*Provenance*: written from the paper; layer sizes, slopes and which convolutions have a bias were looked up in the
authors' code. Equals super-image's network bit by bit under shared weights, ×2 to ×4; the order of its parameters is
the same.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

__all__ = ["A2N", "AttentionBlock", "PixelAttention", "a2n_m"]

SLOPE = 0.2
TEMPERATURE = 30.0
REDUCTION = 4  # of the channels inside M


class _AttentionBranch(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.k1, self.k2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.Conv2d(dim, dim, 1)
        self.k3, self.k4 = (nn.Conv2d(dim, dim, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.k2(F.leaky_relu(self.k1(x), SLOPE)))
        return self.k4(self.k3(x) * gate)


class AttentionBlock(nn.Module):
    """Two branches and their weights, (B, C, H, W) to the same.

    Args:
        dim: C, at least 4.
        kernel_size: side of the plain branch's kernel, odd.
        attention: whether there is a branch with attention.
        plain: whether there is a plain branch.

    Raises:
        ValueError: neither branch, an even kernel, or fewer than four channels.
    """

    def __init__(self, dim: int, *, kernel_size: int = 3, attention: bool = True, plain: bool = True) -> None:
        super().__init__()
        if not (attention or plain):
            raise ValueError("attention and plain must not both be False; a block has at least one branch")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        if dim < REDUCTION:
            raise ValueError(f"dim must be at least {REDUCTION}, got {dim}")
        self.conv_first, self.conv_last = (nn.Conv2d(dim, dim, 1, bias=False) for _ in range(2))
        self.weigh: nn.Module | None = None
        if attention and plain:
            inner = dim // REDUCTION
            self.weigh = nn.Sequential(nn.Linear(dim, inner, bias=False), nn.ReLU(), nn.Linear(inner, 2, bias=False))
        self.attention = _AttentionBranch(dim) if attention else None
        self.plain = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, bias=False) if plain else None

    def weights(self, y: Tensor) -> Tensor:
        """Weights of the two branches.

        Args:
            y: what the branches read, (B, C, H, W).

        Returns:
            π, (B, 2), with sum 1: of attention and of the plain branch; 1 and 0, or 0 and 1, if there is only one.
        """
        if self.weigh is None:
            return y.new_tensor([[self.plain is None, self.attention is None]]).expand(len(y), 2)
        return (self.weigh(y.mean((2, 3))) / TEMPERATURE).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv_first(x), SLOPE)
        if self.attention is None or self.plain is None:
            branch = self.plain if self.attention is None else self.attention
            assert branch is not None
            mixed = branch(y)
        else:
            first, second = self.weights(y)[:, :, None, None, None].unbind(1)
            mixed = first * self.attention(y) + second * self.plain(y)
        return x + self.conv_last(F.leaky_relu(mixed, SLOPE))


class PixelAttention(nn.Module):
    """x ⊙ σ(W x), (B, C, H, W) to the same.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class _Up(nn.Module):
    """(B, C, H, W) to (B, C', s·H, s·W)."""

    def __init__(self, in_channels: int, out_channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.attention = PixelAttention(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.interpolate(x, scale_factor=self.scale, mode="nearest"))
        return F.leaky_relu(self.conv2(F.leaky_relu(self.attention(x), SLOPE)), SLOPE)


class A2N(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    Args:
        scale: s: 2, 3 or 4.
        dim: width of the blocks, at least 4.
        up_dim: width after upsampling.
        depth: number of blocks.
        kernel_size: side of the plain branches' kernels, odd.
        attention: whether blocks have a branch with attention.
        plain: whether blocks have a plain branch.
        in_channels: C.

    Raises:
        ValueError: another scale.
    """

    tiling = "overlap"  # the weights of the branches depend on the whole picture

    def __init__(
        self,
        scale: int = 4,
        *,
        dim: int = 40,
        up_dim: int = 24,
        depth: int = 16,
        kernel_size: int = 3,
        attention: bool = True,
        plain: bool = True,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        factors = {2: (2,), 3: (3,), 4: (2, 2)}.get(scale)
        if factors is None:
            raise ValueError(f"scale must be 2, 3 or 4, got {scale}")
        self.scale = scale
        self.conv_first = nn.Conv2d(in_channels, dim, 3, padding=1)
        block = partial(AttentionBlock, dim, kernel_size=kernel_size, attention=attention, plain=plain)
        self.trunk = nn.Sequential(*(block() for _ in range(depth)))
        self.trunk_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.up = nn.Sequential(*(_Up(up_dim if i else dim, up_dim, factor) for i, factor in enumerate(factors)))
        self.conv_last = nn.Conv2d(up_dim, in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_first(x)
        features = features + self.trunk_conv(self.trunk(features))
        base = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return self.conv_last(self.up(features)) + base


# A2N is `A2N` itself.
a2n_m = partial(A2N, kernel_size=1)  # A2N-M


METHOD = Method(
    id=159,
    name="A2N",
    kind="model",
    summary="Each block weighs a branch with pixel attention against a plain one, anew for each picture.",
    paper=Paper(
        "Attention in Attention Network for Image Super-Resolution", "H. Chen et al.", 2021, "arXiv:2104.09497"
    ),
    models={"a2n": A2N, "a2n_m": a2n_m},
    cases={
        "a2n": {"scale": 2, "dim": 4, "up_dim": 3, "depth": 2},
        "a2n_m": {"scale": 3, "dim": 4, "up_dim": 3, "depth": 1},
    },
)
