"""Re-IQA: an encoder learns what quality is, without scores, by telling damages of one photograph apart.

*Source*: A. Saha et al., "Re-IQA: Unsupervised Learning for Image Quality Assessment in the Wild", CVPR 2023
(arXiv:2304.00451), section 3. A photograph and V - 1 damaged versions of it, (V, 3, H, W), are cut at the same two
places, P×P pixels each, which share a tenth to three tenths of their area. Half of the versions exchange their crops:

    (q_i, k_i) = (A_i, B_i) for i ≥ V/2, (B_i, A_i) for i < V/2
    loss = -mean_i log( exp(q_i·k_i / τ) / Σ_j exp(q_i·n_j / τ) ),   n: all keys of the batch and a queue of older ones
    q = unit(head(E(crop))),  k = unit(head'(E'(crop))),  E' ← m E' + (1 - m) E       a copy that follows slowly

Alike are two places of one picture under one damage; unlike are the same content under other damages (half of them at
the very same place as the query), and other photographs. Features of a picture are E(x) and E(x at half size) side by
side, (2F); a ridge regression from them gives scores.

*Differs from the paper*: of which the abstract and the authors' code could be read: the batch's own keys are negatives
too, without which other damages of the same content would hardly be met, while the code takes negatives from its queue
alone; damages are thirteen in place of 25, with five strengths each (`LADDERS`; noise, specks and JPEG have the
code's); half sizes are antialiased; crops may lie to any side of one another; the encoder is any module (in the paper
ResNet-50), here `Encoder`, a small one.

*Provenance*: written from the description in the catalogue; overlaps, exchange, temperature, momentum and strengths
from the authors' code (avinabsaha/ReIQA), whose logits give the loss of `contrast` to 4e-16 in float64 where all
negatives come from the queue.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Objective
from foveal.record import Method, Paper
from foveal.train.restore.bank.blur import Blur, MotionBlur
from foveal.train.restore.bank.exposure import Exposure
from foveal.train.restore.bank.haze import Haze
from foveal.train.restore.bank.jpeg import Jpeg
from foveal.train.restore.bank.noise import Noise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "LADDERS", "Encoder", "ReIQA", "Ridge", "contrast", "half_swapped", "overlapping", "two_scales",
]  # fmt: skip

LEAST, MOST = 0.1, 0.3  # share of their area that two crops have in common


def _grey(x: Tensor) -> Tensor:
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def _saturated(x: Tensor, _: torch.Generator, *, factor: float) -> Tensor:
    return torch.lerp(_grey(x), x, factor).clamp(0, 1)


def _contrasted(x: Tensor, _: torch.Generator, *, factor: float) -> Tensor:
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, factor).clamp(0, 1)


def _reduced(x: Tensor, _: torch.Generator, *, factor: float, mode: str) -> Tensor:
    size = (x.shape[-2], x.shape[-1])
    low = F.interpolate(x, [max(1, round(side / factor)) for side in size], mode="bilinear", antialias=True)
    return F.interpolate(low, size, mode=mode).clamp(0, 1)


def _specked(x: Tensor, generator: torch.Generator, *, share: float) -> Tensor:
    drawn = torch.rand(len(x), 1, *x.shape[-2:], generator=generator).to(x)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn > 1 - share / 2, 1.0, x))


def _sharpened(x: Tensor, generator: torch.Generator, *, amount: float) -> Tensor:
    return (x + amount * (x - Blur(1.0)(x, generator))).clamp(0, 1)


# Damage → its five strengths, weakest first; each is called with pictures in [0, 1] and a generator.
LADDERS: dict[str, tuple[Callable[[Tensor, torch.Generator], Tensor], ...]] = {
    "noise": tuple(Noise(255 * variance**0.5) for variance in (0.001, 0.002, 0.003, 0.005, 0.01)),
    "specks": tuple(partial(_specked, share=share) for share in (0.001, 0.005, 0.01, 0.02, 0.03)),
    "blur": tuple(Blur(sigma) for sigma in (0.4, 0.7, 1.0, 2.0, 4.0)),
    "motion": tuple(MotionBlur(length, 0.0) for length in (3, 5, 8, 12, 16)),
    "jpeg": tuple(Jpeg(quality) for quality in (70, 43, 36, 24, 7)),
    "small": tuple(partial(_reduced, factor=factor, mode="bilinear") for factor in (1.5, 2, 3, 4, 6)),
    "pixels": tuple(partial(_reduced, factor=factor, mode="nearest") for factor in (2, 3, 4, 6, 8)),
    "bright": tuple(Exposure(stops) for stops in (0.3, 0.6, 1.0, 1.4, 2.0)),
    "dark": tuple(Exposure(-stops) for stops in (0.5, 1.0, 1.6, 2.3, 3.2)),
    "haze": tuple(Haze(density) for density in (0.3, 0.6, 1.0, 1.5, 2.2)),
    "pale": tuple(partial(_saturated, factor=factor) for factor in (0.7, 0.5, 0.3, 0.15, 0.0)),
    "contrast": tuple(partial(_contrasted, factor=factor) for factor in (0.85, 0.7, 0.55, 0.4, 0.25)),
    "sharp": tuple(partial(_sharpened, amount=amount) for amount in (0.5, 1, 2, 3, 5)),
}


def overlapping(versions: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut all versions of a picture at the same two places that overlap a little.

    Args:
        versions: (V, 3, H, W), H and W at least 2 P.
        side: P, in pixels.
        generator: source of the places.

    Returns:
        A and B, (V, 3, P, P) each.

    Raises:
        ValueError: pictures too small for two crops.
    """
    height, width = versions.shape[-2:]
    if min(height, width) < 2 * side:
        raise ValueError(f"two crops of {side} pixels take sides of at least {2 * side}, got {height}×{width}")
    share, rows, *chance = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    share = LEAST + (MOST - LEAST) * share
    rows = share + (1 - share) * rows  # of the side; the columns then share what gives the area
    moves = round((1 - rows) * side), round((1 - share / rows) * side)
    corners = []
    for whole, move, at, turned in zip((height, width), moves, chance[:2], chance[2:], strict=True):
        first = int(at * (whole - side - move + 1))
        corners.append((first, first + move) if turned < 0.5 else (first + move, first))
    (top, below), (left, right) = corners
    return versions[..., top : top + side, left : left + side], versions[
        ..., below : below + side, right : right + side
    ]


def half_swapped(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange the crops of the first half of the versions.

    Args:
        a: A, (V, ...).
        b: B, the same shape.

    Returns:
        Queries and keys, the same shape each; of an odd V the middle one is exchanged.
    """
    half = (len(a) + 1) // 2
    return torch.cat([b[:half], a[half:]]), torch.cat([a[:half], b[half:]])


def contrast(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float = 0.2) -> Tensor:
    """The loss: each query finds its key among all of the batch and the queue.

    Args:
        query: q, of any length, (N, D).
        key: k, (N, D); they get no gradient.
        queue: older keys, (K, D), K may be 0; they get no gradient.
        temperature: τ.

    Returns:
        Scalar.
    """
    known = F.normalize(torch.cat([key, queue]).detach(), dim=1)
    logits = F.normalize(query, dim=1) @ known.T / temperature
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


def two_scales(encoder: nn.Module, x: Tensor) -> Tensor:
    """Features of pictures at their size and at half of it.

    Args:
        encoder: pictures to (B, F).
        x: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 2F).
    """
    half = F.interpolate(x, [(side + 1) // 2 for side in x.shape[-2:]], mode="bicubic", antialias=True)
    return torch.cat([encoder(x), encoder(half)], 1)


class Ridge:
    """Scores by ridge regression from standardised features.

    Args:
        features: (n, F).
        scores: (n,).
        penalty: of the squared weights, over n.
    """

    def __init__(self, features: Tensor, scores: Tensor, *, penalty: float = 0.01) -> None:
        rows, wanted = features.double(), scores.double()
        self.mean, self.spread = rows.mean(0), rows.std(0).clamp_min(1e-9)
        rows = (rows - self.mean) / self.spread
        matrix = rows.T @ rows / len(rows) + penalty * torch.eye(rows.shape[1], dtype=rows.dtype)
        self.base = wanted.mean()
        self.weights = torch.linalg.solve(matrix, rows.T @ (wanted - self.base) / len(rows))

    def __call__(self, features: Tensor) -> Tensor:
        """Predicted scores.

        Args:
            features: (n, F).

        Returns:
            (n,), float64.
        """
        return (features.double() - self.mean) / self.spread @ self.weights + self.base


class Encoder(nn.Module):
    """A small E: pictures (B, 3, H, W) in [0, 1] to means of features over the picture, (B, F).

    Args:
        widths: channels of its layers, each at half the size of the one before; F is the last.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers, self.features = nn.Sequential(*layers), widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers((x - 0.5) * 4).mean((2, 3))
        return out


class ReIQA(nn.Module):
    """Trains an encoder; as a module, it gives the loss of queries and keys, and follows and remembers while training.

    Args:
        encoder: E, pictures to (B, F), with F as its attribute `features`.
        dim: D, of what is compared.
        queue: K, older keys that are kept; 0 for none.
        momentum: m.
        temperature: τ.

    Raises:
        ValueError: m or K out of range.
    """

    queue: Tensor
    place: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        dim: int = 128,
        queue: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1 or queue < 0:
            raise ValueError(f"momentum must be in [0, 1) and queue at least 0, got {momentum} and {queue}")
        width = int(encoder.features)  # type: ignore[arg-type]
        self.encoder, self.momentum, self.temperature = encoder, momentum, temperature
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        self.slow = copy.deepcopy(nn.Sequential(self.encoder, self.head)).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def _follow(self) -> None:
        fast = [*self.encoder.parameters(), *self.head.parameters()]
        for slow, now in zip(self.slow.parameters(), fast, strict=True):
            slow.lerp_(now, 1 - self.momentum)

    @torch.no_grad()
    def _remember(self, key: Tensor) -> None:
        if not len(self.queue):
            return
        newest = F.normalize(key[-len(self.queue) :], dim=1)
        at = (self.place + torch.arange(len(newest), device=key.device)) % len(self.queue)
        self.queue[at] = newest.to(self.queue)
        self.place.copy_((self.place + len(newest)) % len(self.queue))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            query: pictures, (N, 3, P, P) in [0, 1].
            key: those that are like them, (N, 3, P, P).

        Returns:
            Scalar.
        """
        if self.training:
            self._follow()
        with torch.no_grad():
            known = self.slow(key)
        loss = contrast(self.head(self.encoder(query)), known, self.queue.clone(), temperature=self.temperature)
        if self.training:
            self._remember(known)
        return loss


def _inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": (4, 3), "key": (4, 3), "queue": (5, 3)}
    return {name: torch.randn(shape, generator=generator) / math.sqrt(3) for name, shape in shapes.items()}


METHOD = Method(
    id=197,
    name="Re-IQA",
    kind="objective",
    summary="Learns features of picture quality without scores, by telling damages of one photograph apart.",
    paper=Paper(
        "Re-IQA: Unsupervised Learning for Image Quality Assessment in the Wild",
        "A. Saha et al.",
        2023,
        "arXiv:2304.00451",
    ),
    cases={"contrast": Objective(contrast, _inputs, learns=("query",))},
)
