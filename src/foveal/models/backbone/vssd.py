"""VSSD: a backbone with a non-causal state space, in which every token reads the same sum over all tokens.

*Source*: Y. Shi, M. Dong, M. Li, C. Xu, "VSSD: Vision Mamba with Non-Causal State Space Duality", 2024
(arXiv:2407.18559), sections 3.2 and 3.3. A convolutional stem of stride 4, then four stages, of which all but the first
begin with an inverted bottleneck of stride 2; every block is

    x = x + dw₃(x);  x = x + mixer(norm(x));  x = x + dw₃(x);  x = x + mlp(norm(x))

In the first three stages the mixer is a non-causal state space, `foveal.nn.nc_ssd`, whose tokens all read one sum

    y_i = C_i · Σ_j m_j B_j x_jᵀ,  m_j > 0 from token j

In the last stage it is attention.

*Differs from the paper*: nothing; the mixer can be made causal, Mamba-2's, for the paper's own comparison.

*Provenance*: written from the paper; the layers of the stem and between stages, the widths, the places of the
activations and the initial values were looked up in the authors' code.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp, trunc_normal_
from torch import Tensor, nn

from foveal.nn.conv_stem import ConvStem, halving
from foveal.nn.nc_ssd import NCSSD
from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["VSSD", "Attention", "from_authors", "vssd_base", "vssd_micro", "vssd_small", "vssd_tiny"]


class Attention(nn.Module):
    """Softmax attention between the tokens of an image, (B, H·W, C) to the same.

    Args:
        dim: C.
        num_heads: number of heads; must divide C.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:  # noqa: ARG002 - all mixers get the size
        batch, length, dim = x.shape
        heads = (self.num_heads, dim // self.num_heads)
        # (3, B, heads, L, P)
        query, key, value = self.qkv(x).view(batch, length, 3, *heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, dim))


class _Block(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, mixer: nn.Module, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.local1, self.local2 = (nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        x = x + self.local1(x)
        # (B, H·W, C) and back
        tokens = self.norm1(x.flatten(2).transpose(1, 2))
        mixed = self.drop_path(self.mixer(tokens, height, width))
        x = x + mixed.transpose(1, 2).reshape(batch, dim, height, width)
        x = x + self.local2(x)
        tokens = self.drop_path(self.mlp(self.norm2(x.flatten(2).transpose(1, 2))))
        return x + tokens.transpose(1, 2).reshape(batch, dim, height, width)


class VSSD(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dim: number of channels of the first stage; each further stage doubles it.
        depths: number of blocks of each stage.
        num_heads: number of heads of each stage.
        state: N, state size per channel of the state space.
        mlp_ratio: ratio of the MLPs' hidden channels to the channels of the tokens.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last block; the rates rise linearly from 0.
        causal: whether the state space mixers are causal, as in Mamba-2.

    Raises:
        ValueError: if `depths` and `num_heads` differ in length, or heads do not divide their stage's channels.
    """

    def __init__(
        self,
        dim: int = 64,
        depths: Sequence[int] = (2, 4, 8, 4),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        *,
        state: int = 64,
        mlp_ratio: float = 4.0,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
        causal: bool = False,
    ) -> None:
        count = len(depths)
        dims = [dim * 2**i for i in range(count)]
        if len(num_heads) != count:
            raise ValueError(f"depths and num_heads must have the same length, got {count} and {len(num_heads)}")
        if wrong := [(d, h) for d, h in zip(dims, num_heads, strict=True) if d % h]:
            raise ValueError(f"num_heads must divide the channels of their stage, got {wrong[0][1]} for {wrong[0][0]}")
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, (width, depth, heads) in enumerate(zip(dims, depths, num_heads, strict=True)):
            blocks: list[nn.Module] = [halving(width // 2, width)] if i else []
            for _ in range(depth):
                last = i == count - 1
                mixer = Attention(width, heads) if last else NCSSD(width, heads, state=state, causal=causal)
                blocks.append(_Block(width, mixer, mlp_ratio=mlp_ratio, drop_path=next(drops)))
            stages.append(nn.Sequential(*blocks))
        super().__init__(
            ConvStem(in_channels, dim),
            stages,
            dims,
            [4 * 2**i for i in range(count)],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=LayerNorm2d(dims[-1], eps=1e-5),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


vssd_tiny = VSSD  # VSSD-T, 24 M parameters
vssd_micro = partial(VSSD, dim=48, depths=(2, 2, 8, 4), state=48)  # VSSD-M, 14 M
vssd_small = partial(VSSD, depths=(3, 4, 21, 5))  # VSSD-S, 40 M
vssd_base = partial(VSSD, dim=96, depths=(3, 4, 21, 5), num_heads=(3, 6, 12, 24))  # VSSD-B, 89 M


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names.

    Args:
        state_dict: name → tensor, the entry "model" of their files.

    Returns:
        State dict of `vssd_micro`, `vssd_tiny`, `vssd_small` or `vssd_base`.
    """
    return renamed(
        state_dict,
        [
            (r"^patch_embed\.conv1\.", "stem.first."),
            (r"^patch_embed\.conv2\.", "stem.middle."),
            (r"^patch_embed\.conv3\.", "stem.last."),
            # their stages end with the downsampling, ours begin with it
            (r"^layers\.(\d+)\.blocks\.(\d+)", lambda at: f"stages.{at[1]}.{int(at[2]) + (at[1] != '0')}"),
            (r"^layers\.(\d+)\.downsample\.conv\.2\.norm", lambda at: f"stages.{int(at[1]) + 1}.0.5"),
            (
                r"^layers\.(\d+)\.downsample\.conv\.(\d)\.conv",
                lambda at: f"stages.{int(at[1]) + 1}.0.{2 * int(at[2])}",
            ),
            (r"^(stem\..*)\.conv\.", r"\1.0."),
            (r"^(stem\..*)\.norm\.", r"\1.1."),
            (r"\.cpe(\d)\.", r".local\1."),
            (r"\.attn\.", ".mixer."),
            (r"\.conv2d\.", ".conv."),
            (r"\.to_qkv\.", ".qkv."),
            (r"\.to_out\.", ".out_proj."),
        ],
    )


_TINY = {"dim": 8, "depths": (1, 1), "num_heads": (2, 2), "state": 4, "num_classes": 3}

METHOD = Method(
    id=289,
    name="VSSD",
    kind="model",
    summary="A state space without order: one weighted sum over all tokens that every token reads.",
    paper=Paper("VSSD: Vision Mamba with Non-Causal State Space Duality", "Y. Shi et al.", 2024, "arXiv:2407.18559"),
    models={"vssd_micro": vssd_micro, "vssd_tiny": vssd_tiny, "vssd_small": vssd_small, "vssd_base": vssd_base},
    cases={
        "vssd_micro": {**_TINY, "in_channels": 1, "drop_path": 0.1},
        "vssd_tiny": _TINY,
        "vssd_small": _TINY,
        "vssd_base": _TINY,
    },
)
