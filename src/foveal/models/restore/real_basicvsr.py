"""RealBasicVSR: damaged films are cleaned frame by frame, as often as it helps, before a recurrence enlarges them.

*Source*: K. C. K. Chan, S. Zhou, X. Xu, C. C. Loy, "Investigating Tradeoffs in Real-World Video Super-Resolution",
CVPR 2022 (arXiv:2111.12704): section 4.1 (cleaning and its loss), 4.2 (dynamic refinement), 5.1 (stochastic
degradation). What is wrong with a frame grows as a recurrence carries it on, so it is taken away first. For damaged
frames x_t, (B, 3, H, W), true ones y_t, (B, 3, sH, sW), and d, which shrinks by s:

    x_t ← x_t + C(x_t), once in training; at test time until mean |C(x)| < θ, at most three times
    b_t = R_b([x_t, warp(b_{t+1}, flow_{t→t+1})]),   f_t = R_f([x_t, b_t, warp(f_{t-1}, flow_{t→t-1})])     BasicVSR
    ŷ_t = bilinear(x_t) + U(f_t)
    loss = Σ_t ρ(ŷ_t - y_t) + ρ(x_t - d(y_t)),   ρ(e) = √(e² + ε²)

`stochastic` is the degradation scheme: of a film of L frames only every J-th is read, and each is used J times with
damage of its own, so that a batch needs L / J frames from the disk; damage that varies along the film stands in for
motion there.

*Differs from the paper*: motion is found without learning (`foveal.nn.propagation`) in place of SPyNet; one pixel
shuffle enlarges, by any whole factor; the perceptual and adversarial losses of the second training are left
out, since they trade accuracy for looks; the skip connection enlarges the cleaned frame.

*Provenance*: written from the paper; depths, width, the number of cleanings and BasicVSR's order of directions from the
authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.propagation import ResidualCell, film_flow, he_, propagated
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RealBasicVSR", "charbonnier", "cleaned", "cleaning_loss", "stochastic"]


def cleaned(film: Tensor, residue: Callable[[Tensor], Tensor], *, threshold: float, most: int = 3) -> Tensor:
    """Dynamic refinement: clean until little changes.

    Args:
        film: (N, 3, H, W) in [0, 1].
        residue: C, (N, 3, H, W) to the same.
        threshold: θ, mean absolute change, in [0, 1], under which it ends; what falls under it is still added.
        most: how often at most.

    Returns:
        (N, 3, H, W).
    """
    for _ in range(most):
        change = residue(film)
        film = film + change
        if float(change.detach().abs().mean()) < threshold:
            break
    return film


def charbonnier(out: Tensor, wanted: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """ρ, the absolute error with a round tip.

    Args:
        out: of any shape.
        wanted: the same shape.
        epsilon: ε.

    Returns:
        Mean, at least ε.
    """
    return ((out - wanted).square() + epsilon**2).sqrt().mean()


def cleaning_loss(large: Tensor, clean: Tensor, wanted: Tensor) -> Tensor:
    """Loss of what was enlarged and of what was cleaned.

    Args:
        large: ŷ, (B, T, 3, s·H, s·W).
        clean: cleaned frames, (B, T, 3, H, W).
        wanted: y, (B, T, 3, s·H, s·W).

    Returns:
        Scalar.
    """
    height, width = clean.shape[-2:]
    shrunk = F.adaptive_avg_pool2d(wanted.flatten(0, 1), (height, width))
    return charbonnier(large, wanted) + charbonnier(clean.flatten(0, 1), shrunk)


def stochastic(read: Tensor, repeats: int) -> Tensor:
    """The degradation scheme: each frame that was read stands for J in a row, to be damaged one by one.

    Args:
        read: frames, (B, L / J, 3, H, W).
        repeats: J.

    Returns:
        (B, L, 3, H, W).

    Raises:
        ValueError: no repeats.
    """
    if repeats < 1:
        raise ValueError(f"each frame is used at least once, got repeats {repeats}; take 1 for no repetition")
    return read.repeat_interleave(repeats, 1)


class RealBasicVSR(nn.Module):
    """Damaged film, (B, T, 3, H, W), to (B, T, 3, s·H, s·W); a picture, (B, 3, H, W), is a film of one frame.

    RGB in [0, 1].

    Args:
        scale: s.
        dim: channels of the features.
        depth: residual blocks of each direction.
        cleaning: residual blocks of C; 0 for BasicVSR, which cleans nothing.
        threshold: θ.
        reach: pixels that are searched for motion, in every direction.

    Raises:
        ValueError: a scale below 1.
    """

    def __init__(
        self,
        scale: int = 4,
        *,
        dim: int = 64,
        depth: int = 20,
        cleaning: int = 20,
        threshold: float = 5 / 255,
        reach: int = 3,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        self.scale, self.dim, self.threshold, self.reach = scale, dim, threshold, reach
        self.clean = (
            nn.Sequential(ResidualCell(3, dim, cleaning), _nothing(nn.Conv2d(dim, 3, 3, padding=1)))
            if cleaning
            else None
        )
        self.backward_cell = ResidualCell(3 + dim, dim, depth)
        self.forward_cell = ResidualCell(3 + 2 * dim, dim, depth)
        self.tail = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1), nn.LeakyReLU(0.1),
            nn.Conv2d(dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale),
        )  # fmt: skip
        he_(self.tail)
        _nothing(self.tail[2])

    def cleaned(self, film: Tensor) -> Tensor:
        """Frames without damage, once in training, else as often as it helps.

        Args:
            film: (B, T, 3, H, W).

        Returns:
            The same shape.
        """
        if self.clean is None:
            return film
        frames = cleaned(film.flatten(0, 1), self.clean, threshold=self.threshold, most=1 if self.training else 3)
        return frames.unflatten(0, film.shape[:2])

    def enlarged(self, film: Tensor) -> Tensor:
        """BasicVSR.

        Args:
            film: cleaned frames, (B, T, 3, H, W).

        Returns:
            (B, T, 3, s·H, s·W).
        """
        ahead, behind = (film_flow(film, ahead=step, reach=self.reach) for step in (1, -1))
        back = propagated(film.flip(1), ahead.flip(1), self.backward_cell, self.dim).flip(1)
        states = propagated(torch.cat([film, back], 2), behind, self.forward_cell, self.dim)
        base = F.interpolate(film.flatten(0, 1), scale_factor=self.scale, mode="bilinear", align_corners=False)
        return (base + self.tail(states.flatten(0, 1))).unflatten(0, film.shape[:2])

    def forward(self, film: Tensor) -> Tensor:
        if film.ndim == 4:
            return self.forward(film[:, None])[:, 0]
        return self.enlarged(self.cleaned(film))


def _nothing(layer: nn.Module) -> nn.Module:
    """The layer, at 0: what it adds to a picture starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


METHOD = Method(
    id=259,
    name="RealBasicVSR",
    kind="model",
    summary="Damaged films are cleaned frame by frame before a recurrence in both directions enlarges them.",
    paper=Paper(
        "Investigating Tradeoffs in Real-World Video Super-Resolution", "K. C. K. Chan et al.", 2022, "arXiv:2111.12704"
    ),
    models={"real_basicvsr": RealBasicVSR},
    cases={"real_basicvsr": {"scale": 2, "dim": 4, "depth": 1, "cleaning": 1}},
)
