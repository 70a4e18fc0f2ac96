"""EfficientViM: summarises an image in a few hidden states and mixes the channels of those, not of the many tokens.

*Source*: S. Lee, J. Choi, H. J. Kim, "EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space
Duality", CVPR 2025 (arXiv:2411.15241), section 4. Three stages, at strides 16, 32 and 64, of blocks that move x a
learned fraction α in (0, 1) of the way to four values in turn:

    x += α (dw₃(x) - x);  x += α (mixer(norm(x)) - x);  x += α (dw₃(x) - x);  x += α (mlp(x) - x)

The mixer, with N states and L tokens, N < L:

    b, c, dt = dw₃(W x)                                        (N, L) each
    h = x (softmax_L(dt + A) ∘ b)ᵀ                             (C, N), a sum over tokens as in VSSD
    h, z = W h;  h = W (h ∘ silu(z) + D · h)                   channels mixed for N columns instead of L
    y = h c                                                    (C, L)

The last h of each stage is averaged and classified, as is the last map, and the four logits are added.

*Differs from the paper*: nothing. A shifts each row before a softmax and so has no effect; it is kept as in theirs.

*Provenance*: the networks are timm's. The block was written from the paper, with timm's parameter names and initial
values, and replaces timm's block in `use_plain_blocks_`, so that each verifies the other.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn

from foveal.nn.from_timm import from_timm
from foveal.record import Method, Paper

__all__ = [
    "EfficientViMBlock",
    "HiddenStateMixer",
    "efficientvim_m1",
    "efficientvim_m2",
    "efficientvim_m3",
    "efficientvim_m4",
    "summed_up",
    "use_plain_blocks_",
]


def summed_up(tokens: Tensor, weights: Tensor, importance: Tensor) -> Tensor:
    """The states, each a weighted sum over all tokens.

    Args:
        tokens: tokens, (B, C, L).
        weights: b, (B, N, L).
        importance: logits of the tokens' importance, softmaxed over the last axis, (B, N, L).

    Returns:
        h, (B, C, N).
    """
    return tokens @ (importance.softmax(-1) * weights).transpose(-1, -2)


def _conv(inputs: int, outputs: int, kernel: int = 1, *, groups: int = 1, start: float | None = 0.0) -> nn.Sequential:
    """A convolution and, with `start`, a batch norm with that initial scale."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if start is not None:
        norm = layers["norm"] = nn.BatchNorm2d(outputs)
        nn.init.constant_(norm.weight, start)
    return nn.Sequential(layers)


def _linear(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv1d(inputs, outputs, 1, bias=False)))


class HiddenStateMixer(nn.Module):
    """HSM-SSD: (B, C, H, W) to the same, and the mixed states, (B, C, N).

    Args:
        dim: C.
        state: N.
    """

    def __init__(self, dim: int, state: int) -> None:
        super().__init__()
        self.BCdt_proj = _linear(dim, 3 * state)
        self.dw = _conv(3 * state, 3 * state, 3, groups=3 * state, start=None)
        self.hz_proj = _linear(dim, 2 * dim)
        self.out_proj = _linear(dim, dim)
        self.A = nn.Parameter(torch.empty(state).uniform_(1, 16))
        self.D = nn.Parameter(torch.ones(1))

    def mixed(self, h: Tensor) -> Tensor:
        """Mix the channels of each state.

        Args:
            h: states, (B, C, N).

        Returns:
            The same shape.
        """
        h, gate = self.hz_proj(h).chunk(2, dim=1)
        return self.out_proj(h * F.silu(gate) + h * self.D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x.flatten(2)
        maps = self.BCdt_proj(tokens).unflatten(2, x.shape[2:])
        weights, reading, dt = self.dw(maps).flatten(2).chunk(3, dim=1)
        h = self.mixed(summed_up(tokens, weights, dt + self.A[:, None]))
        return (h @ reading).view(x.shape), h


class EfficientViMBlock(nn.Module):
    """(B, C, H, W) to the same, and the states of its mixer, (B, C, N).

    Args:
        dim: C.
        state: N.
        mlp_ratio: ratio of the MLP's hidden channels to C.
        drop_path: drop-path rate of each of the four steps.
    """

    def __init__(self, dim: int, state: int, *, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.mixer = HiddenStateMixer(dim, state)
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.dwconv1, self.dwconv2 = (_conv(dim, dim, 3, groups=dim) for _ in range(2))
        self.ffn = nn.Sequential(OrderedDict(fc1=_conv(dim, hidden, start=1.0), act=nn.ReLU(), fc2=_conv(hidden, dim)))
        self.alpha = nn.Parameter(torch.full((4, dim), 1e-4))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second, third, fourth = self.alpha.sigmoid()[..., None, None]
        x = x + self.drop_path(first * (self.dwconv1(x) - x))
        mixed, h = self.mixer(self.norm(x))
        x = x + self.drop_path(second * (mixed - x))
        x = x + self.drop_path(third * (self.dwconv2(x) - x))
        return x + self.drop_path(fourth * (self.ffn(x) - x)), h


def use_plain_blocks_(model: nn.Module) -> nn.Module:
    """Replace each of timm's blocks with the block of this file, with the same weights.

    Args:
        model: EfficientViM network of timm, changed in place.

    Returns:
        The model.
    """
    for stage in model.stages:  # type: ignore[union-attr]
        for i, theirs in enumerate(stage.blocks):  # type: ignore[union-attr, arg-type]
            weights = theirs.state_dict()
            hidden, dim = weights["ffn.fc1.conv.weight"].shape[:2]
            ours = EfficientViMBlock(dim, len(weights["mixer.A"]), mlp_ratio=hidden / dim)
            ours.load_state_dict(weights)
            ours.drop_path = theirs.drop_path
            stage.blocks[i] = ours.train(theirs.training)  # type: ignore[union-attr, operator]
    return model


# Parameters and multiply-adds, at 224×224 except for M4.
efficientvim_m1 = partial(from_timm, "efficientvim_m1")  # EfficientViM-M1: 6.7 M, 236 M
efficientvim_m2 = partial(from_timm, "efficientvim_m2")  # EfficientViM-M2: 13.9 M, 352 M
efficientvim_m3 = partial(from_timm, "efficientvim_m3")  # EfficientViM-M3: 16.6 M, 652 M
efficientvim_m4 = partial(from_timm, "efficientvim_m4")  # EfficientViM-M4: 19.6 M, 1.1 G at 256×256

METHOD = Method(
    id=287,
    name="EfficientViM",
    kind="model",
    summary="A picture is summed up in a few states, whose channels are mixed in place of those of its tokens.",
    paper=Paper(
        "EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality",
        "S. Lee et al.",
        2025,
        "arXiv:2411.15241",
    ),
    models={
        "efficientvim_m1": efficientvim_m1,
        "efficientvim_m2": efficientvim_m2,
        "efficientvim_m3": efficientvim_m3,
        "efficientvim_m4": efficientvim_m4,
    },
    cases={
        "efficientvim_m1": {"embed_dim": (8, 8, 16), "state_dim": (3, 2, 2), "num_classes": 3},
        "efficientvim_m2": {"embed_dim": (8, 16, 8), "state_dim": (2, 2, 2), "num_classes": 2, "in_channels": 1},
        "efficientvim_m3": {"embed_dim": (8, 8, 8), "state_dim": (2, 3, 1), "num_classes": 2},
        "efficientvim_m4": {"embed_dim": (8, 8, 8), "state_dim": (2, 2, 2), "num_classes": 2, "drop_path": 0.1},
    },
)
