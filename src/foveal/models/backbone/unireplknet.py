"""UniRepLKNet: large depthwise kernels, trained as a sum of dilated small ones and run as one.

*Source*: X. Ding et al., "UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud,
Time-Series and Image Recognition", CVPR 2024 (arXiv:2311.15599), section 3; Y. Zhang et al., "Scaling Up Your Kernels",
2024 (arXiv:2410.08049). A kernel of k×k pixels has parallel branches with k_i×k_i taps d_i pixels apart, for
x: (B, C, H, W), all of them depthwise and each with a batch norm BN of its own,

    y = BN(K * x) + Σ_i BN_i(K_i *_{d_i} x)

A dilated kernel is a sparse large one, K_i with d_i - 1 zeros between its taps, of d_i (k_i - 1) + 1 ≤ k pixels a side,
and a batch norm in use is a factor and a bias for each channel: the sum is one k×k convolution (`fold`). A block is

    x = x + γ BN(W₂ grn(gelu(W₁ se(BN(y)))))    W₁: (4C, C), W₂: (C, 4C)

with se(z) = z ⊙ sigmoid(V₂ relu(V₁ mean z)) and, for z: (B, H, W, C'), ‖z‖: (B, C') the norm over pixels,
grn(z) = (α ‖z‖ / mean ‖z‖ + 1) ⊙ z + β. Four stages; blocks with a plain 3×3 kernel stand between those with 13×13.

*Differs from the paper*: nothing.

*Provenance*: written from the paper; the branches of each kernel size, the stem and the initial values were looked up
in the authors' code, which all sizes equal to 3e-7 under shared weights at 64×96, folded and not.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from foveal.nn.pooled_norm import PooledNormPyramid
from foveal.nn.renamed import renamed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BRANCHES",
    "DilatedReparam",
    "UniRepLKNet",
    "from_authors",
    "merged_kernel",
    "unireplknet_a",
    "unireplknet_f",
    "unireplknet_n",
    "unireplknet_p",
    "unireplknet_s",
    "unireplknet_t",
]

BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {  # side of a kernel → (k_i, d_i) of its branches
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


def merged_kernel(large: Tensor, small: Sequence[Tensor], dilations: Sequence[int]) -> Tensor:
    """The one kernel that a large kernel and dilated small ones are together.

    Args:
        large: (C, 1, k, k) with odd k.
        small: (C, 1, k_i, k_i) each, with odd k_i.
        dilations: d_i.

    Returns:
        (C, 1, k, k).

    Raises:
        ValueError: a dilated kernel that is larger than the large one.
    """
    merged, size = large.clone(), large.shape[-1]
    for kernel, dilation in zip(small, dilations, strict=True):
        side = dilation * (kernel.shape[-1] - 1) + 1
        if side > size:
            raise ValueError(
                f"a branch must fit into {size}×{size} pixels, got {side}×{side}: {kernel.shape[-1]} taps at dilation "
                f"{dilation}; take a smaller one"
            )
        first = (size - side) // 2
        merged[..., first : first + side : dilation, first : first + side : dilation] += kernel
    return merged


def _depthwise(dim: int, kernel_size: int, dilation: int = 1, *, bias: bool = False) -> nn.Conv2d:
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(dim, dim, kernel_size, padding=padding, dilation=dilation, groups=dim, bias=bias)


def _after_norm(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the batch norm behind it, in use."""
    statistics = (norm.running_mean, norm.running_var, norm.eps)
    return fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)


class DilatedReparam(nn.Module):
    """A large depthwise kernel with dilated small ones beside it, (B, C, H, W) to the same.

    Args:
        dim: C.
        kernel_size: k, one of `BRANCHES`.

    Raises:
        ValueError: another kernel.
    """

    def __init__(self, dim: int, kernel_size: int = 13) -> None:
        super().__init__()
        if kernel_size not in BRANCHES:
            raise ValueError(f"kernel_size must be one of {', '.join(map(str, BRANCHES))}, got {kernel_size}")
        shapes = ((kernel_size, 1), *BRANCHES[kernel_size])
        self.convs = nn.ModuleList(_depthwise(dim, size, dilation) for size, dilation in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in shapes)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True))
        return first + sum(others)

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """The same map in use as one convolution.

        Returns:
            Depthwise k×k convolution with a bias.
        """
        pairs: Any = list(zip(self.convs, self.norms, strict=True))
        kernels, biases = zip(*(_after_norm(conv, norm) for conv, norm in pairs), strict=True)
        dilations = [conv.dilation[0] for conv, _ in pairs[1:]]
        merged = _depthwise(len(kernels[0]), kernels[0].shape[-1], bias=True).to(kernels[0])
        merged.load_state_dict({"weight": merged_kernel(kernels[0], kernels[1:], dilations), "bias": sum(biases)})
        return merged


class _SqueezeExcite(nn.Module):
    """A factor for each channel from the means of all, (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(dim, dim // 4, 1), nn.Conv2d(dim // 4, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class _GlobalResponseNorm(nn.Module):
    """Channels compete by their norms over all pixels, (B, H, W, C) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(dim))
        self.shift: nn.Parameter | None = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        norms = x.norm(dim=(1, 2), keepdim=True)
        x = (self.scale * norms / (norms.mean(-1, keepdim=True) + 1e-6) + 1) * x
        return x if self.shift is None else x + self.shift


class _Block(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, kernel_size: int, drop_path: float) -> None:
        super().__init__()
        large = kernel_size >= 7
        self.dwconv: nn.Module = DilatedReparam(dim, kernel_size) if large else _depthwise(dim, kernel_size)
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.se = _SqueezeExcite(dim)
        self.fc1, self.grn = nn.Linear(dim, 4 * dim), _GlobalResponseNorm(4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(dim)
        self.gamma: nn.Parameter | None = nn.Parameter(torch.full((dim,), 1e-6))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.norm(self.dwconv(x)))
        # (B, H, W, C) and back
        y = self.norm2(self.fc2(self.grn(F.gelu(self.fc1(y.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2))
        return x + self.drop_path(y if self.gamma is None else self.gamma[:, None, None] * y)

    @torch.no_grad()
    def fold_(self) -> None:
        """One convolution in place of the branches and their norms; β, γ and the last norm go into W₂ and its bias."""
        norm: Any = self.norm2
        if isinstance(norm, nn.Identity):
            return
        conv = self.dwconv.fold() if isinstance(self.dwconv, DilatedReparam) else self.dwconv
        weight, bias = _after_norm(conv, self.norm)
        self.dwconv = _depthwise(len(weight), weight.shape[-1], bias=True).to(weight)
        self.dwconv.load_state_dict({"weight": weight, "bias": bias})
        matrix = self.fc2.weight
        passed = matrix.new_zeros(len(matrix)) if self.grn.shift is None else matrix @ self.grn.shift
        mean, variance = norm.running_mean, norm.running_var
        weight, bias = fuse_linear_bn_weights(matrix, passed, mean, variance, norm.eps, norm.weight, norm.bias)
        scale = torch.ones_like(bias) if self.gamma is None else self.gamma
        self.fc2 = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
        self.fc2.load_state_dict({"weight": scale[:, None] * weight, "bias": scale * bias})
        self.norm, self.norm2, self.gamma, self.grn.shift = nn.Identity(), nn.Identity(), None, None


def _halving(in_channels: int, dim: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, dim, 3, 2, 1), LayerNorm2d(dim)]


class UniRepLKNet(PooledNormPyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dims: channels of each stage.
        kernel_sizes: side of the depthwise kernel of each block of each stage; 3 and 5 have no branches, 7 to 17 have
            those of `BRANCHES`.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.

    Raises:
        ValueError: if `dims` and `kernel_sizes` differ in length, or a kernel of another size.
    """

    def __init__(
        self,
        dims: Sequence[int] = (80, 160, 320, 640),
        kernel_sizes: Sequence[Sequence[int]] = ((3,) * 3, (13,) * 3, (13, 3) * 9, (13,) * 3),
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        if len(dims) != len(kernel_sizes):
            raise ValueError(
                f"dims and kernel_sizes must have the same length, got {len(dims)} and {len(kernel_sizes)}"
            )
        known = (3, *BRANCHES)
        if wrong := [size for sizes in kernel_sizes for size in sizes if size not in known]:
            raise ValueError(f"kernel_sizes must be among {', '.join(map(str, known))}, got {wrong[0]}")
        drops = iter(torch.linspace(0, drop_path, sum(map(len, kernel_sizes)), device="cpu").tolist())
        stages = []
        for i, (dim, sizes) in enumerate(zip(dims, kernel_sizes, strict=True)):
            blocks = [_Block(dim, size, next(drops)) for size in sizes]
            stages.append(nn.Sequential(*(_halving(dims[i - 1], dim) if i else []), *blocks))
        half = dims[0] // 2
        super().__init__(
            nn.Sequential(*_halving(in_channels, half), nn.GELU(), *_halving(half, dims[0])),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
        )
        self.head_norm = nn.LayerNorm(dims[-1], eps=1e-6)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def fold(self) -> UniRepLKNet:
        """The same network in use with one convolution a block: no branches, no batch norms, no γ and no β.

        Returns:
            A copy for use, not for training.
        """
        network = copy.deepcopy(self).eval()
        for module in network.modules():
            if isinstance(module, _Block):
                module.fold_()
        return network


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    Args:
        state_dict: name → tensor, of a network that is not folded and has kernels of 3×3 and 13×13.

    Returns:
        State dict of the network of the same size.
    """
    found = renamed(
        state_dict,
        [
            # their downsampling is a list of its own, ours begins a stage
            (r"^stages\.([1-9]\d*)\.(\d+)\.", lambda at: f"stages.{at[1]}.{int(at[2]) + 2}."),
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d+)\.", r"stages.\1."),
            (r"^norm\.", "head_norm."),
            (r"\.lk_origin\.", ".convs.0."),
            (r"\.origin_bn\.", ".norms.0."),
            (r"\.dil_conv_k\d+_(\d)\.", r".convs.\1."),
            (r"\.dil_bn_k\d+_(\d)\.", r".norms.\1."),
            (r"\.pwconv1\.1\.", ".fc1."),
            (r"\.act\.1\.gamma$", ".grn.scale"),
            (r"\.act\.1\.beta$", ".grn.shift"),
            (r"\.pwconv2\.0\.", ".fc2."),
            (r"\.pwconv2\.2\.", ".norm2."),
        ],
    )
    return {name: value.flatten() if ".grn." in name else value for name, value in found.items()}


_SHORT = ((3,) * 2, (13,) * 2, (13,) * 6, (13,) * 2)
# Parameters and multiply-adds of the folded networks at 224×224.
unireplknet_a = partial(UniRepLKNet, dims=(40, 80, 160, 320), kernel_sizes=_SHORT)  # UniRepLKNet-A: 4.4 M, 0.6 G
unireplknet_f = partial(UniRepLKNet, dims=(48, 96, 192, 384), kernel_sizes=_SHORT)  # UniRepLKNet-F: 6.2 M, 0.9 G
unireplknet_p = partial(UniRepLKNet, dims=(64, 128, 256, 512), kernel_sizes=_SHORT)  # UniRepLKNet-P: 10.7 M, 1.6 G
unireplknet_n = partial(UniRepLKNet, kernel_sizes=((3,) * 2, (13,) * 2, (13,) * 8, (13,) * 2))  # -N: 18.3 M, 2.8 G
unireplknet_t = UniRepLKNet  # UniRepLKNet-T: 31 M, 4.9 G
unireplknet_s = partial(  # UniRepLKNet-S: 56 M, 9.1 G
    UniRepLKNet, dims=(96, 192, 384, 768), kernel_sizes=((3,) * 3, (13,) * 3, (13, 3, 3) * 9, (13,) * 3)
)

_TINY = {"dims": (4, 8), "kernel_sizes": ((3,), (7, 3)), "num_classes": 3}

METHOD = Method(
    id=214,
    name="UniRepLKNet",
    kind="model",
    summary="Large depthwise kernels, trained with dilated small ones beside them and run as one.",
    paper=Paper(
        "Scaling Up Your Kernels: Large Kernel Design in ConvNets towards Universal Representations",
        "Y. Zhang et al.",
        2024,
        "arXiv:2410.08049",
    ),
    models={
        "unireplknet_a": unireplknet_a,
        "unireplknet_f": unireplknet_f,
        "unireplknet_p": unireplknet_p,
        "unireplknet_n": unireplknet_n,
        "unireplknet_t": unireplknet_t,
        "unireplknet_s": unireplknet_s,
    },
    cases={
        "unireplknet_a": {**_TINY, "in_channels": 1, "drop_path": 0.1},
        "unireplknet_f": _TINY,
        "unireplknet_p": _TINY,
        "unireplknet_n": _TINY,
        "unireplknet_t": _TINY,
        "unireplknet_s": _TINY,
    },
)
