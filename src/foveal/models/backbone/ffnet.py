"""FFNet: convolutional networks whose token mixer is attention with the operations of a feed-forward network.

*Source*: S. Yun, D. Lee, Y. Ro, "MetaMixer Is All You Need", 2024 (arXiv:2406.02021). A feed-forward network
is a memory: its input is the query, its first weights are keys, its second weights values, and an activation makes
coefficients. MetaMixer is that frame with its operations left open. FFNified attention fills it with depthwise
convolutions and GELU in place of products and softmax, for x: (B, C, H, W),

    q = BN(W x);  a = gelu(K * q);  y = V * a                          W: (C, C), K and V: (C, k, k) depthwise

so the keys are patterns of k×k pixels, and where one is found its value is written. A block is

    x = x + γ₁ mixer(x);  x = x + γ₂ (W₂ gelu(W₁ (D * x)))             W₁: (3C, C), W₂: (C, 3C), D depthwise

Between the stages, a depthwise 7×7 convolution of stride 2 doubles the channels, and x = x + U BN(x) mixes them. While
training, each 7×7 kernel has a 3×3 kernel beside it, both with a batch norm (K, V and D have k = 3 or 7 by stage); in
use they are one convolution (`timm.utils.model.reparameterize_model`).

*Differs from the paper*: nothing; its networks for super-resolution, point clouds and series are not here.

*Provenance*: written from the paper; stem, sizes, norms and the start of γ were looked up in the authors' code, which
FFNet-1 to 4 equal exactly under shared weights at 96×64, merged to 4e-7. Branches and their merging are timm's.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models.fastvit import ReparamLargeKernelConv
from timm.models.repvit import ConvNorm
from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "FFNet",
    "FFNifiedAttention",
    "ffnet_1",
    "ffnet_2",
    "ffnet_3",
    "ffnet_4",
    "ffnified_attention",
    "ffnified_attention_reference",
    "from_authors",
]

LARGE, BESIDE = 7, 3  # sides of a large kernel and of the one that is trained beside it


def ffnified_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Find patterns of keys around each pixel and write their values there.

    Args:
        query: q, (B, C, H, W); the border is padded with zeros.
        keys: K, (C, 1, k, k) with odd k.
        values: V, (C, 1, k, k).

    Returns:
        (B, C, H, W).
    """
    padding, channels = keys.shape[-1] // 2, len(keys)
    coefficients = F.gelu(torch.conv2d(query, keys, padding=padding, groups=channels))
    return torch.conv2d(coefficients, values, padding=padding, groups=channels)


def ffnified_attention_reference(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same as attention is written: products of windows with keys, an activation, sums of values.

    Args:
        query: (B, C, H, W).
        keys: (C, 1, k, k).
        values: (C, 1, k, k).

    Returns:
        (B, C, H, W).
    """
    size = keys.shape[-1]

    def products(x: Tensor, weights: Tensor) -> Tensor:
        # (B, C, k², H·W)
        windows = F.unfold(x, size, padding=size // 2).unflatten(1, (x.shape[1], size**2))
        return torch.einsum("bckl,ck->bcl", windows, weights.flatten(1)).view(x.shape)

    scores = products(query, keys)
    return products(scores * 0.5 * (1 + torch.erf(scores / 2**0.5)), values)


def _large(dim: int, out: int, stride: int = 1) -> ReparamLargeKernelConv:
    """A depthwise 7×7 kernel with a 3×3 one beside it, (B, dim, H, W) to (B, out, ⌈H / stride⌉, ⌈W / stride⌉)."""
    return ReparamLargeKernelConv(dim, out, LARGE, stride, group_size=1, small_kernel=BESIDE)


class FFNifiedAttention(nn.Module):
    """FFNified attention, (B, C, H, W) to the same.

    Args:
        dim: C.
        kernel_size: side of the kernels of keys and values, odd; those of 7 have branches.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, dim: int, *, kernel_size: int = LARGE) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        self.query = ConvNorm(dim, dim)
        self.keys, self.values = (
            _large(dim, dim)
            if kernel_size == LARGE
            else nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.values(F.gelu(self.keys(self.query(x))))


class _ChannelMixer(nn.Module):
    """A depthwise convolution, then a feed-forward network of two layers, (B, C, H, W) to the same."""

    def __init__(self, dim: int, kernel_size: int, ratio: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.local = (
            _large(dim, dim)
            if kernel_size == LARGE
            else ConvNorm(dim, dim, kernel_size, pad=kernel_size // 2, groups=dim)
        )
        self.fc1, self.fc2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.local(x))))


class _Residual(nn.Module):
    """x + γ ⊙ main(x), (B, C, H, W) to the same; γ is 1 where there is no start for it."""

    def __init__(self, main: nn.Module, dim: int, scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.main, self.drop_path = main, DropPath(drop_path)
        self.scale = None if scale is None else nn.Parameter(torch.full((dim, 1, 1), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        return x + self.drop_path(y if self.scale is None else self.scale * y)


class _Mixing(nn.Module):
    """x + U BN(x), (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(dim), nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x))

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The same map in use as one convolution, for `timm.utils.model.reparameterize_model`."""
        norm: Any = self.norm
        matrix = self.conv.weight[:, :, 0, 0]
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = (matrix * factor + torch.eye(len(matrix)).to(matrix))[:, :, None, None]
        one = nn.Conv2d(len(matrix), len(matrix), 1).to(matrix)
        one.load_state_dict({"weight": weight, "bias": matrix @ (norm.bias - factor * norm.running_mean)})
        return one


class FFNet(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dims: channels of each stage, twice as many from stage to stage.
        depths: number of blocks of each stage.
        mixer_kernels: side of the kernels of keys and values in each stage, odd.
        channel_kernels: side of the depthwise kernels before the feed-forward networks in each stage, odd.
        ratio: hidden channels of these networks over the channels.
        layer_scale: start of γ; None for no γ.
        stem_width: channels between the two convolutions of the stem.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.

    Raises:
        ValueError: if the arguments for each stage differ in length, a stage does not have twice the channels of the
            one before, or a kernel is even.
    """

    def __init__(
        self,
        dims: Sequence[int] = (80, 160, 320, 640),
        depths: Sequence[int] = (2, 2, 8, 2),
        *,
        mixer_kernels: Sequence[int] = (3, 3, 7, 7),
        channel_kernels: Sequence[int] = (3, 3, 3, 3),
        ratio: float = 3.0,
        layer_scale: float | None = None,
        stem_width: int = 64,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        lengths = [len(of) for of in (dims, depths, mixer_kernels, channel_kernels)]
        if len(set(lengths)) > 1:
            raise ValueError(
                "dims, depths, mixer_kernels and channel_kernels must have the same length, got "
                + ", ".join(map(str, lengths))
            )
        if any(after != 2 * before for before, after in pairwise(dims)):
            raise ValueError(f"each stage must have twice the channels of the one before, got dims {tuple(dims)}")
        if even := [size for size in (*mixer_kernels, *channel_kernels) if size % 2 == 0]:
            raise ValueError(f"kernels must be odd, got {even[0]}; take {even[0] + 1}")
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            layers: list[nn.Module] = [_large(dims[i - 1], dim, 2), _Mixing(dim)] if i else []
            for _ in range(depth):
                drop = next(drops)
                mixer = FFNifiedAttention(dim, kernel_size=mixer_kernels[i])
                channels = _ChannelMixer(dim, channel_kernels[i], ratio)
                layers.append(nn.Sequential(*(_Residual(m, dim, layer_scale, drop) for m in (mixer, channels))))
            stages.append(nn.Sequential(*layers))
        super().__init__(
            nn.Sequential(
                ConvNorm(in_channels, stem_width, 3, 2, 1), nn.GELU(), ConvNorm(stem_width, dims[0], 3, 2, 1)
            ),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=nn.BatchNorm2d(dims[-1]),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    Args:
        state_dict: name → tensor, the entry "state_dict" of their files.

    Returns:
        State dict of `ffnet_1`, `ffnet_2`, `ffnet_3` or `ffnet_4`.
    """
    branch = r"\.(keys|values|local|0)"
    return renamed(
        state_dict,
        [
            (r"^patch_embed\.", "stem."),
            (r"^stages\.0\.(\d+)\.", r"stages.0.=\1."),
            # their downsampling is one module, ours two
            (r"^stages\.(\d)\.0\.proj\.", r"stages.\1.="),
            (r"^stages\.(\d)\.(\d+)\.", lambda at: f"stages.{at[1]}.={int(at[2]) + 1}."),
            (r"\.=", "."),
            (r"\.token_mixer\.0\.main\.", ".0.main."),
            (r"\.token_mixer\.0\.layer_scale", ".0.scale"),
            (r"\.channel_mixer\.main\.", ".1.main."),
            (r"\.channel_mixer\.layer_scale", ".1.scale"),
            (r"\.main\.fc\.", ".main.query."),
            (r"\.0\.main\.conv1\.", ".0.main.keys."),
            (r"\.0\.main\.conv2\.", ".0.main.values."),
            (r"\.1\.main\.conv\.", ".1.main.local."),
            (branch + r"\.conv\.c\.", r".\1.large_conv.conv."),
            (branch + r"\.conv\.bn\.", r".\1.large_conv.bn."),
            (branch + r"\.conv1\.c\.", r".\1.small_conv.conv."),
            (branch + r"\.conv1\.bn\.", r".\1.small_conv.bn."),
            (r"\.1\.conv\.bn\.", ".1.norm."),
            (r"\.1\.conv\.c\.", ".1.conv."),
        ],
    )


_LARGE = (LARGE,) * 4
# Parameters, merged, and multiply-adds at 256×256; of FFNet-4 at 384×384.
ffnet_1 = FFNet  # FFNet-1: 13.7 M, 2.9 G
ffnet_2 = partial(FFNet, dims=(88, 176, 352, 704), depths=(3, 3, 15, 3), channel_kernels=_LARGE)  # -2: 26.9 M, 6.0 G
ffnet_3 = partial(  # FFNet-3: 48.3 M, 10.1 G
    FFNet, dims=(96, 192, 384, 768), depths=(4, 4, 22, 5), channel_kernels=_LARGE, layer_scale=1e-6
)
ffnet_4 = partial(  # FFNet-4: 79.2 M, 43.1 G
    FFNet, dims=(128, 256, 512, 1024), depths=(4, 4, 27, 3), channel_kernels=_LARGE, layer_scale=1e-6
)

_TINY = {
    "dims": (4, 8),
    "depths": (1, 1),
    "mixer_kernels": (3, 7),
    "channel_kernels": (3, 7),
    "stem_width": 4,
    "num_classes": 3,
}

METHOD = Method(
    id=331,
    name="FFNet-MetaMixer",
    kind="model",
    summary="Attention made of a feed-forward network's operations: depthwise kernels as keys and values, and GELU.",
    paper=Paper("MetaMixer Is All You Need", "S. Yun et al.", 2024, "arXiv:2406.02021"),
    models={"ffnet_1": ffnet_1, "ffnet_2": ffnet_2, "ffnet_3": ffnet_3, "ffnet_4": ffnet_4},
    cases={
        "ffnet_1": {**_TINY, "in_channels": 1, "drop_path": 0.1},
        "ffnet_2": _TINY,
        "ffnet_3": {**_TINY, "layer_scale": 0.5},
        "ffnet_4": _TINY,
    },
)
