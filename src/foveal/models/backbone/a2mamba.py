"""A2Mamba: local attention maps of two scales gather values, and the same maps gather a scan's hidden states.

*Source*: M. Lou, Y. Fu, Y. Yu, "A2Mamba: Attention-augmented State Space Models for Visual Recognition", 2025
(arXiv:2507.16624), section III. A convolutional stem to a quarter of the sides, four stages between 3×3 convolutions of
stride 2; every block is

    x = x + dw₃(x);  x = x + mixer(norm(x));  x = x + dw₃(x);  x = x + W₂(1 + dw₃)(gelu(W₁ norm(x)))

The mixer is MASS, `foveal.nn.mass`; in the last stage it attends to all positions. The last map goes through a 1×1
convolution to 1,024 channels before it is pooled.

*Differs from the paper*: maps smaller than a window are taken, see `foveal.nn.neighbourhood`.
*Provenance*: written from the paper; the stem, the head, where layers are scaled and how parameters begin were looked
up in the authors' code.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from foveal.nn.mass import MASS
from foveal.nn.neighbourhood import (
    Neighbours,
    dense_attention,
    neighbourhood_scores,
    neighbourhood_sum,
    neighbours,
)
from foveal.nn.pyramid import Pyramid
from foveal.ops import selective_scan
from foveal.record import Method, Paper, equal, kept, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["A2Mamba", "a2mamba_b", "a2mamba_l", "a2mamba_n", "a2mamba_s", "a2mamba_t"]


class _FeedForward(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.local(x))


class _Scale(nn.Module):
    """A factor and a bias for each channel."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim, 1, 1), float(start)))
        self.bias = nn.Parameter(torch.zeros(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class _Block(nn.Module):
    """(B, C, H, W) to the same; `scaled` says whether the "branch" or the "shortcut" is scaled, or neither ("")."""

    def __init__(
        self, dim: int, mixer: nn.Module, *, mlp_ratio: float, drop_path: float, scaled: str, start: float
    ) -> None:
        super().__init__()
        self.local1, self.local2 = (nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(2))
        self.norm1, self.norm2 = (LayerNorm2d(dim, eps=1e-6) for _ in range(2))
        self.mixer = mixer
        self.mlp = _FeedForward(dim, int(mlp_ratio * dim))
        self.scale1, self.scale2 = (_Scale(dim, start) if scaled else nn.Identity() for _ in range(2))
        self.shortcut = scaled == "shortcut"
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        for local, norm, branch, scale in (
            (self.local1, self.norm1, self.mixer, self.scale1),
            (self.local2, self.norm2, self.mlp, self.scale2),
        ):
            x = x + local(x)
            y = branch(norm(x))
            x = scale(x) + self.drop_path(y) if self.shortcut else x + self.drop_path(scale(y))
        return x


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class A2Mamba(Pyramid):
    """Picture classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage, even.
        windows: K of each stage, odd.
        mlp_ratios: hidden channels over a block's, of each stage.
        scaled: what each stage's blocks scale: "branch", "shortcut" or nothing, "".
        scale_start: what the scales of each stage begin with.
        projection: channels that are pooled.
        attend_all: whether the last stage attends to all positions instead of scanning.
        aggregate: see `MASS`.
        in_channels: of the picture.
        num_classes: 0 gives pooled features.
        drop_path: probability of dropping a branch of the last block; it rises to that from 0.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        windows: Sequence[int] = (11, 9, 7, 7),
        mlp_ratios: Sequence[float] = (4, 4, 3, 3),
        scaled: Sequence[str] = ("", "", "", ""),
        scale_start: Sequence[float] = (1, 1, 1, 1),
        projection: int = 1024,
        attend_all: bool = True,
        aggregate: bool = True,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = [
            nn.Sequential(
                *(_conv(dims[i - 1], dims[i], 2) if i else []),
                *(
                    _Block(
                        dims[i],
                        MASS(
                            dims[i],
                            num_heads[i],
                            windows[i],
                            attend_all=attend_all and i == len(depths) - 1,
                            aggregate=aggregate,
                        ),
                        mlp_ratio=mlp_ratios[i],
                        drop_path=next(drops),
                        scaled=scaled[i],
                        start=scale_start[i],
                    )
                    for _ in range(depth)
                ),
            )
            for i, depth in enumerate(depths)
        ]
        half = dims[0] // 2
        stem = [*_conv(in_channels, half, 2), nn.GELU(), *_conv(half, half), nn.GELU()]
        stem += [*_conv(half, dims[0], 2), nn.GELU(), *_conv(dims[0], dims[0])]
        reductions = [4 * 2**i for i in range(len(dims))]
        super().__init__(nn.Sequential(*stem), stages, dims, reductions, num_classes=0, in_channels=in_channels)
        self.projection = nn.Sequential(nn.Conv2d(dims[-1], projection, 1), nn.BatchNorm2d(projection), nn.SiLU())
        self.head_hidden_size = projection
        self.reset_classifier(num_classes)
        self.apply(_init_weights)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:  # noqa: ARG002 - timm's
        """Put a fresh classifier in place.

        Args:
            num_classes: 0 for none.
            global_pool: average pooling is the only one; taken for timm's sake.
        """
        self.num_classes = num_classes
        self.head = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Project, pool and classify.

        Args:
            x: last map, (B, C, H', W').
            pre_logits: whether to stop before the classifier.

        Returns:
            (B, num_classes), or (B, projection).
        """
        return super().forward_head(self.projection(x), pre_logits)


def a2mamba_n(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dims: Sequence[int] = (32, 64, 128, 192),
    depths: Sequence[int] = (2, 2, 8, 2),
    num_heads: Sequence[int] = (2, 2, 4, 8),
) -> A2Mamba:
    """A2Mamba-N, 4 M parameters.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.

    Returns:
        The network.
    """
    return A2Mamba(dims, depths, num_heads, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path)


def a2mamba_t(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dims: Sequence[int] = (48, 96, 256, 448),
    depths: Sequence[int] = (2, 2, 10, 2),
    num_heads: Sequence[int] = (2, 4, 8, 16),
) -> A2Mamba:
    """A2Mamba-T, 15 M parameters.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.

    Returns:
        The network.
    """
    return A2Mamba(dims, depths, num_heads, in_channels=in_channels, num_classes=num_classes, drop_path=drop_path)


def a2mamba_s(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dims: Sequence[int] = (64, 128, 320, 512),
    depths: Sequence[int] = (2, 4, 12, 4),
    num_heads: Sequence[int] = (2, 4, 10, 16),
) -> A2Mamba:
    """A2Mamba-S, 31 M parameters; the last two stages scale their shortcuts.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.

    Returns:
        The network.
    """
    return A2Mamba(
        dims,
        depths,
        num_heads,
        scaled=("", "", "shortcut", "shortcut"),
        in_channels=in_channels,
        num_classes=num_classes,
        drop_path=drop_path,
    )


def a2mamba_b(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dims: Sequence[int] = (96, 192, 384, 512),
    depths: Sequence[int] = (4, 6, 12, 6),
    num_heads: Sequence[int] = (4, 8, 12, 16),
) -> A2Mamba:
    """A2Mamba-B, 51 M parameters; all stages scale their branches.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.

    Returns:
        The network.
    """
    return A2Mamba(
        dims,
        depths,
        num_heads,
        mlp_ratios=(4, 4, 3.75, 3.75),
        scaled=("branch",) * 4,
        scale_start=(1, 1, 1e-6, 1e-6),
        in_channels=in_channels,
        num_classes=num_classes,
        drop_path=drop_path,
    )


def a2mamba_l(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dims: Sequence[int] = (96, 192, 448, 672),
    depths: Sequence[int] = (4, 6, 18, 6),
    num_heads: Sequence[int] = (4, 8, 16, 24),
) -> A2Mamba:
    """A2Mamba-L, 95 M parameters; all stages scale their branches.

    Args:
        in_channels: of the picture.
        num_classes: 0 for pooled features.
        drop_path: of the last block.
        dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.

    Returns:
        The network.
    """
    return A2Mamba(
        dims,
        depths,
        num_heads,
        mlp_ratios=(4, 4, 4, 4),
        scaled=("branch",) * 4,
        scale_start=(1, 1, 1e-6, 1e-6),
        in_channels=in_channels,
        num_classes=num_classes,
        drop_path=drop_path,
    )


def _mixer(*, identity: bool) -> tuple[MASS, Tensor, list[Tensor], list[Neighbours]]:
    """A small mixer, its scan's input, two maps and their neighbours, on 9×13 positions."""
    torch.manual_seed(0)
    mixer, x = MASS(8, 2, 3), torch.randn(2, 8, 9, 13)
    near = [neighbours(9, 13, 3, dilation=dilation) for dilation in (1, None)]
    maps = [torch.rand(2, 1, 117, 9).softmax(-1) for _ in near]
    if identity:
        maps = [(each.index == torch.arange(117)[:, None]).float().expand(2, 1, -1, -1) for each in near]
        with torch.no_grad():
            mixer.heads.weight.copy_(torch.eye(2)[..., None, None])
            mixer.heads.bias.zero_()  # type: ignore[union-attr]
    return mixer, x, maps, near


def _identity_maps() -> Tensor:
    mixer, x, maps, near = _mixer(identity=True)
    return mixer.ssm(x, lambda states: mixer.gathered(states, maps, near))


def _plain_scan() -> Tensor:
    mixer, x, _, _ = _mixer(identity=True)
    s6 = mixer.ssm.s6
    delta, weights_in, weights_out = (made[:, 0] for made in s6.project(x.flatten(2)))
    y: Any = selective_scan(
        x.flatten(2), delta, -s6.A_log.exp(), weights_in, weights_out, s6.D, delta_bias=s6.dt_bias, delta_softplus=True
    )
    return y.view(x.shape)


def _attention(dilation: int, *, dense: bool) -> Tensor:
    """Neighbourhood attention over 23×20 positions, windows of 5: gathered, or dense with all others masked."""
    torch.manual_seed(0)
    height, width, window = 23, 20, 5
    query, key, value = torch.randn(3, 2, 2, height * width, 4).unbind()
    bias = torch.randn(2, 2 * window - 1, 2 * window - 1)
    near = neighbours(height, width, window, dilation=dilation)
    if not dense:
        return neighbourhood_sum(neighbourhood_scores(query, key, near, bias).softmax(-1), value, near)
    return dense_attention(query, key, value, bias, height, width, window, dilation)


def _cost(*, aggregate: bool) -> float:
    from foveal.measure.cost import count_macs

    return float(count_macs(MASS(48, 2, 11, aggregate=aggregate), (1, 48, 56, 56)))


def _small(*, aggregate: bool) -> A2Mamba:
    """Two stages and a half. Weights of 0.02 would leave the states below the last digits for longer than it trains."""
    model = A2Mamba(
        (16, 32, 48),
        (1, 2, 1),
        (2, 2, 4),
        windows=(5, 3, 3),
        mlp_ratios=(2, 2, 2),
        projection=96,
        aggregate=aggregate,
        num_classes=10,
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return model


def _above_stacked(seed: int) -> float:
    from foveal.train.classify import accuracy, train_classifier

    gathered, stacked = (
        accuracy(train_classifier(partial(_small, aggregate=aggregate), steps=300, seed=seed))
        for aggregate in (True, False)
    )
    return gathered - stacked


_TINY = {"dims": (8, 16), "depths": (1, 1), "num_heads": (2, 2), "num_classes": 5}

METHOD = Method(
    id=316,
    name="A2Mamba",
    kind="model",
    summary="Local attention maps that first gather values and then the hidden states of a selective scan.",
    paper=Paper(
        "A2Mamba: Attention-augmented State Space Models for Visual Recognition",
        "M. Lou et al.",
        2025,
        "arXiv:2507.16624",
    ),
    models={
        "a2mamba_n": a2mamba_n,
        "a2mamba_t": a2mamba_t,
        "a2mamba_s": a2mamba_s,
        "a2mamba_b": a2mamba_b,
        "a2mamba_l": a2mamba_l,
    },
    cases={
        "a2mamba_n": _TINY,
        "a2mamba_t": {**_TINY, "dims": (8,), "depths": (2,), "num_heads": (2,), "in_channels": 1},
        "a2mamba_s": {**_TINY, "dims": (8, 8, 8), "depths": (1, 1, 1), "num_heads": (2, 2, 2)},
        "a2mamba_b": {**_TINY, "drop_path": 0.1},
        "a2mamba_l": _TINY,
    },
    claims=(
        *(
            params(f"A2Mamba-{name}.", paper=f"{paper} M", model=model, expect=count)
            for name, model, paper, count in (
                ("N", a2mamba_n, 4, 4_195_052),
                ("T", a2mamba_t, 15, 15_365_506),
                ("S", a2mamba_s, 31, 30_672_834),
                ("B", a2mamba_b, 51, 51_134_464),
                ("L", a2mamba_l, 95, 93_737_376),
            )
        ),
        *(
            macs(
                f"A2Mamba-{name} at 224×224.",
                paper=f"{paper} G",
                model=model,
                shape=(1, 3, 224, 224),
                expect=paper * 1e9,
                tolerance=tolerance,
            )
            for name, model, paper, tolerance in (
                ("N", a2mamba_n, 0.8, 0.02),
                ("T", a2mamba_t, 2.7, 0.02),
                ("S", a2mamba_s, 5.4, 0.02),
                # The authors' network, which ours equals weight for weight, has more than they print.
                ("B", a2mamba_b, 10.7, 0.07),
                ("L", a2mamba_l, 17.4, 0.02),
            )
        ),
        equal(
            "With maps that pick each position itself, the scan is a plain one.",
            ours=_identity_maps,
            theirs=_plain_scan,
            tolerance=1e-6,
        ),
        *(
            equal(
                f"Attention to 5×5 neighbours at dilation {dilation} is dense attention with all others masked.",
                ours=partial(_attention, dilation, dense=False),
                theirs=partial(_attention, dilation, dense=True),
            )
            for dilation in (1, 3, 4)
        ),
        smaller(
            "Gathering states adds one sum over 11×11 neighbours a state, and no similarities: half of what a second "
            "attention would cost.",
            paper="the maps are shared",
            ours=lambda: _cost(aggregate=True) - _cost(aggregate=False),
            theirs=lambda: 2.0 * 48 * 56**2 * 11**2,
            at_least=2.0,
        ),
        kept(
            "Gathering states makes a small network more accurate than attention and scan only stacked, equal in size.",
            paper="above stacked layers on ImageNet",
            quality=_above_stacked,
            at_least=0.0,
            unit="points",
            seeds=3,
            data="300 steps on CIFAR-10, the first 2,000 test pictures",
            needs=("minutes", "cifar10_train", "cifar10_test"),
        ),
    ),
)
