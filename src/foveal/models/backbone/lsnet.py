"""LSNet: a backbone whose convolutions see 7×7 pixels to decide how to sum 3×3 of them.

*Source*: A. Wang et al., "LSNet: See Large, Focus Small", CVPR 2025 (arXiv:2503.23135), section 3. In LS convolution
(large-small convolution) a large kernel looks around each pixel and predicts small kernels for it, which then sum the
pixels next to it. For x: (B, C, H, W), with kernels for G = C / 8 groups of channels,

    w = norm(P₃ relu(P₂ (L * relu(P₁ x))))                            w: (B, G, 9, H, W)       perception
    a(c, p) = Σ_q w(c mod G, q, p) · x(c, p + q)                      q: the 9 places of 3×3   aggregation
    ls(x) = x + BN(a)

P₁: (C/2, C), P₂: (C/2, C/2) and P₃: (9G, C/2) are 1×1 convolutions, L: (C/2, 7, 7) is depthwise, and each of P₁, L and
P₂ has a batch norm; norm standardises the 9 weights of a group over the whole map. Cost is linear in the pixels:
21/16 C² + 24.5 C multiply-adds for the perception of each (with C = 8G) and 9 C for the aggregation. Blocks take turns:

    x = se(x + BN(D * x) + BN(d ⊙ x));  x = x + ffn(x)                D: (C, 3, 3), d: (C,), ffn of two layers
    x = ls(x);  x = x + ffn(x)

In the last stage, attention over all pixels takes the place of ls.

*Differs from the paper*: attention has a bias for each distance between pixels up to the size of the map for
`bias_size`; on larger maps, longer distances have the longest one's bias, where the authors' code takes one size only.
`stand_in`, which puts LS convolution in the place of a trained one, is foveal's own.

*Provenance*: written from the paper; the sharing of kernels by c mod G, the norms and the sizes were looked up in the
authors' code, which all three networks equal to 2e-7 under shared weights at 224×224, its kernel for the aggregation
written in plain PyTorch. Norms, branches and their merging (`timm.utils.model.reparameterize_model`) are timm's.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SqueezeExcite, trunc_normal_
from timm.models.repvit import ConvNorm, RepVggDw
from torch import Tensor, nn

from foveal.nn.pooled_norm import PooledNormPyramid
from foveal.nn.renamed import renamed
from foveal.nn.same_size import keeps_size
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "LSConv",
    "LSNet",
    "LargeKernelPerception",
    "dynamic_aggregation",
    "dynamic_aggregation_reference",
    "from_authors",
    "lsnet_b",
    "lsnet_s",
    "lsnet_t",
    "stand_in",
]

LARGE, SMALL, SHARING = 7, 3, 8  # sides of the two kernels, and channels that share a small one


def dynamic_aggregation(x: Tensor, weights: Tensor) -> Tensor:
    """Sum the pixels around each with a kernel of its own, one for a group of channels.

    Args:
        x: (B, C, H, W); the border is padded with zeros.
        weights: kernels, (B, G, k², H, W) with odd k and G a divisor of C; channel c takes that of group c mod G.

    Returns:
        (B, C, H, W).
    """
    groups, taps, height, width = weights.shape[1:]
    size = math.isqrt(taps)
    # (B, C / G, G, H, W), so that channel c meets kernel c mod G
    padded = F.pad(x, [size // 2] * 4).unflatten(1, (-1, groups))
    out = x.new_zeros(())
    # tap by tap: no window is copied, as unfolding would do k² times
    for tap, kernel in enumerate(weights.unbind(2)):
        i, j = divmod(tap, size)
        out = torch.addcmul(out, kernel[:, None], padded[..., i : i + height, j : j + width])
    return out.flatten(1, 2)


def dynamic_aggregation_reference(x: Tensor, weights: Tensor) -> Tensor:
    """The same by unfolding: all windows are copied, and all kernels are repeated for their channels.

    Args:
        x: (B, C, H, W).
        weights: (B, G, k², H, W).

    Returns:
        (B, C, H, W).
    """
    batch, channels, height, width = x.shape
    groups, taps = weights.shape[1:3]
    size = math.isqrt(taps)
    windows = F.unfold(x, size, padding=size // 2).view(batch, channels, taps, height, width)
    return (windows * weights.repeat(1, channels // groups, 1, 1, 1)).sum(2)


class LargeKernelPerception(nn.Module):
    """Predict small kernels from a large neighbourhood, (B, C, H, W) to (B, C / 8, 9, H, W).

    Args:
        dim: C, a multiple of 8.

    Raises:
        ValueError: another number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % SHARING:
            raise ValueError(
                f"LS convolution shares each kernel among {SHARING} channels: dim must be a multiple of {SHARING}, got "
                f"{dim}; take {dim + -dim % SHARING}"
            )
        half, groups = dim // 2, dim // SHARING
        self.cv1 = ConvNorm(dim, half)
        self.cv2 = ConvNorm(half, half, LARGE, pad=LARGE // 2, groups=half)
        self.cv3 = ConvNorm(half, half)
        self.cv4 = nn.Conv2d(half, groups * SMALL**2, 1)
        self.norm = nn.GroupNorm(groups, groups * SMALL**2)

    def forward(self, x: Tensor) -> Tensor:
        seen = F.relu(self.cv3(self.cv2(F.relu(self.cv1(x)))))
        return self.norm(self.cv4(seen)).unflatten(1, (-1, SMALL**2))


class LSConv(nn.Module):
    """LS convolution with its skip, (B, C, H, W) to the same.

    Args:
        dim: C, a multiple of 8.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lkp, self.bn = LargeKernelPerception(dim), nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(dynamic_aggregation(x, self.lkp(x)))


class _Attention(nn.Module):
    """Attention of all pixels with its skip, (B, C, H, W) to the same."""

    def __init__(self, dim: int, key_dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads, self.side, keys = num_heads, side, key_dim * num_heads
        self.splits = [keys, keys, dim]
        self.qkv = ConvNorm(dim, 2 * keys + dim)
        self.dw = ConvNorm(keys, keys, 3, pad=1, groups=keys)
        self.proj = nn.Sequential(nn.ReLU(), ConvNorm(dim, dim, bn_weight_init=0))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, side**2))

    def bias(self, height: int, width: int) -> Tensor:
        """(heads, H·W, H·W), a number for each distance in rows and columns."""
        down, right = (
            (place[:, None] - place).abs().clamp(max=self.side - 1)
            for place in (torch.arange(length, device=self.attention_biases.device) for length in (height, width))
        )
        # (H, W, H, W)
        index = self.side * down[:, None, :, None] + right[None, :, None, :]
        return self.attention_biases[:, index].flatten(3, 4).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).split(self.splits, 1)
        # (B, heads, H·W, channels of a head)
        q, k, v = (y.unflatten(1, (self.num_heads, -1)).flatten(3).mT for y in (self.dw(query), key, value))
        out = F.scaled_dot_product_attention(q, k, v, self.bias(*x.shape[2:])[None])
        return x + self.proj(out.mT.reshape(x.shape))


class _Block(nn.Module):
    """A mixer of pixels, then one of channels, (B, C, H, W) to the same."""

    def __init__(self, dim: int, mixer: nn.Module, *, excite: bool, drop_path: float) -> None:
        super().__init__()
        self.mixer, self.se = mixer, SqueezeExcite(dim, 0.25) if excite else nn.Identity()
        self.ffn = nn.Sequential(ConvNorm(dim, 2 * dim), nn.ReLU(), ConvNorm(2 * dim, dim, bn_weight_init=0))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(self.mixer(x))
        return x + self.drop_path(self.ffn(x))


def _stem(in_channels: int, dim: int, patch_size: int) -> nn.Sequential:
    """3×3 convolutions of stride 2, each but the last with a ReLU; channels double up to dim."""
    layers: list[nn.Module] = []
    halvings = patch_size.bit_length() - 1
    widths = [in_channels, *(dim >> i for i in reversed(range(halvings)))]
    for i in range(halvings):
        layers += [ConvNorm(widths[i], widths[i + 1], 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class LSNet(PooledNormPyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dims: channels of each stage, multiples of 8.
        depths: number of blocks of each stage; blocks with a static and with an LS convolution take turns.
        key_dim: channels of a query and of a key in the last stage.
        num_heads: attention heads of the last stage, a divisor of its channels.
        patch_size: stride of the stem, a power of two.
        bias_size: side of the last map up to which there is a bias for each distance; 4 for pictures of 224×224.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block's feed-forward network; the rates rise linearly from 0.

    Raises:
        ValueError: if `dims` and `depths` differ in length, `num_heads` does not divide the last of `dims`, or
            `patch_size` is no power of two.
    """

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 384),
        depths: Sequence[int] = (0, 2, 8, 10),
        *,
        key_dim: int = 16,
        num_heads: int = 4,
        patch_size: int = 8,
        bias_size: int = 4,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        if len(dims) != len(depths):
            raise ValueError(f"dims and depths must have the same length, got {len(dims)} and {len(depths)}")
        if dims[-1] % num_heads:
            raise ValueError(f"num_heads must divide the last stage's {dims[-1]} channels, got {num_heads}")
        if patch_size < 2 or patch_size & (patch_size - 1):
            raise ValueError(f"patch_size must be 2, 4, 8 or another power of two, got {patch_size}")
        reductions = [patch_size * 2**i for i in range(len(dims))]
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            layers: list[nn.Module] = []
            if i:
                layers += [ConvNorm(dims[i - 1], dims[i - 1], 3, 2, 1, groups=dims[i - 1]), ConvNorm(dims[i - 1], dim)]
            for number in range(depth):
                static, last = number % 2 == 0, i == len(dims) - 1
                mixer = (
                    RepVggDw(dim, 3, legacy=True)
                    if static
                    else _Attention(dim, key_dim, num_heads, bias_size)
                    if last
                    else LSConv(dim)
                )
                layers.append(_Block(dim, mixer, excite=static, drop_path=next(drops)))
            stages.append(nn.Sequential(*layers))
        super().__init__(
            _stem(in_channels, dims[0], patch_size),
            stages,
            dims,
            reductions,
            num_classes=num_classes,
            in_channels=in_channels,
        )
        self.head_norm = nn.BatchNorm1d(dims[-1])

    def make_classifier(self, num_classes: int) -> nn.Linear:
        """One classifier.

        Args:
            num_classes: at least 1.

        Returns:
            A layer, (B, head_hidden_size) to (B, num_classes).
        """
        layer = super().make_classifier(num_classes)
        trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
        return layer


@torch.no_grad()
def stand_in(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:  # noqa: ARG001 - a stand-in's signature
    """LS convolution and a 1×1 one in the place of a convolution; equal to it on flat pictures, away from the borders.

    The norm behind the aggregation starts at 0, which leaves the skip, and the 1×1 convolution as the sum of the
    kernel's taps.

    Args:
        layer: convolution of stride 1 that keeps height and width, dense or grouped, of a multiple of 8 channels.
        shape: shape of its input, (B, C, H, W).

    Returns:
        The stand-in.

    Raises:
        ValueError: another layer.
    """
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(f"ls stands in for a convolution, got {layer}")
    if not keeps_size(layer):
        raise ValueError("ls keeps height and width: it needs stride 1 and full padding")
    mixer = LSConv(layer.in_channels)
    nn.init.zeros_(mixer.bn.weight)
    sums = nn.Conv2d(layer.in_channels, layer.out_channels, 1, groups=layer.groups, bias=layer.bias is not None)
    sums.weight.copy_(layer.weight.sum((2, 3), keepdim=True))
    if layer.bias is not None and sums.bias is not None:
        sums.bias.copy_(layer.bias)
    return nn.Sequential(mixer, sums)


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    Args:
        state_dict: name → tensor, of a network that was trained without distillation, so with one head.

    Returns:
        State dict of `lsnet_t`, `lsnet_s` or `lsnet_b`.
    """
    kept = {name: value for name, value in state_dict.items() if not name.endswith("attention_bias_idxs")}
    return renamed(
        kept,
        [
            (r"^patch_embed\.", "stem."),
            (r"^blocks(\d)\.", lambda at: f"stages.{int(at[1]) - 1}."),
            (r"^head\.bn\.", "head_norm."),
            (r"^head\.l\.", "head."),
            (r"\.mixer\.m\.", ".mixer."),
            (r"\.ffn\.m\.pw1\.", ".ffn.0."),
            (r"\.ffn\.m\.pw2\.", ".ffn.2."),
        ],
    )


lsnet_t = LSNet  # LSNet-T: 11.4 M parameters, 0.3 G multiply-adds at 224×224
lsnet_s = partial(LSNet, dims=(96, 192, 320, 448), depths=(1, 2, 8, 10))  # LSNet-S: 16.1 M, 0.5 G
lsnet_b = partial(LSNet, dims=(128, 256, 384, 512), depths=(4, 6, 8, 10))  # LSNet-B: 23.2 M, 1.3 G

_TINY = {"dims": (8, 16), "depths": (2, 2), "key_dim": 2, "num_heads": 2, "patch_size": 2, "bias_size": 2}

METHOD = Method(
    id=341,
    name="LSNet",
    kind="model",
    summary="A large kernel looks around each pixel and predicts the small kernels that sum its neighbours.",
    paper=Paper("LSNet: See Large, Focus Small", "A. Wang et al.", 2025, "arXiv:2503.23135"),
    models={"lsnet_t": lsnet_t, "lsnet_s": lsnet_s, "lsnet_b": lsnet_b},
    cases={
        "lsnet_t": {**_TINY, "num_classes": 3, "in_channels": 1},
        "lsnet_s": {**_TINY, "num_classes": 3},
        "lsnet_b": {**_TINY, "num_classes": 0},
    },
)
