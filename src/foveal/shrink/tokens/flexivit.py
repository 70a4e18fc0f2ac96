"""FlexiViT: one vision transformer for many patch sizes, each drawn in turn while it is trained.

*Source*: L. Beyer et al., "FlexiViT: One Model for All Patch Sizes", CVPR 2023 (arXiv:2212.08013), sections 3.2 to 3.4.
One kernel and one grid of positions are learned; each training step draws a patch size p and resizes both to it.

    w' = argmin_v E_x (⟨x, w⟩ − ⟨Bx, v⟩)² = (Bᵀ)⁺ w          PI-resize, x white noise, B resizes patches bilinearly
    out = ViT(conv(picture, w', stride p) + positions resized to (H/p, W/p))

For larger patches Bᵀ(Bᵀ)⁺ = 1, so tokens of enlarged pictures stay exactly what they were. B is the Kronecker product
of a matrix for each side, and so is its pseudo-inverse: w' = P_h w P_wᵀ, P = (Bᵀ)⁺, (p, k) for a kernel of k.

Shapes: B batch, H W picture, k side of the learned kernel, p side of a patch, C channels of a token.

*Differs from the paper*: kernel and positions keep the size that the network comes with (the paper learns 32×32 and
7×7 for pictures of 240). Positions are resized as timm does it, bicubic; the paper's are bilinear. Distillation from a
larger network, an option of the paper, is left to `foveal.shrink.distill`.
*Provenance*: written from the paper; equals timm's `resample_patch_embed`, which inverts the whole matrix, to 1e-5.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from foveal.shrink.step import Inputs

__all__ = ["FlexiPatchEmbed", "FlexiViT", "fixed", "pi_matrix", "pi_resize", "set_patch_size"]


def resize_matrix(old: int, new: int) -> Tensor:
    """Bilinear resizing of one side, with antialiasing where it shrinks, as a matrix.

    Args:
        old: number of pixels, n.
        new: number of pixels afterwards, m.

    Returns:
        B, (m, n) float64.
    """
    unit = torch.eye(old, dtype=torch.float64)[:, None, None]
    size = (1, new)
    return F.interpolate(unit, size, mode="bilinear", align_corners=False, antialias=True)[:, 0, 0].T


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached tensor must also be usable in a later training step
def pi_matrix(old: int, new: int) -> Tensor:
    """What PI-resize multiplies one side of a kernel by.

    Args:
        old: side of the kernel, k.
        new: side of the patch, p.

    Returns:
        P = (Bᵀ)⁺, (p, k) float32; do not modify it.
    """
    return torch.linalg.pinv(resize_matrix(old, new).T).float()


def pi_resize(weight: Tensor, size: int) -> Tensor:
    """Resize a patch embedding's kernel so that tokens change as little as they can.

    Args:
        weight: kernel, (C, channels, k, k).
        size: side of the patches, p.

    Returns:
        Kernel, (C, channels, p, p); `weight` itself if it has that size.
    """
    rows, columns = weight.shape[2:]
    if rows == columns == size:
        return weight
    return pi_matrix(rows, size).to(weight) @ weight @ pi_matrix(columns, size).to(weight).T


class FlexiPatchEmbed(nn.Module):
    """Patch embedding of any size, (B, channels, H, W) to (B, H/p, W/p, C). While training, p is drawn at each call.

    Args:
        embed: patch embedding of timm; its parameters are shared.
        sizes: sides that are drawn from, with equal probability.
        patch_size: side outside of training.
    """

    def __init__(self, embed: Any, sizes: tuple[int, ...], patch_size: int) -> None:
        super().__init__()
        self.proj, self.norm = embed.proj, embed.norm
        self.img_size, self.grid_size, self.num_patches = embed.img_size, embed.grid_size, embed.num_patches
        self.sizes, self.size = sizes, patch_size

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch outside of training, under timm's name."""
        return self.size, self.size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Numbers of rows and columns of patches outside of training, under timm's name.

        Args:
            img_size: (H, W).

        Returns:
            (H/p, W/p).
        """
        return img_size[0] // self.size, img_size[1] // self.size

    def forward(self, x: Tensor) -> Tensor:
        size = self.sizes[int(torch.randint(len(self.sizes), ()))] if self.training else self.size
        if x.shape[2] % size or x.shape[3] % size:
            raise ValueError(
                f"sides of the pictures must be multiples of the patch size {size}, got {x.shape[2]}×{x.shape[3]}; "
                f"resize them, or leave {size} out of sizes"
            )
        x = F.conv2d(x, pi_resize(self.proj.weight, size), self.proj.bias, stride=size)
        return self.norm(x.permute(0, 2, 3, 1))


def _flexible(model: nn.Module) -> FlexiPatchEmbed:
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, FlexiPatchEmbed):
        raise TypeError(f"{type(model).__name__} has one patch size; apply FlexiViT(sizes=…) to it first")
    return embed


def set_patch_size(model: nn.Module, size: int) -> nn.Module:
    """Choose the patch size of a flexible network outside of training, in place.

    Args:
        model: result of `FlexiViT.apply`.
        size: side of a patch; it need not be one of those trained.

    Returns:
        The same network.

    Raises:
        ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    _flexible(model).size = size
    return model


def fixed(model: nn.Module, size: int, *, img_size: int) -> nn.Module:
    """A stock network of one patch size, with kernel and positions resized once and for all.

    Args:
        model: result of `FlexiViT.apply`.
        size: side of a patch.
        img_size: side of the pictures, a multiple of `size`.

    Returns:
        Copy as timm would build it, without anything left to resize.

    Raises:
        ValueError: a picture that is no multiple of the patch.
    """
    from timm.layers import PatchEmbed, resample_abs_pos_embed

    if img_size % size:
        raise ValueError(f"img_size must be a multiple of the patch size {size}, got {img_size}")
    found: Any = copy.deepcopy(model)
    old = _flexible(found)
    channels, dim = old.proj.in_channels, old.proj.out_channels
    new: Any = PatchEmbed(img_size, size, channels, dim, bias=old.proj.bias is not None)
    new = new.to(old.proj.weight.device, old.proj.weight.dtype).train(model.training)
    new.norm = old.norm
    with torch.no_grad():
        new.proj.weight.copy_(pi_resize(old.proj.weight, size))
        if old.proj.bias is not None:
            new.proj.bias.copy_(old.proj.bias)
        if found.pos_embed is not None:
            prefix = 0 if found.no_embed_class else found.num_prefix_tokens
            positions = resample_abs_pos_embed(
                found.pos_embed, list(new.grid_size), list(old.grid_size), num_prefix_tokens=prefix
            )
            found.pos_embed = nn.Parameter(positions)
    found.patch_embed, found.dynamic_img_size = new, False
    return found


@dataclass(frozen=True)
class FlexiViT:
    """Step: let a vision transformer take several patch sizes. It is then trained as any other network.

    Args:
        sizes: sides of patches that training draws from; every picture's sides must be multiples of each.
        patch_size: side outside of training; None keeps the network's own. See `set_patch_size` and `fixed`.

    Raises:
        ValueError: no sizes, or one below 1.
    """

    sizes: tuple[int, ...] = (8, 10, 12, 15, 16, 20, 24, 30, 40, 48)  # those of the paper, for pictures of 240
    patch_size: int | None = None

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes must be one or more numbers from 1 on, got {self.sizes}")
        if self.patch_size is not None and self.patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {self.patch_size}")

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:  # noqa: ARG002 - nothing is calibrated
        """Make the patch embedding flexible, in place.

        Args:
            model: vision transformer of timm with square patches.
            data: not used.

        Returns:
            The same network; names of its parameters stay, so state dicts fit.

        Raises:
            TypeError: a network that is no vision transformer of timm.
            ValueError: a network that is flexible already.
        """
        from timm.layers import PatchEmbed
        from timm.models.vision_transformer import VisionTransformer

        embed = getattr(model, "patch_embed", None)
        if isinstance(embed, FlexiPatchEmbed):
            raise ValueError(f"model takes the patch sizes {embed.sizes} already; apply FlexiViT to a fresh network")
        if not isinstance(model, VisionTransformer) or type(embed) is not PatchEmbed:
            raise TypeError(f"model must be a vision transformer of timm, got {type(model).__name__}")
        (rows, columns) = embed.patch_size
        if rows != columns:
            raise ValueError(f"patches must be square, got {rows}×{columns}")
        flexible = FlexiPatchEmbed(embed, self.sizes, self.patch_size or rows)
        model.patch_embed = flexible.train(model.training)
        # timm then resizes the positions to the map that the embedding gives
        model.dynamic_img_size = True  # type: ignore[misc]
        return model


def _tiny(seed: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(12, 4, embed_dim=8, depth=2, num_heads=2, num_classes=3)


METHOD = Method(
    id=144,
    name="FlexiViT",
    kind="transform",
    summary="One vision transformer is trained at patch sizes drawn at random and runs at any of them.",
    cases={
        "vit": Transform(
            FlexiViT(sizes=(3, 4, 6), patch_size=6).apply,
            _tiny,
            lambda seed: torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed)),
            FlexiViT(sizes=(3, 4, 6)).apply,
            twice="model takes the patch sizes (3, 4, 6) already",
        )
    },
    paper=Paper("FlexiViT: One Model for All Patch Sizes", "L. Beyer et al.", 2023, "arXiv:2212.08013"),
)
