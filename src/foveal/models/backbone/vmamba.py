"""VMamba: four stages of blocks that mix with selective scans along rows and columns, in both directions.

*Source*: Y. Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024 (arXiv:2401.10166), section 4. The networks
are those of the paper's last version: state 1, no gate, overlapping stem and downsampling. SS2D is in `foveal.nn.ss2d`.

    stem(x) = norm(conv₃,₂(gelu(norm(conv₃,₂(x)))))                            (B, 3, H, W) to (B, C, H/4, W/4)
    y = x + SS2D(norm(x));  out = y + W₂ gelu(W₁ norm(y))                      (B, C, h, w)
    between stages: norm(conv₃,₂(x))                                           (B, C, h, w) to (B, 2C, h/2, w/2)

*Differs from the paper*: nothing.
*Provenance*: written from the paper; sizes and initial values were looked up in the authors' code.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.layers import DropPath, LayerNorm2d, Mlp, trunc_normal_
from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.nn.ss2d import SS2D
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["VMamba", "VSSBlock", "from_authors", "init_weights", "vmamba_base", "vmamba_small", "vmamba_tiny"]


def init_weights(module: nn.Module) -> None:
    """Initialise linear layers and 1×1 convolutions near zero; for `nn.Module.apply`.

    Args:
        module: module to initialise in place.
    """
    if isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    ):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class VSSBlock(nn.Module):
    """A mixer and a feed-forward network, each with a norm before it and a shortcut; (B, C, H, W) to the same.

    Args:
        dim: C.
        mixer: mixer, (B, C, H, W) to the same.
        mlp: feed-forward network, (B, C, H, W) to the same.
        drop_path: drop-path rate of the branches.
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
    """Image classifier, (B, in_channels, H, W) to (B, num_classes).

    Args:
        dim: number of channels of the first stage; each further stage doubles it.
        depths: number of blocks of each stage.
        state: D, state size of the scans.
        expand: ratio of scanned channels to a block's channels.
        mlp_ratio: ratio of hidden channels to a block's channels.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.
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


vmamba_tiny = VMamba  # VMamba-T, 30 M parameters, trained with `drop_path` 0.2
vmamba_small = partial(VMamba, depths=(2, 2, 15, 2), expand=2.0)  # VMamba-S, 50 M, trained with 0.3
vmamba_base = partial(VMamba, dim=128, depths=(2, 2, 15, 2), expand=2.0)  # VMamba-B, 89 M, trained with 0.6


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names and shapes.

    Args:
        state_dict: name → tensor, the entry "model" of the files of the last version's networks without a gate:
            T[s1l8], S[s2l15] or B[s2l15].

    Returns:
        State dict of `vmamba_tiny`, `vmamba_small` or `vmamba_base`.
    """
    stem = {"0": "0", "2": "1", "5": "3", "7": "4"}
    found = renamed(
        state_dict,
        [
            (r"^patch_embed\.(\d)", lambda at: f"stem.{stem[at[1]]}"),
            (r"^classifier\.", ""),
            # their stages end with the downsampling convolution and its norm, ours begin with them
            (r"^layers\.(\d+)\.blocks\.(\d+)", lambda at: f"stages.{at[1]}.{int(at[2]) + 2 * (at[1] != '0')}"),
            (r"^layers\.(\d+)\.downsample\.(\d)", lambda at: f"stages.{int(at[1]) + 1}.{int(at[2]) // 2}"),
            (r"^(stages\.\d+\.\d+\.)norm\.", r"\1norm1."),
            (r"\.op\.", ".mixer."),
            (r"\.conv2d\.", ".conv."),
            (r"\.out_norm\.", ".norm."),
            (r"\.x_proj_weight$", ".s6.x_proj"),
            (r"\.dt_projs_weight$", ".s6.dt_proj"),
            (r"\.dt_projs_bias$", ".s6.dt_bias"),
            (r"\.A_logs$", ".s6.A_log"),
            (r"\.Ds$", ".s6.D"),
        ],
    )
    for name, value in found.items():
        if name.endswith(".dt_bias"):
            found[name] = value.flatten()
        elif value.ndim == 2 and name.endswith(("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")):
            found[name] = value[..., None, None]  # linear layers become 1×1 convolutions
    return found


_TINY = {"dim": 8, "depths": (1, 1), "num_classes": 5}

METHOD = Method(
    id=None,
    name="VMamba",
    kind="model",
    summary="Blocks that mix a picture by four selective scans, along rows and columns and both ways.",
    paper=Paper("VMamba: Visual State Space Model", "Y. Liu et al.", 2024, "arXiv:2401.10166"),
    models={"vmamba_tiny": vmamba_tiny, "vmamba_small": vmamba_small, "vmamba_base": vmamba_base},
    cases={
        "vmamba_tiny": {**_TINY, "expand": 2.0, "in_channels": 1, "drop_path": 0.1},
        "vmamba_small": _TINY,
        "vmamba_base": _TINY,
    },
)
