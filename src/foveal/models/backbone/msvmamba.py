"""MSVMamba: one scan over the whole map, and three over the map at half the resolution.

*Source*: Y. Shi, M. Dong and C. Xu, "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model", NeurIPS 2024
(arXiv:2405.14174), section 4. The multi-scale scan (MS2D) reads 1 + ¾ tokens for each token of the map, SS2D reads 4:

    [x, z] = W_in u;  f = silu(dwconv₃(x));  c = silu(dwconv₇,₂(x))            (B, C, H, W); (B, C, H/2, W/2)
    y_f = norm(scan of f by rows)
    y_c = sum of norm(scan of c by rows backward, then by columns, then by columns backward)
    out = W_out (SE(y_f + enlarged(y_c)) ∘ silu(z))

The three coarse routes share their weights and are concatenated into one sequence. Each block ends with a convolutional
feed-forward network: W₂ gelu(v + dwconv₃(v)), v = W₁ norm(y).

*Differs from the paper*: nothing. Concatenating the coarse routes follows the authors' code.
*Provenance*: written from the paper; sizes and order of operations were looked up in the authors' code. With its
weights, converted by `from_authors`, the logits agree with its own to 1e-6 of the largest.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, SqueezeExcite
from torch import Tensor, nn

from foveal.models.backbone.vmamba import VSSBlock, init_weights
from foveal.nn.patch_merging import PatchMerging
from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.nn.ss2d import S6, SS2D
from foveal.nn.vmamba_names import S6_NAMES, as_convolutions
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MS2D", "ConvFFN", "MSVMamba", "from_authors", "msvmamba_micro", "msvmamba_nano", "msvmamba_tiny"]


class MS2D(SS2D):
    """Mixer of a feature map with one fine and three coarse routes, (B, dim, H, W) to the same.

    Args:
        dim: number of channels.
        state: D, state size of the scans.
        expand: ratio of scanned channels to `dim`.
    """

    def __init__(self, dim: int, *, state: int = 1, expand: float = 2.0) -> None:
        super().__init__(dim, state=state, expand=expand, num_routes=1)
        inner = int(expand * dim)
        self.shrink = nn.Conv2d(inner, inner, 7, 2, 3, groups=inner)
        self.coarse = S6(inner, state=state, dt_rank=-(-dim // 16), num_routes=1)
        self.excite = SqueezeExcite(inner, rd_channels=max(1, inner // 8), bias=False)

    def scan_coarse(self, x: Tensor) -> Tensor:
        """Three routes as one sequence: rows backward, columns, columns backward.

        Args:
            x: features, (B, C, H, W).

        Returns:
            Sum of their normalised outputs, (B, C, H, W).
        """
        rows, columns = x.flatten(2), x.mT.flatten(2)
        # (B, 1, C, 3·HW)
        sequence = torch.cat([rows.flip(-1), columns, columns.flip(-1)], -1)[:, None]
        # (B, 3, HW, C): channels last, as the norm returns them and as upsampling is fastest
        y = self.norm(self.coarse(sequence).transpose(1, 2).unflatten(3, (3, -1)).squeeze(2)).permute(0, 2, 3, 1)
        back, down, up = y.unbind(1)
        by_rows = back.flip(1).unflatten(1, x.shape[2:])
        by_columns = (down + up.flip(1)).unflatten(1, x.shape[:1:-1])
        return (by_rows + by_columns.transpose(1, 2)).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=1)
        fine, coarse = self.act(self.conv(x)), self.act(self.shrink(x))
        y = self.norm(self.s6(fine.flatten(2)[:, None])[:, 0].view(fine.shape))
        y = y + F.interpolate(self.scan_coarse(coarse), size=fine.shape[2:], mode="bilinear", align_corners=False)
        return self.out_proj(self.excite(y) * self.act(z))


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise convolution, (B, C, H, W) to the same.

    Args:
        dim: C.
        mlp_ratio: ratio of hidden channels to C.
    """

    def __init__(self, dim: int, *, mlp_ratio: float = 2.0) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.widen = nn.Conv2d(dim, hidden, 1)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.narrow = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        return self.narrow(F.gelu(x + self.conv(x)))


class MSVMamba(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes).

    Args:
        dim: number of channels of the first stage; each further stage doubles it.
        depths: number of blocks of each stage.
        state: D, state size of the scans.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.
    """

    def __init__(
        self,
        *,
        dim: int = 96,
        depths: Sequence[int] = (1, 2, 9, 2),
        state: int = 1,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        dims = [dim * 2**i for i in range(len(depths))]
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, depth in enumerate(depths):
            merging: list[nn.Module] = [PatchMerging(dims[i - 1], dims[i])] if i else []
            blocks = [
                VSSBlock(dims[i], MS2D(dims[i], state=state), ConvFFN(dims[i]), drop_path=next(drops))
                for _ in range(depth)
            ]
            stages.append(nn.Sequential(*merging, *blocks))
        super().__init__(
            nn.Sequential(nn.Conv2d(in_channels, dim, 4, 4), LayerNorm2d(dim, eps=1e-5)),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=LayerNorm2d(dims[-1], eps=1e-5),
        )
        self.apply(init_weights)


# All trained with `drop_path` 0.2.
msvmamba_nano = partial(MSVMamba, dim=48, depths=(1, 2, 5, 2))  # MSVMamba-N, 7 M parameters
msvmamba_micro = partial(MSVMamba, dim=64, depths=(1, 2, 5, 2))  # MSVMamba-M, 12 M
msvmamba_tiny = MSVMamba  # MSVMamba-T, 33 M


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names and shapes.

    Args:
        state_dict: name → tensor, the entry "model" or "model_ema" of their files.

    Returns:
        State dict of `msvmamba_nano`, `msvmamba_micro` or `msvmamba_tiny`.
    """
    found = renamed(
        state_dict,
        [
            (r"^patch_embed\.(\d)", lambda at: f"stem.{int(at[1]) // 2}"),
            (r"^classifier\.", ""),
            # their stages end with the patch merging, ours begin with it
            (r"^(layers\.\d+\.blocks\.\d+)\.norm\.", r"\1.norm1."),
            (r"^layers\.(\d+)\.blocks\.(\d+)", lambda at: f"stages.{at[1]}.{int(at[2]) + (at[1] != '0')}"),
            (r"^layers\.(\d+)\.downsample\.", lambda at: f"stages.{int(at[1]) + 1}.0."),
            (r"\.op\.se\.fc\.0\.", ".mixer.excite.fc1."),
            (r"\.op\.se\.fc\.2\.", ".mixer.excite.fc2."),
            (r"\.op\.conv2d_b1\.", ".mixer.shrink."),
            (r"\.op\.", ".mixer."),
            (r"\.convFFN\.linear1\.", ".mlp.widen."),
            (r"\.convFFN\.dwc\.", ".mlp.conv."),
            (r"\.convFFN\.linear2\.", ".mlp.narrow."),
            *S6_NAMES,
        ],
    )
    split: dict[str, Tensor] = {}
    for name, value in as_convolutions(found).items():
        if ".s6." in name:
            # their first route is the coarse one
            split[name.replace(".s6.", ".coarse.")], split[name] = value.chunk(2)
        else:
            split[name] = value
    return split


_TINY = {"dim": 8, "depths": (1, 1), "num_classes": 5}

METHOD = Method(
    id=274,
    name="MSVMamba",
    kind="model",
    summary="One scan over the whole map and three over the map at half the resolution.",
    paper=Paper(
        "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model",
        "Y. Shi, M. Dong and C. Xu",
        2024,
        "arXiv:2405.14174",
    ),
    models={"msvmamba_nano": msvmamba_nano, "msvmamba_micro": msvmamba_micro, "msvmamba_tiny": msvmamba_tiny},
    cases={
        "msvmamba_nano": {**_TINY, "state": 2, "in_channels": 1, "drop_path": 0.1},
        "msvmamba_micro": _TINY,
        "msvmamba_tiny": _TINY,
    },
)
