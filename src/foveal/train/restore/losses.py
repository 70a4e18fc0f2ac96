"""Super-resolution losses, by their names in a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from foveal.measure.quality import BT601
from foveal.train.restore.lasi import lasi_loss
from foveal.train.restore.ms_ssim import ms_ssim_loss
from foveal.train.restore.perceptual import PerceptualLoss, pretrained

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["LOSSES", "LUMINANCE", "PERCEPTUAL", "SLIGHTEST", "loss_of", "luminance"]

LUMINANCE = torch.tensor(BT601) / 255
PERCEPTUAL = "perceptual"  # the one that needs a feature network
SLIGHTEST = 1e-5  # squared error, 50 dB: below it the gradient of a patch grows no further


def luminance(rgb: Tensor) -> Tensor:
    """BT.601 luminance of colours in [0, 1], without the offset of 16 for black.

    Args:
        rgb: pictures, (B, 3, H, W).

    Returns:
        Luminance, (B, 1, H, W).
    """
    return torch.einsum("bchw,c->bhw", rgb, LUMINANCE.to(rgb))[:, None]


class _LumaL2(torch.autograd.Function):
    """Squared error of BT.601 luminance, which PSNR measures, plus a tenth of that of RGB, which preserves colour.

    The mean over pixels of dᵀ G d, d = (r, g, b) of the difference, whose gradient 2 G d is available after the forward
    pass: at four times the side it takes a fifth of the time of autograd.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        luma = LUMINANCE.to(out)
        form = torch.outer(luma, luma) + torch.eye(3).to(out) * (0.1 / 3)
        difference = out - target
        scaled = F.conv2d(difference, form[..., None, None])
        pixels = difference.numel() / 3
        ctx.save_for_backward(scaled.mul(2 / pixels))
        return difference.mul_(scaled).sum() / pixels

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.saved_tensors[0] * gradient, None


def _roots(out: Tensor, target: Tensor) -> Tensor:
    """Mean over patches of the root mean squared error.

    Closer than the squared error to a mean of PSNRs, which weighs all pictures equally, however hard they are.
    """
    squares = F.mse_loss(out, target, reduction="none").mean((1, 2, 3))
    return (squares + SLIGHTEST).sqrt().mean()


LOSSES: dict[str, Callable[..., Any]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "l2_luma": _LumaL2.apply,
    "luma": F.mse_loss,
    "luma_root": _roots,
    "ms-ssim": ms_ssim_loss,
    "lasi": lasi_loss,
}


def loss_of(name: str, *, features: str = "") -> Callable[..., Any]:
    """A loss by its name in a recipe.

    Args:
        name: one of `LOSSES`, or "perceptual".
        features: the feature network of "perceptual", see `foveal.train.restore.perceptual.pretrained`.

    Returns:
        Function of pictures made and wanted, (B, C, H, W), to a scalar.
    """
    if name != PERCEPTUAL:
        return LOSSES[name]
    module = PerceptualLoss(pretrained(features), pixel_weight=1.0)

    def compare(out: Tensor, target: Tensor) -> Tensor:
        value: Tensor = module.to(out.device)(out, target)
        return value

    return compare
