"""Solve for the linear last layer of a trained network over many batches at once.

*Source*: weighted least squares, by its normal equations. With x the K numbers that the last layer reads for a pixel
(9·C features and k² pixels of luminance), e the s² errors it leaves there, and w the weight of the patch,

    (Σ w x xᵀ) Δ = Σ w x eᵀ,    Δ: K × s²

is the change of the layer that minimises Σ w |e|². Training leaves the noise of its last steps in every
layer; refitting removes it from the last one, since the sums run over millions of pixels. Only pixels whose receptive
field lies inside their patch are counted, so the layer is fitted to pictures and not to the zeros around patches. In a
network with back-projection, the layer is the one that is best before that step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.train.restore.losses import LUMINANCE, SLIGHTEST, luminance

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LinearEnd", "refit"]

RIDGE = 1e-6  # share of the diagonal: features that hardly differ keep their weights


@runtime_checkable
class LinearEnd(Protocol):
    """A network whose detail comes from a last 3×3 convolution beside a linear upsampler, such as LumaSR.

    Args:
        scale: s.
        tail: the last convolution, from C features to s² phases of one colour.
        base: kernel of the upsampler of one colour, (s², k, k).
    """

    scale: int
    tail: nn.Conv2d
    base: nn.Parameter

    def plain(self, *, back_projection: bool = True) -> nn.Module:
        """The network without padding.

        Args:
            back_projection: whether to include back-projection, if the network has it.

        Returns:
            A module with `layers` (a `Sequential` that ends in the last convolution), `base` (a convolution) and
            `margin`.
        """
        ...

    def change_last(self, tail: Tensor, base: Tensor) -> None:
        """Add to the last kernel and the upsampler.

        Args:
            tail: change of the kernel.
            base: change of the upsampler; each phase sums to 0.
        """
        ...


@torch.no_grad()
def refit(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, root: bool = False) -> float:
    """Refit the last layer and the upsampler beside it to the least squared error of luminance.

    Args:
        model: trained network with a `LinearEnd` (LumaSR); changed in place.
        batches: low resolution, (B, 3, h, w), and high resolution, (B, 3, s·h, s·w), in [0, 1]; h and w above twice
            the network's margin.
        root: whether to weigh each patch by one over the root of its error, as the loss "luma_root" does.

    Returns:
        Relative reduction of the weighted squared error on these batches.

    Raises:
        TypeError: a network without a `LinearEnd`.
        ValueError: no batches.
    """
    if not isinstance(model, LinearEnd):
        raise TypeError(
            f"refit solves for a last layer that is linear (LinearEnd, such as LumaSR), got a {type(model).__name__}"
        )
    scale, taps = model.scale, model.base.shape[-1]
    plain = model.plain(back_projection=False)
    margin = cast("int", plain.margin)
    body = cast("nn.Sequential", plain.layers)[:-1]
    side, white = 2 * margin + 1, float(LUMINANCE.sum())
    flat = body(model.base.new_zeros(1, 3, side, side))[:, :, :1, :1]  # features of any picture of one colour
    grams: Tensor | float = 0.0
    moments: Tensor | float = 0.0
    squares = 0.0
    for low, high in batches:
        inside = (..., slice(scale * margin, -scale * margin), slice(scale * margin, -scale * margin))
        error = F.pixel_unshuffle(luminance(high)[inside] - luminance(plain(low)), scale)  # (B, s², H, W)
        weight = (error.square().mean((1, 2, 3)) + SLIGHTEST).rsqrt() if root else error.new_ones(len(error))
        rim = margin - taps // 2
        pixels = F.unfold(luminance(low)[..., rim:-rim, rim:-rim], taps)  # (B, k², H·W)
        pixels -= pixels[:, taps**2 // 2, None].clone()  # the taps of a phase must still sum to 1
        detail = F.unfold(body(low) - flat, 3) * white  # the same is added to all three colours
        read = torch.cat([detail, pixels], 1)  # (B, K, H·W)
        weighed = read * weight[:, None, None]
        grams += torch.einsum("bil,bjl->ij", weighed, read).double()
        moments += torch.einsum("bil,bol->io", weighed, error.flatten(2)).double()
        squares += float((weight * error.square().sum((1, 2, 3))).sum())
    if not isinstance(grams, Tensor):
        raise ValueError("refit needs at least one batch, got none")
    change = torch.linalg.solve(grams + torch.diag(RIDGE * grams.diagonal() + 1e-12 * grams.trace()), moments)
    tail, base = change.T.float().split([9 * model.tail.in_channels, taps**2], 1)
    base = base.unflatten(1, (taps, taps)).clone()
    base[:, taps // 2, taps // 2] -= base.sum((1, 2))
    before = _last(plain)
    model.change_last(tail.reshape(model.tail.weight.shape), base)
    change = (_last(model.plain(back_projection=False)) - before).double()  # the change after tying of weights
    return float((change * (2 * moments - grams @ change)).sum()) / squares


def _last(plain: nn.Module) -> Tensor:
    """The last layer and the upsampler of one colour, as a matrix, (K, s²)."""
    tail = cast("nn.Conv2d", cast("nn.Sequential", plain.layers)[-1]).weight
    base = cast("nn.Conv2d", plain.base).weight
    return torch.cat([tail.flatten(1), base[: len(tail), 0].flatten(1)], 1).T
