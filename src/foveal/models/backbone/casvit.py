"""CAS-ViT: a backbone whose attention adds gated queries and keys and multiplies the values, all by convolutions.

*Source*: T. Zhang et al., "CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile
Applications", 2024 (arXiv:2408.03703), section 3. For x: (B, C, H, W) and Q, K, V = W x, each (B, C, H, W),

    s(x) = x ⊙ σ(w · relu(BN(D * x)))            one number a pixel, D: (C, 3, 3) depthwise, w: (C,)
    c(x) = x ⊙ σ(U · mean(x))                    one number a channel, U: (C, C)
    φ(x) = c(s(x))                               context, with weights of its own for Q and for K
    y = P * ((Γ * (φ(Q) + φ(K))) ⊙ V)            Γ, P: (C, 3, 3) depthwise

There is no map of similarities and no softmax: 3 C² + 38 C multiply-adds a pixel and 2 C² a picture. Four stages at
strides 4 to 32, of blocks with a local and an additive mixer and a multi-layer perceptron:

    x = x + W₂ gelu(D * BN(W₁ x));  x = x + y(BN(x));  x = x + W₄ gelu(W₃ BN(x))

*Differs from the paper*: the last convolution, P, is the authors' code's; the paper's equation ends with the product.
Parameters count both heads of the networks that the authors trained, one of them by distillation; their logits are
averaged in training too, where that code gives both.

*Provenance*: written from the paper; the order of layers, biases and initial values were looked up in the authors'
code, which XS and S equal exactly under shared weights at 96×64.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "AdditiveMixer",
    "CASViT",
    "ChannelGate",
    "SpatialGate",
    "casvit_m",
    "casvit_s",
    "casvit_t",
    "casvit_xs",
    "from_authors",
]


def _depthwise(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class SpatialGate(nn.Module):
    """A number in (0, 1) for each pixel multiplies all its channels, (B, C, H, W) to the same.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        score = nn.Conv2d(dim, 1, 1, bias=False)
        self.gate = nn.Sequential(_depthwise(dim), nn.BatchNorm2d(dim), nn.ReLU(), score, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class ChannelGate(nn.Module):
    """A number in (0, 1) for each channel multiplies all its pixels, (B, C, H, W) to the same.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class AdditiveMixer(nn.Module):
    """Convolutional additive self-attention, (B, C, H, W) to the same.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.context_q, self.context_k = (nn.Sequential(SpatialGate(dim), ChannelGate(dim)) for _ in range(2))
        self.similarity, self.proj = _depthwise(dim), _depthwise(dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, 1)
        out: Tensor = self.proj(self.similarity(self.context_q(query) + self.context_k(key)) * value)
        return out


class _Block(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.local = nn.Sequential(
            nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim), _depthwise(dim), nn.GELU(), nn.Conv2d(dim, dim, 1)
        )
        self.norm1, self.attn = nn.BatchNorm2d(dim), AdditiveMixer(dim)
        layers = {"fc1": nn.Conv2d(dim, hidden, 1), "act": nn.GELU(), "fc2": nn.Conv2d(hidden, dim, 1)}
        self.norm2, self.mlp = nn.BatchNorm2d(dim), nn.Sequential(OrderedDict(layers))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _stem(in_channels: int, dim: int) -> nn.Sequential:
    """Two convolutions of stride 2, (B, in_channels, H, W) to (B, dim, ⌈H / 4⌉, ⌈W / 4⌉)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((in_channels, dim // 2), (dim // 2, dim)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class CASViT(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dims: channels of each stage; the first are even.
        depths: number of blocks of each stage.
        mlp_ratio: hidden channels of a multi-layer perceptron over the channels.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.

    Raises:
        ValueError: if `dims` and `depths` differ in length.
    """

    heads = ("head", "head_dist")

    def __init__(
        self,
        dims: Sequence[int] = (48, 56, 112, 220),
        depths: Sequence[int] = (2, 2, 4, 2),
        *,
        mlp_ratio: float = 4.0,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        if len(dims) != len(depths):
            raise ValueError(f"dims and depths must have the same length, got {len(dims)} and {len(depths)}")
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            if i:
                conv = nn.Conv2d(dims[i - 1], dim, 3, 2, 1)
                parts["down"] = nn.Sequential(OrderedDict(proj=conv, norm=nn.BatchNorm2d(dim)))
            parts["blocks"] = nn.Sequential(*(_Block(dim, mlp_ratio, next(drops)) for _ in range(depth)))
            stages.append(nn.Sequential(parts))
        super().__init__(
            _stem(in_channels, dims[0]),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=nn.BatchNorm2d(dims[-1]),
        )

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


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    Args:
        state_dict: name → tensor.

    Returns:
        State dict of `casvit_xs`, `casvit_s`, `casvit_m` or `casvit_t`.
    """
    return renamed(
        state_dict,
        [
            (r"^patch_embed\.", "stem."),
            (r"^network\.([0246])\.", lambda at: f"stages.{int(at[1]) // 2}.blocks."),
            (r"^network\.([135])\.", lambda at: f"stages.{(int(at[1]) + 1) // 2}.down."),
            (r"^dist_head\.", "head_dist."),
            (r"\.local_perception\.network\.", ".local."),
            (r"\.oper_([qk])\.0\.block\.", r".context_\1.0.gate."),
            (r"\.oper_([qk])\.1\.block\.1\.", r".context_\1.1.gate.0."),
            (r"\.dwc\.", ".similarity."),
        ],
    )


casvit_xs = CASViT  # CAS-ViT-XS: 3.20 M parameters, 0.55 G multiply-adds at 224×224
casvit_s = partial(CASViT, dims=(48, 64, 128, 256), depths=(3, 3, 6, 3))  # CAS-ViT-S: 5.76 M, 0.91 G
casvit_m = partial(CASViT, dims=(64, 96, 192, 384), depths=(3, 3, 6, 3))  # CAS-ViT-M: 12.42 M, 1.86 G
casvit_t = partial(CASViT, dims=(96, 128, 256, 512), depths=(3, 3, 6, 3))  # CAS-ViT-T: 21.76 M, 3.56 G

_TINY = {"dims": (4, 6), "depths": (1, 2), "mlp_ratio": 2.0}

METHOD = Method(
    id=333,
    name="CAS-ViT",
    kind="model",
    summary="Gated queries and keys are added, convolved and multiplied with the values; no map of attention.",
    paper=Paper(
        "CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications",
        "T. Zhang et al.",
        2024,
        "arXiv:2408.03703",
    ),
    models={"casvit_xs": casvit_xs, "casvit_s": casvit_s, "casvit_m": casvit_m, "casvit_t": casvit_t},
    cases={
        "casvit_xs": {**_TINY, "num_classes": 3, "in_channels": 1},
        "casvit_s": {**_TINY, "num_classes": 3},
        "casvit_m": {**_TINY, "num_classes": 0},
        "casvit_t": {**_TINY, "num_classes": 2, "drop_path": 0.1},
    },
)
