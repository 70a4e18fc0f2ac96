"""MHS-VM: the channels are split into heads, and each head scans the feature map in its own pattern.

*Source*: Z. Ji, "MHS-VM: Multi-Head Scanning in Parallel Subspaces for Vision Mamba", 2024 (arXiv:2406.05992), section
3. The mixer replaces SS2D in VM-UNet (arXiv:2402.02491): an encoder and a decoder of four stages each, with additive
skip connections. With n heads and K = 4 routes per head:

    [u, z] = W_in x;  u = silu(dw₃(u));  [x₁ … xₙ] = W u                (B, C, H, W) to n of (B, C/n, H, W)
    y_k = selective scan of x_h along route k, back in raster order     each route has its own weights
    z_h = (Σ_k y_k) ∘ relu(cv - t),  cv = std_k(y) / mean_k(y - min_k y)        scan route attention
    out = norm(V norm([z₁ … zₙ])) ∘ silu(z)

| head | routes, each also backward |
|---|---|
| 1 | rows and columns, every second one reversed |
| 2 | diagonals, every second one reversed, from the upper left and from the upper right corner |
| 3 | spirals inward, clockwise from the upper left corner and counterclockwise from the lower left one |
| 4 | rows and columns, all in one direction |

*Differs from the paper*: sides that are not a multiple of 32 are padded with zeros and the result is cropped; the
outputs are logits, without a sigmoid.
*Provenance*: written from the paper; the layers of the U-Net, the routes and the initial values were looked up in the
authors' code. With its weights, converted by `from_authors`, the logits agree with its own to 4e-5 of the largest.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn

from foveal.models.backbone.vmamba import init_weights
from foveal.nn.patch_merging import PatchMerging
from foveal.nn.pyramid import Pyramid
from foveal.nn.renamed import renamed
from foveal.nn.ss2d import S6, SS2D
from foveal.nn.vmamba_names import S6_NAMES, as_convolutions
from foveal.ops.scan2d import routes
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PATTERNS", "MHSUNet", "MultiHeadScan", "from_authors", "mhs_unet", "pattern", "route_attention", "vm_unet"]

PATTERNS = ("turning", "zigzag", "spiral", "raster")


def pattern(name: str, height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Four routes over a map, each visiting every position once.

    Args:
        name: "turning", "zigzag", "spiral" or "raster", the heads of the table above.
        height: H.
        width: W.
        device: device of the result.

    Returns:
        Raster indices in the order they are visited, (4, H·W): two routes, and both backward.

    Raises:
        ValueError: if the name is unknown.
    """
    if name == "raster":
        return routes("cross", height, width, device=device)
    if name == "turning":
        return routes("snake", height, width, device=device)
    place = torch.arange(height * width, device=device)
    row = torch.div(place, width, rounding_mode="floor")
    if name == "spiral":
        first = routes("spiral", height, width, device=device)[0]
        # upside down: the row is counted from below
        second = first + (height - 1 - 2 * row[first]) * width
    elif name == "zigzag":
        diagonal = row + place - row * width
        # upward on even diagonals, downward on odd ones
        first = torch.argsort(diagonal * height + torch.where(diagonal % 2 == 0, height - 1 - row, row))
        # mirrored: the column is counted from the right
        second = 2 * row[first] * width + width - 1 - first
    else:
        raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {name!r}")
    both = torch.stack((first, second))
    return torch.cat((both, both.flip(1)))


def route_attention(y: Tensor, threshold: float = 0.0) -> Tensor:
    """Sum over routes, weighted by their disagreement: standard deviation over mean excess above the minimum.

    Where routes differ by little more than 1e-5 the ratio amplifies rounding errors: the outputs of an untrained
    network in float32 and float64 differ by a thousandth.

    Args:
        y: one value per route, (B, K, …).
        threshold: t; the output is 0 where the ratio is below it.

    Returns:
        (B, …).
    """
    count, total = y.shape[1], y.sum(1)
    apart = y - (total / count)[:, None]
    # The floor keeps the gradient of the square root finite where all routes agree; its root is far below 1e-5.
    deviation = (apart.square().sum(1) / (count - 1)).clamp(min=1e-24).sqrt()
    ratio = deviation / (1e-5 - apart.amin(1))
    return total * F.relu(ratio - threshold)


class MultiHeadScan(nn.Module):
    """Gated multi-head scans, (B, C, H, W) to the same.

    Args:
        dim: C, a multiple of `num_heads`.
        num_heads: n, 1 to 4.
        state: D, state size of the scans.
        threshold: t of the scan route attention.

    Raises:
        ValueError: if there are more heads than patterns, or they do not divide the channels.
    """

    def __init__(self, dim: int, *, num_heads: int = 4, state: int = 16, threshold: float = 0.0) -> None:
        super().__init__()
        if not 1 <= num_heads <= len(PATTERNS) or dim % num_heads:
            raise ValueError(
                f"num_heads must be 1…{len(PATTERNS)} and divide the channels, got {num_heads} for {dim} channels"
            )
        self.in_proj = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.split = nn.Conv2d(dim, dim, 1, bias=False)
        self.patterns, self.threshold = PATTERNS[:num_heads], threshold
        width = dim // num_heads
        self.s6 = S6(width, state=state, dt_rank=-(-width // 16), num_routes=4 * num_heads)
        self.joined_norm = LayerNorm2d(dim, eps=1e-5)
        self.joined = nn.Conv2d(dim, dim, 1, bias=False)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def scan(self, x: Tensor) -> Tensor:
        """Scan each head's channels along its four routes, all heads at once, and combine the routes.

        Args:
            x: features, (B, C, H, W), with the channels grouped by head.

        Returns:
            The same shape.
        """
        batch, _, height, width = x.shape
        found = [pattern(name, height, width, device=x.device) for name in self.patterns]
        # (n, 4, 1, L): the position at each step; the inverse: the step at each position
        visited = torch.stack(found)[:, :, None]
        steps = torch.arange(visited.shape[-1], device=x.device).expand_as(visited)
        inverse = torch.zeros_like(visited).scatter(-1, visited, steps)
        # (B, n, 1, P, L) to (B, n, 4, P, L)
        parts = x.flatten(2).unflatten(1, (len(found), 1, -1)).expand(-1, -1, 4, -1, -1)
        spread = (batch, -1, -1, parts.shape[3], -1)
        y = self.s6(parts.gather(-1, visited.expand(spread)).flatten(1, 2)).unflatten(1, (-1, 4))
        y = y.gather(-1, inverse.expand(spread))
        # routes before heads
        return route_attention(y.transpose(1, 2), self.threshold).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=1)
        joined = self.joined_norm(self.scan(self.split(F.silu(self.conv(u)))))
        return self.norm(self.joined(joined)) * F.silu(z)


class _Block(nn.Module):
    """(B, C, H, W) to the same."""

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))


class _Expanding(nn.Module):
    """(B, C, H, W) to (B, dim, s·H, s·W)."""

    def __init__(self, in_channels: int, dim: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Conv2d(in_channels, scale**2 * dim, 1, bias=False)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.pixel_shuffle(self.expand(x), self.scale))


class _Stage(nn.Module):
    """Change of resolution, then blocks."""

    def __init__(self, enter: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.enter = enter
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.enter(x))


class MHSUNet(Pyramid):
    """Segmentation network, (B, in_channels, H, W) to (B, num_classes, H, W), logits.

    As a backbone it returns the encoder's feature maps.

    Args:
        dim: number of channels of the first stage; each further stage doubles it.
        depths: number of blocks of each encoder stage.
        depths_up: number of blocks of each decoder stage, the smallest map first.
        num_heads: number of heads of `MultiHeadScan`, 3 or 4 in the paper; 0 uses SS2D, which makes it VM-UNet.
        state: D, state size of the scans.
        threshold: t of the scan route attention; 0.5 in the paper on ISIC 2018.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns features.
        drop_path: drop-path rate at the smallest map; the rates fall linearly to 0 towards both ends.
    """

    def __init__(
        self,
        *,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        depths_up: Sequence[int] = (2, 2, 2, 1),
        num_heads: int = 4,
        state: int = 16,
        threshold: float = 0.0,
        in_channels: int = 3,
        num_classes: int = 1,
        drop_path: float = 0.0,
    ) -> None:
        def make(width: int) -> nn.Module:
            if not num_heads:
                return SS2D(width, state=state)
            return MultiHeadScan(width, num_heads=num_heads, state=state, threshold=threshold)

        dims = [dim * 2**i for i in range(len(depths))]
        drops = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        stages, ups = [], []
        for i, depth in enumerate(depths):
            blocks = [_Block(dims[i], make(dims[i]), drops[sum(depths[:i]) + j]) for j in range(depth)]
            stages.append(_Stage(PatchMerging(dims[i - 1], dims[i]) if i else nn.Identity(), blocks))
        drops = torch.linspace(drop_path, 0, sum(depths_up), device="cpu").tolist()
        for i, (width, depth) in enumerate(zip(dims[::-1], depths_up, strict=True)):
            blocks = [_Block(width, make(width), drops[sum(depths_up[:i]) + j]) for j in range(depth)]
            ups.append(_Stage(_Expanding(2 * width, width, 2) if i else nn.Identity(), blocks))
        stem = nn.Sequential(nn.Conv2d(in_channels, dim, 4, 4), LayerNorm2d(dim, eps=1e-5))
        reductions = [4 * 2**i for i in range(len(dims))]
        super().__init__(stem, stages, dims, reductions, num_classes=0, in_channels=in_channels)
        self.scale = 1
        self.ups = nn.ModuleList(ups)
        self.final = _Expanding(dim, dim // 4, 4)
        self.head_hidden_size = dim // 4
        self.apply(init_weights)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:  # noqa: ARG002 - timm's
        """Replace the last layer with a newly initialised one.

        Args:
            num_classes: number of classes; 0 removes the classifier.
            global_pool: ignored, for compatibility with timm; nothing is pooled.
        """
        self.num_classes = num_classes
        self.out_channels = num_classes or self.head_hidden_size
        self.head = nn.Conv2d(self.head_hidden_size, num_classes, 1) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        multiple = 4 * 2 ** (len(self.stages) - 1)
        x = self.stem(F.pad(x, (0, -width % multiple, 0, -height % multiple)))
        inputs = []
        for stage in self.stages:
            assert isinstance(stage, _Stage)
            inputs.append(stage.enter(x))
            x = stage.blocks(inputs[-1])
        x = self.ups[0](x)
        # The smallest map is first added to its own input, before upsampling.
        for up, before in zip(self.ups[1:], inputs[:0:-1], strict=True):
            x = up(x + before)
        return self.head(self.final(x))[:, :, :height, :width]


mhs_unet = MHSUNet  # MHS-VM with four heads, 17 M parameters, trained with `drop_path` 0.2
vm_unet = partial(MHSUNet, num_heads=0)  # VM-UNet, 27 M parameters, which the paper compares with


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the authors' weights to foveal's parameter names and shapes.

    Args:
        state_dict: name → tensor, from their VMUNet with three or four heads.

    Returns:
        State dict of `mhs_unet` with the same number of heads and, if trained on ISIC 2018, `threshold` 0.5.
    """
    found = renamed(
        # they store two tensors under a second name
        {name: value for name, value in state_dict.items() if not re.search(r"\.scanning\.|x_ssproj_W$", name)},
        [
            (r"^vmunet\.", ""),
            (r"^patch_embed\.proj\.", "stem.0."),
            (r"^patch_embed\.norm\.", "stem.1."),
            (r"^final_up\.", "final."),
            (r"^final_conv\.", "head."),
            (r"^layers_up\.(\d+)\.upsample\.", r"ups.\1.enter."),
            (r"^layers_up\.", "ups."),
            # their stages end with the patch merging, ours begin with it
            (r"^layers\.(\d+)\.downsample\.", lambda at: f"stages.{int(at[1]) + 1}.enter."),
            (r"^layers\.", "stages."),
            (r"\.ln_1\.", ".norm."),
            (r"\.self_attention\.", ".mixer."),
            (r"\.mhs\.x_ssproj\.", ".split."),
            (r"\.mhs\.cat_norm\.", ".joined_norm."),
            (r"\.mhs\.y_proj\.", ".joined."),
            (r"\.mhs\.scanhead_(\w)\.mambaeng\.", r".head_\1."),
            *S6_NAMES,
        ],
    )
    # the scans of the heads, here one scan with four routes per head
    heads: dict[str, dict[str, Tensor]] = {}
    ours: dict[str, Tensor] = {}
    for name, value in as_convolutions(found).items():
        if at := re.fullmatch(r"(.*)\.head_(\w)(\.s6\.\w+)", name):
            # their order is forward, backward, forward, backward; here both forward ones come first
            heads.setdefault(at[1] + at[3], {})[at[2]] = value.unflatten(0, (4, -1))[[0, 2, 1, 3]].flatten(0, 1)
        elif name.endswith("expand.weight"):
            # (s²·C', C), the pixels of a cell first, to C' first
            scale = 4 if name.startswith("final") else 2
            ours[name] = value.unflatten(0, (scale**2, -1)).transpose(0, 1).flatten(0, 1)
        else:
            ours[name] = value
    return ours | {name: torch.cat([parts[h] for h in "CXSZ" if h in parts]) for name, parts in heads.items()}


_TINY = {"dim": 8, "depths": (1, 1), "depths_up": (1, 1), "state": 2, "num_classes": 2}

METHOD = Method(
    id=302,
    name="MHS-VM",
    kind="model",
    summary="Channels in heads that each scan the map in their own pattern, and routes that pass where they disagree.",
    paper=Paper(
        "MHS-VM: Multi-Head Scanning in Parallel Subspaces for Vision Mamba", "Z. Ji", 2024, "arXiv:2406.05992"
    ),
    models={"mhs_unet": mhs_unet, "vm_unet": vm_unet},
    cases={"mhs_unet": {**_TINY, "in_channels": 1, "drop_path": 0.1}, "vm_unet": _TINY},
)
