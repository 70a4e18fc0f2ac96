"""PlainMamba: blocks of one width whose scans snake over the picture and know which way they go.

*Source*: C. Yang et al., "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition", BMVC 2024
(arXiv:2403.17695), section 3 and table 1.

    [x, z] = W_in norm(tokens),  u = silu(dwconv₇ₓ₇(x))              (B, N, C) to two of (B, E, H', W')
    y = four scans of u, along rows and columns, both ways, summed   `foveal.nn.snake`
    tokens = tokens + W_out (y ∘ silu(z))

No class token; the head reads the mean of norm(tokens).

*Differs from the paper*: step sizes start as Mamba's; positions are resized to any picture. The authors' code computes
the scans in another way than the paper; `released=True` does as the code, see `foveal.nn.snake`.
*Provenance*: written from the paper; the patch embedding, the extra convolution of L1's first block and initial values
looked up in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from foveal.nn.isotropic import Isotropic
from foveal.nn.snake import SnakeScan
from foveal.ops.scan2d import routes
from foveal.record import Method, Paper, equal, faster, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PlainMambaBlock", "PlainMambaMixer", "plainmamba", "plainmamba_l1", "plainmamba_l2", "plainmamba_l3"]


class PlainMambaMixer(nn.Module):
    """Mixer of a map's tokens, (B, N, dim) to (B, N, dim).

    Args:
        dim: C.
        state: D.
        expand: inner channels over `dim`.
        kernel_size: of the depthwise convolution before the scans, odd.
        released: see `SnakeScan`.
    """

    def __init__(
        self, dim: int, *, state: int = 16, expand: float = 2.0, kernel_size: int = 7, released: bool = False
    ) -> None:
        super().__init__()
        inner = int(expand * dim)
        self.in_proj = nn.Linear(dim, 2 * inner)
        self.conv2d = nn.Conv2d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner)
        self.scan = SnakeScan(inner, state=state, dt_rank=-(-dim // 16), released=released)
        self.out_proj = nn.Linear(inner, dim)
        for projection in (self.in_proj, self.out_proj):
            trunc_normal_(projection.weight, std=0.02)
            nn.init.zeros_(projection.bias)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        # two of (B, E, N)
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        y = self.scan(F.silu(self.conv2d(x.unflatten(2, size)))).flatten(2)
        return self.out_proj((y * F.silu(z)).transpose(1, 2))


class PlainMambaBlock(nn.Module):
    """Norm, mixer, residual and, in L1's first block, a 3×3 depthwise convolution over the sum.

    Args:
        dim: C.
        state: D.
        convolve: whether the convolution is there.
        drop_path: probability of dropping the mixer while training.
        released: see `SnakeScan`.
    """

    def __init__(
        self, dim: int, *, state: int = 16, convolve: bool = False, drop_path: float = 0.0, released: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = PlainMambaMixer(dim, state=state, released=released)
        self.drop_path = DropPath(drop_path)
        self.convolve = (
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False), nn.BatchNorm2d(dim), nn.GELU())
            if convolve
            else None
        )

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens + self.drop_path(self.mixer(self.norm(tokens), size))
        if self.convolve is None:
            return tokens
        return self.convolve(tokens.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)


class _Patches(nn.Module):
    """Convolutions at half the picture's size, then patches; (B, in_channels, H, W) to (B, dim, H / p, W / p)."""

    def __init__(self, dim: int, convolutions: int, *, in_channels: int, patch_size: int, features: int = 64) -> None:
        super().__init__()
        self.side = patch_size // 2
        layers: list[nn.Module] = []
        for i in range(1 + convolutions):
            layers += (
                [nn.Conv2d(features, features, 3, padding=1, bias=False)]
                if i
                else [nn.Conv2d(in_channels, features, 7, stride=2, padding=3, bias=False)]
            )
            layers += [nn.BatchNorm2d(features), nn.ReLU()]
        self.stem = nn.Sequential(*layers)
        self.proj = nn.Conv2d(features, dim, self.side, stride=self.side)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.proj(F.pad(x, (0, -x.shape[3] % self.side, 0, -x.shape[2] % self.side)))


def plainmamba(
    dim: int,
    depth: int,
    convolutions: int = 2,
    state: int = 16,
    patch_size: int = 16,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    *,
    convolve_first: bool = False,
    released: bool = False,
    grid: tuple[int, int] = (14, 14),
) -> Isotropic:
    """PlainMamba of any size.

    Args:
        dim: C.
        depth: number of blocks.
        convolutions: 3×3 convolutions before the patches.
        state: D.
        patch_size: side of a patch in pixels, even.
        in_channels: of the picture.
        num_classes: of the head; 0 gives features.
        drop_path: of the last block; the others' grow to it.
        convolve_first: whether the first block has a convolution of its own.
        released: see `SnakeScan`.
        grid: patches that the position embedding is made for.

    Returns:
        The network, (B, in_channels, H, W) to (B, num_classes).
    """
    return Isotropic(
        _Patches(dim, convolutions, in_channels=in_channels, patch_size=patch_size),
        [
            PlainMambaBlock(
                dim,
                state=state,
                convolve=convolve_first and i == 0,
                drop_path=drop_path * i / max(depth - 1, 1),
                released=released,
            )
            for i in range(depth)
        ],
        dim,
        patch_size,
        grid=grid,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=nn.LayerNorm(dim, eps=1e-6),
    )


def plainmamba_l1(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 192,
    depth: int = 24,
    state: int = 16,
    patch_size: int = 16,
    released: bool = False,
) -> Isotropic:
    """24 blocks of width 192.

    Args:
        in_channels: of the picture.
        num_classes: of the head; 0 gives features.
        drop_path: of the last block.
        dim: C.
        depth: number of blocks.
        state: D.
        patch_size: side of a patch in pixels, even.
        released: see `SnakeScan`.

    Returns:
        The network.
    """
    sizes = (dim, depth, 1, state, patch_size, in_channels, num_classes)
    return plainmamba(*sizes, drop_path, convolve_first=True, released=released)


def plainmamba_l2(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 384,
    depth: int = 24,
    state: int = 16,
    patch_size: int = 16,
    released: bool = False,
) -> Isotropic:
    """24 blocks of width 384.

    Args:
        in_channels: of the picture.
        num_classes: of the head; 0 gives features.
        drop_path: of the last block.
        dim: C.
        depth: number of blocks.
        state: D.
        patch_size: side of a patch in pixels, even.
        released: see `SnakeScan`.

    Returns:
        The network.
    """
    return plainmamba(dim, depth, 2, state, patch_size, in_channels, num_classes, drop_path, released=released)


def plainmamba_l3(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    dim: int = 448,
    depth: int = 36,
    state: int = 16,
    patch_size: int = 16,
    released: bool = False,
) -> Isotropic:
    """36 blocks of width 448.

    Args:
        in_channels: of the picture.
        num_classes: of the head; 0 gives features.
        drop_path: of the last block.
        dim: C.
        depth: number of blocks.
        state: D.
        patch_size: side of a patch in pixels, even.
        released: see `SnakeScan`.

    Returns:
        The network.
    """
    return plainmamba(dim, depth, 2, state, patch_size, in_channels, num_classes, drop_path, released=released)


_SIDES = tuple((height, width) for height in range(1, 8) for width in range(1, 8))


def _walked() -> Tensor:
    """For maps of all small sizes: the places that each route visits, sorted, and the length of each step."""
    found = []
    for height, width in _SIDES:
        route = routes("snake", height, width)
        step = (route // width).diff(dim=1).abs() + (route % width).diff(dim=1).abs()
        found += [route.sort(1).values.flatten(), step.flatten()]
    return torch.cat(found).float()


def _neighbours() -> Tensor:
    found = [
        torch.cat([torch.arange(h * w).repeat(4), torch.ones(4 * (h * w - 1), dtype=torch.int64)]) for h, w in _SIDES
    ]
    return torch.cat(found).float()


def _scanned(*, plainly: bool) -> Tensor:
    from foveal.ops.selective_scan.reference import selective_scan_reference

    torch.manual_seed(0)
    scan, u = SnakeScan(6, state=3, dt_rank=2), torch.randn(2, 6, 5, 7)
    nn.init.zeros_(scan.directions)
    with torch.no_grad():
        if not plainly:
            return scan(u)
        flat = u.flatten(2)
        delta, weights_in, weights_out = scan.project(flat)
        found = torch.zeros_like(flat)
        for route in routes("snake", 5, 7):
            ins, outs = weights_in[:, None, :, route], weights_out[:, None, :, route]
            y, _ = selective_scan_reference(
                flat[..., route], delta[..., route], -scan.A_log.exp(), ins, outs, scan.D, delta_softplus=True
            )
            found[..., route] += y
        return found.view(u.shape)


def _macs(build: Callable[[], nn.Module], side: int) -> float:
    from foveal.measure.cost import count_macs

    return float(count_macs(build(), (1, 3, side, side)))


def _deit() -> nn.Module:
    """DeiT-S for pictures of 1024×1024."""
    from timm import create_model

    return create_model("deit_small_patch16_224", img_size=1024)


def _timed(*blocks: nn.Module) -> Callable[[], Any]:
    stack, tokens = nn.ModuleList(blocks).eval(), torch.randn(1, 64**2, 384)

    def call() -> Tensor:
        with torch.inference_mode():
            x = tokens
            for block in stack:
                x = block(x, (64, 64)) if isinstance(block, PlainMambaBlock) else block(x)
            return x

    return call


def _attention() -> nn.Module:
    """A block of DeiT-S that builds its matrix of attention."""
    from timm.models.vision_transformer import Block

    block = Block(384, num_heads=6, qkv_bias=True)
    block.attn.fused_attn = False  # type: ignore[assignment]
    return block


_TINY = {"dim": 8, "depth": 1, "state": 2, "patch_size": 4, "num_classes": 5}

METHOD = Method(
    id=280,
    name="PlainMamba",
    kind="model",
    summary="Blocks of one width whose four scans snake over the picture and know which way they go.",
    paper=Paper(
        "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition",
        "C. Yang et al.",
        2024,
        "arXiv:2403.17695",
    ),
    models={"plainmamba_l1": plainmamba_l1, "plainmamba_l2": plainmamba_l2, "plainmamba_l3": plainmamba_l3},
    cases={
        "plainmamba_l1": _TINY,
        "plainmamba_l2": {**_TINY, "depth": 2, "released": True},
        "plainmamba_l3": {**_TINY, "in_channels": 1},
    },
    claims=(
        params(
            "L1 without the classifier.", paper="7.3 M", model=lambda: plainmamba_l1(num_classes=0), expect=7_358_656
        ),
        params("L2, the same.", paper="25.7 M", model=lambda: plainmamba_l2(num_classes=0), expect=25_760_832),
        params("L3, the same.", paper="50.5 M", model=lambda: plainmamba_l3(num_classes=0), expect=50_507_456),
        macs("L1 at 224×224.", paper="3.0 G", model=plainmamba_l1, shape=(1, 3, 224, 224), expect=3_012_897_024),
        macs("L2 at 224×224.", paper="8.1 G", model=plainmamba_l2, shape=(1, 3, 224, 224), expect=8_074_705_920),
        macs("L3 at 224×224.", paper="14.4 G", model=plainmamba_l3, shape=(1, 3, 224, 224), expect=14_432_972_288),
        equal(
            "The routes visit each place once and go from neighbour to neighbour, on maps of 49 sizes.",
            ours=_walked,
            theirs=_neighbours,
            tolerance=0.0,
        ),
        equal(
            "Without direction vectors it is four ordinary scans, summed.",
            ours=lambda: _scanned(plainly=False),
            theirs=lambda: _scanned(plainly=True),
            tolerance=1e-5,
        ),
        smaller(
            "At 1024×1024 L2 takes fewer multiply-adds than DeiT-S, at 224×224 more.",
            paper="much less than attention",
            ours=lambda: _macs(plainmamba_l2, 1024),
            theirs=lambda: _macs(_deit, 1024),
            at_least=1.3,
        ),
        faster(
            "At 1024×1024 two blocks of L2 take less time than one of DeiT-S, whose network has half as many.",
            paper="",
            ours=lambda: _timed(PlainMambaBlock(384), PlainMambaBlock(384)),
            theirs=lambda: _timed(_attention()),
        ),
    ),
)
