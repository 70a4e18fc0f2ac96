"""VMamba: four stages of blocks that mix by selective scans along rows and columns, both ways.

*Source*: Y. Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024 (arXiv:2401.10166), section 4. The networks
are those of the paper's last version: state 1, no gate, overlapping stem and downsampling. SS2D stands in
`foveal.nn.ss2d`.

    stem(x) = norm(conv₃,₂(gelu(norm(conv₃,₂(x)))))                            (B, 3, H, W) to (B, C, H/4, W/4)
    y = x + SS2D(norm(x));  out = y + W₂ gelu(W₁ norm(y))                      (B, C, h, w)
    between stages: norm(conv₃,₂(x))                                           (B, C, h, w) to (B, 2C, h/2, w/2)

*Differs from the paper*: nothing.
*Provenance*: written from the paper; sizes and initial values looked up in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.layers import DropPath, LayerNorm2d, Mlp, trunc_normal_
from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid
from foveal.nn.ss2d import SS2D
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["VMamba", "VSSBlock", "init_weights", "vmamba_base", "vmamba_small", "vmamba_tiny"]


def init_weights(module: nn.Module) -> None:
    """Start what multiplies channels, linear layers and 1×1 convolutions, near zero; for `nn.Module.apply`.

    Args:
        module: changed in place.
    """
    if isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    ):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class VSSBlock(nn.Module):
    """A mixer and a feed-forward network, each behind a norm and beside a shortcut; (B, C, H, W) to the same.

    Args:
        dim: C.
        mixer: (B, C, H, W) to the same.
        mlp: (B, C, H, W) to the same.
        drop_path: probability of leaving a branch out while training.
    """

    def __init__(self, dim: int, mixer: nn.Module, mlp: nn.Module, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim, eps=1e-5)
        self.mixer = mixer
        self.norm2 = LayerNorm2d(dim, eps=1e-5)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _halved(channels: int, dim: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, dim, 3, 2, 1), LayerNorm2d(dim, eps=1e-5)]


class VMamba(Pyramid):
    """Picture classifier, (B, in_channels, H, W) to (B, num_classes).

    Args:
        dim: channels of the first stage; each stage doubles them.
        depths: blocks of each stage.
        state: D of the scans.
        expand: scanned channels over a block's.
        mlp_ratio: hidden channels over a block's.
        in_channels: of the picture.
        num_classes: 0 gives pooled features.
        drop_path: probability of dropping a branch of the last block; it rises to that from 0.
    """

    def __init__(
        self,
        *,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 8, 2),
        state: int = 1,
        expand: float = 1.0,
        mlp_ratio: float = 4.0,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        dims = [dim * 2**i for i in range(len(depths))]
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, depth in enumerate(depths):
            width = dims[i]
            blocks = [
                VSSBlock(
                    width,
                    SS2D(width, state=state, expand=expand, conv_bias=False, gate=False),
                    Mlp(width, int(mlp_ratio * width), use_conv=True),
                    drop_path=next(drops),
                )
                for _ in range(depth)
            ]
            stages.append(nn.Sequential(*(_halved(dims[i - 1], width) if i else []), *blocks))
        super().__init__(
            nn.Sequential(*_halved(in_channels, dim // 2), nn.GELU(), *_halved(dim // 2, dim)),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=LayerNorm2d(dims[-1], eps=1e-5),
        )
        self.apply(init_weights)


def vmamba_tiny(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 96,
    depths: Sequence[int] = (2, 2, 8, 2),
) -> VMamba:
    """VMamba-T, 30 M parameters, as many scanned channels as the block has; trained with `drop_path` 0.2.

    Args:
        in_channels: of the picture.
        num_classes: 0 for features.
        drop_path: of the last block.
        dim: channels of the first stage.
        depths: blocks of each stage.

    Returns:
        The network.
    """
    return VMamba(dim=dim, depths=depths, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path)


def vmamba_small(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 96,
    depths: Sequence[int] = (2, 2, 15, 2),
) -> VMamba:
    """VMamba-S, 50 M parameters, twice as many scanned channels; trained with `drop_path` 0.3.

    Args:
        in_channels: of the picture.
        num_classes: 0 for features.
        drop_path: of the last block.
        dim: channels of the first stage.
        depths: blocks of each stage.

    Returns:
        The network.
    """
    return VMamba(
        dim=dim, depths=depths, expand=2.0, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path
    )


def vmamba_base(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 128,
    depths: Sequence[int] = (2, 2, 15, 2),
) -> VMamba:
    """VMamba-B, 89 M parameters, twice as many scanned channels; trained with `drop_path` 0.6.

    Args:
        in_channels: of the picture.
        num_classes: 0 for features.
        drop_path: of the last block.
        dim: channels of the first stage.
        depths: blocks of each stage.

    Returns:
        The network.
    """
    return VMamba(
        dim=dim, depths=depths, expand=2.0, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path
    )


_TINY = {"dim": 8, "depths": (1, 1, 1, 1), "num_classes": 5}

METHOD = Method(
    id=None,
    name="VMamba",
    kind="model",
    summary="Blocks that mix a picture by four selective scans, along rows and columns and both ways.",
    paper=Paper("VMamba: Visual State Space Model", "Y. Liu et al.", 2024, "arXiv:2401.10166"),
    models={"vmamba_tiny": vmamba_tiny, "vmamba_small": vmamba_small, "vmamba_base": vmamba_base},
    cases={"vmamba_tiny": _TINY, "vmamba_small": _TINY, "vmamba_base": {**_TINY, "in_channels": 1}},
)
