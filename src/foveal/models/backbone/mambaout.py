"""MambaOut: a visual Mamba without its state space, to test whether that is needed.

*Source*: W. Yu, X. Wang, "MambaOut: Do We Really Need Mamba for Vision?", CVPR 2025 (arXiv:2405.07992), sections 3 and
4. Four stages of gated convolutional blocks, with dw₇ a depthwise 7×7 convolution:

    g, i, c = split(W norm(x))                      (B, H, W, ·): hidden, hidden - C and C channels
    x = x + W (gelu(g) ∘ concat(i, dw₇(c)))

A Mamba block is the same with ssm(dw₇(c)), a selective scan over the tokens row by row. The paper finds that the state
space is not needed for classification, whose sequences are short and not causal, but may help detection and
segmentation.

*Differs from the paper*: nothing in the block without a state space. The state space used for comparison reads the rows
in both directions, with one set of weights, since an image has no first token.

*Provenance*: the networks are timm's. The block was written from the paper, with timm's parameter names and norm
epsilon, and replaces timm's block in `use_plain_blocks_`, so that each verifies the other.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from foveal.nn.from_timm import from_timm
from foveal.ops import selective_scan
from foveal.record import Method, Paper

__all__ = [
    "GatedCNNBlock",
    "StateSpace",
    "mambaout_base",
    "mambaout_femto",
    "mambaout_kobe",
    "mambaout_small",
    "mambaout_tiny",
    "use_plain_blocks_",
]


class StateSpace(nn.Module):
    """A bidirectional selective scan over a map in raster order; (B, C, H, W) to the same.

    Args:
        dim: C.
        state: D, state size per channel.
    """

    def __init__(self, dim: int, state: int) -> None:
        super().__init__()
        self.split = (-(-dim // 16), state, state)
        self.x_proj = nn.Linear(dim, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(self.split[0], dim)
        # Step sizes log-uniform in 0.001 to 0.1; the bias is added before softplus.
        step = torch.empty(dim).uniform_(math.log(0.001), math.log(0.1)).exp()
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(dim, 1))
        self.D = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)
        # (2·B, C, L)
        both = torch.cat([rows, rows.flip(2)])
        dt, weights_in, weights_out = self.x_proj(both.transpose(1, 2)).split(self.split, -1)
        y = selective_scan(
            both,
            self.dt_proj(dt).transpose(1, 2),
            -self.A_log.exp(),
            weights_in.transpose(1, 2),
            weights_out.transpose(1, 2),
            self.D,
            delta_softplus=True,
        )
        there, back = y.chunk(2)
        return ((there + back.flip(2)) / 2).view(x.shape)


class GatedCNNBlock(nn.Module):
    """(B, H, W, C) to the same.

    Args:
        dim: C.
        expansion: ratio of hidden channels to C.
        kernel_size: k, kernel size of the depthwise convolution, odd.
        conv_ratio: ratio of the channels it convolves to C.
        state: D, state size of a state space after it, which makes this a Mamba block; 0 for none.
        drop_path: drop-path rate of the branch.

    Raises:
        ValueError: if `conv_ratio` is greater than `expansion`.
    """

    def __init__(
        self,
        dim: int,
        *,
        expansion: float = 8 / 3,
        kernel_size: int = 7,
        conv_ratio: float = 1.0,
        state: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden, seen = int(expansion * dim), int(conv_ratio * dim)
        if seen > hidden:
            raise ValueError(f"conv_ratio must be at most the expansion, got {conv_ratio} and {expansion}; lower it")
        self.split = (hidden, hidden - seen, seen)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.conv = nn.Conv2d(seen, seen, kernel_size, padding=kernel_size // 2, groups=seen)
        self.ssm = StateSpace(seen, state) if state else nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        gate, idle, seen = self.fc1(self.norm(x)).split(self.split, -1)
        # (B, C, H, W) and back
        seen = self.ssm(self.conv(seen.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x + self.drop_path(self.fc2(F.gelu(gate) * torch.cat([idle, seen], -1)))


def use_plain_blocks_(model: nn.Module) -> nn.Module:
    """Replace each of timm's blocks with the block of this file, with the same weights.

    Args:
        model: MambaOut network of timm, changed in place.

    Returns:
        The model.
    """
    for stage in model.stages:  # type: ignore[union-attr]
        for i, theirs in enumerate(stage.blocks):  # type: ignore[union-attr, arg-type]
            weights = theirs.state_dict()
            dim, hidden = weights["fc2.weight"].shape
            seen, _, kernel_size, _ = weights["conv.weight"].shape
            # Half a channel more, so that rounding down recovers the number.
            ours = GatedCNNBlock(
                dim, expansion=(hidden + 0.5) / dim, kernel_size=kernel_size, conv_ratio=(seen + 0.5) / dim
            )
            ours.load_state_dict(weights)
            ours.drop_path = theirs.drop_path
            stage.blocks[i] = ours.train(theirs.training)  # type: ignore[union-attr, operator]
    return model


# Parameters and multiply-adds at 224×224.
mambaout_femto = partial(from_timm, "mambaout_femto")  # MambaOut-Femto: 7.3 M, 1.15 G
mambaout_kobe = partial(from_timm, "mambaout_kobe")  # MambaOut-Kobe: 9.1 M, 1.5 G
mambaout_tiny = partial(from_timm, "mambaout_tiny")  # MambaOut-Tiny: 27 M, 4.5 G
mambaout_small = partial(from_timm, "mambaout_small")  # MambaOut-Small: 48 M, 8.9 G
mambaout_base = partial(from_timm, "mambaout_base")  # MambaOut-Base: 85 M, 15.8 G

METHOD = Method(
    id=317,
    name="MambaOut",
    kind="model",
    summary="Gated convolutions alone, a visual Mamba whose state space is taken out.",
    paper=Paper("MambaOut: Do We Really Need Mamba for Vision?", "W. Yu et al.", 2025, "arXiv:2405.07992"),
    models={
        "mambaout_femto": mambaout_femto,
        "mambaout_kobe": mambaout_kobe,
        "mambaout_tiny": mambaout_tiny,
        "mambaout_small": mambaout_small,
        "mambaout_base": mambaout_base,
    },
    cases={
        "mambaout_femto": {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_classes": 3},
        "mambaout_kobe": {"dims": (8, 4), "depths": (1, 1), "num_classes": 2, "in_channels": 1},
        "mambaout_tiny": {"dims": (4, 8), "depths": (2, 1), "num_classes": 2},
        "mambaout_small": {"dims": (4, 8), "depths": (1, 2), "num_classes": 2},
        "mambaout_base": {"dims": (4, 8), "depths": (1, 1), "num_classes": 2, "drop_path": 0.1},
    },
)
