"""PCSR: every pixel of the larger picture is made by a large or a small network, as a classifier decides.

*Source*: J. Jeong et al., "Accelerating Image Super-Resolution Networks with Pixel-Level Classification", ECCV 2024
(arXiv:2407.21448), section 3. A backbone turns the picture into features z, (B, C, H, W). Three perceptrons look at the
feature nearest to a pixel of the larger picture, the pixel's place r in [−1, 1]² within it and the pixel's size,
u = [z, r, 2/s, 2/s], (B, s²·H·W, C + 4):

    p = softmax(classifier(u)),   out = bilinear(x) + (heavy(u) where p_heavy ≥ T, light(u) elsewhere)

The paper's knob k divides the probabilities by the k-th power of what their upsamplers cost, which is a threshold
T = c_heavyᵏ / (c_heavyᵏ + c_lightᵏ). `threshold_at` gives it; `fit_budget_` finds one for a share of the multiply-adds;
"adaptive" separates the probabilities of the pictures at hand into two clusters; None is heavy everywhere. Training has
two phases: backbone and heavy upsampler (`heavy`); then, both frozen, the others by `loss`: the error of the upsamplers
mixed by p, and an average loss, which keeps the classes of equal size.

*Differs from the paper*: the scale is whole, so places repeat, and first layers, linear in z, are applied to it before
it is repeated for s² pixels. The light upsampler, which costs little, runs everywhere: gathering for it takes longer.
Clusters start at the smallest and the largest probability.

*Provenance*: written from the paper; layer sizes, weights of the losses and the input of the perceptrons were looked up
in the authors' code.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.budget import affordable, threshold_for
from foveal.nn.gather import put, take
from foveal.record import Method, Paper
from foveal.runtime.route import Route, recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PCSR", "loss", "two_means"]

CHUNK = 2**15  # pixels that a perceptron works on at a time, whose activations stay in cache


def places(scale: int) -> Tensor:
    """Places of the pixels within the one that they are made from, and their sizes.

    Args:
        scale: s.

    Returns:
        Row, column, height and width, (s², 4); places in [−1, 1], sizes 2/s.
    """
    steps = (torch.arange(scale) + 0.5) * 2 / scale - 1
    at = torch.cartesian_prod(steps, steps)
    return torch.cat([at, torch.full((scale**2, 2), 2 / scale)], 1)


def two_means(score: Tensor, rounds: int = 20) -> float:
    """Threshold between two clusters of numbers, by Lloyd's algorithm.

    Args:
        score: numbers, of any shape.
        rounds: largest number of rounds.

    Returns:
        The middle of the two means; the smallest number if all are alike.
    """
    low, high = score.min(), score.max()
    for _ in range(rounds):
        upper = score >= (low + high) / 2
        if upper.all():
            break
        low, high = score[~upper].mean(), score[upper].mean()
    return float((low + high) / 2)


class _Perceptron(nn.Module):
    """Rows of features and places to rows of outputs.

    Args:
        dim: C.
        hidden: widths of the hidden layers.
        out_channels: width of the output.
    """

    def __init__(self, dim: int, hidden: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.dim = dim
        first, *widths = (*hidden, out_channels)
        self.first = nn.Linear(dim + 4, first)
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((first, *widths)))

    @property
    def cost(self) -> tuple[int, int]:
        """Multiply-adds of the first layer's features, for each input pixel, and of the rest, for each output pixel."""
        return self.dim * self.first.out_features, sum(p.numel() for p in self.rest.parameters() if p.ndim == 2)

    def forward(self, features: Tensor, at: Tensor, index: Tensor | None = None) -> Tensor:
        """Outputs of all pixels, or of some.

        Args:
            features: features, (N, C).
            at: places and sizes, (s², 4).
            index: numbers of pixels, row of `features` times s² plus row of `at`, (K,); None for all.

        Returns:
            Outputs, (N·s², C') or (K, C').
        """
        near = F.linear(features, self.first.weight[:, : self.dim])
        offset = F.linear(at, self.first.weight[:, self.dim :], self.first.bias)
        if index is None:
            parts = near.split(max(1, CHUNK // len(at)))
            starts = ((part[:, None] + offset).flatten(0, 1) for part in parts)
        else:
            parts = index.split(CHUNK)
            starts = (
                take(near[None], (part // len(at))[None])[0] + take(offset[None], (part % len(at))[None])[0]
                for part in parts
            )
        return torch.cat([self._behind(start) for start in starts])

    def _behind(self, x: Tensor) -> Tensor:
        for layer in self.rest:
            x = layer(F.relu(x))
        return x


class _Backbone(nn.Module):
    """Features of a picture, (B, in_channels, H, W) to (B, C, H, W)."""

    def __init__(self, in_channels: int, dim: int, depth: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.head(x - 0.5), 0.1)
        for block in self.blocks:
            x = x + block(x)
        return x

    @property
    def cost(self) -> int:
        """Multiply-adds of an input pixel."""
        return sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Conv2d))


class PCSR(nn.Module):
    """Super-resolution network, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    `threshold` may be set at any time: pixels whose probability of the heavy upsampler is below it get the light one;
    "adaptive" finds it for the pictures at hand; None is heavy everywhere. In training, `forward` mixes the two.

    Args:
        scale: s, at least 1.
        dim: width of the backbone.
        depth: number of the backbone's residual blocks.
        heavy: widths of the hidden layers of the heavy upsampler.
        light: widths of the hidden layers of the light upsampler.
        classifier: widths of the hidden layers of the classifier.
        refine: whether light pixels beside heavy ones become the mean of their 3×3 neighbourhood, against seams.
        in_channels: C.

    Raises:
        ValueError: if the scale is below 1.
    """

    threshold: float | Literal["adaptive"] | None = None

    def __init__(
        self,
        scale: int = 4,
        *,
        dim: int = 58,
        depth: int = 16,
        heavy: tuple[int, ...] = (170, 170, 170, 170),
        light: tuple[int, ...] = (40, 40, 40),
        classifier: tuple[int, ...] = (20, 20),
        refine: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        self.scale, self.refine = scale, refine
        self.backbone = _Backbone(in_channels, dim, depth)
        self.heavy_upsampler = _Perceptron(dim, heavy, in_channels)
        self.light_upsampler = _Perceptron(dim, light, in_channels)
        self.classifier = _Perceptron(dim, classifier, 2)
        self.places: Tensor
        self.register_buffer("places", places(scale), persistent=False)

    def _features(self, x: Tensor) -> Tensor:
        return self.backbone(x).permute(0, 2, 3, 1).flatten(0, 2)

    def _picture(self, rows: Tensor, x: Tensor) -> Tensor:
        """Rows of pixels, (B·H·W·s², C), onto the bilinear picture."""
        phases = rows.view(x.shape[0], *x.shape[2:], self.scale**2, x.shape[1]).permute(0, 4, 3, 1, 2)
        base = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return base + F.pixel_shuffle(phases.flatten(1, 2), self.scale)

    def heavy(self, x: Tensor) -> Tensor:
        """The picture by the heavy upsampler alone, which the first phase trains.

        Args:
            x: low-resolution pictures, (B, C, H, W).

        Returns:
            Pictures, (B, C, s·H, s·W).
        """
        return self._picture(self.heavy_upsampler(self._features(x), self.places), x)

    def scores(self, features: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Probability of the heavy upsampler.

        Args:
            features: features of the backbone, (B·H·W, C).
            shape: B, H and W.

        Returns:
            Probabilities, (B, H, W, s²).
        """
        return self.classifier(features, self.places).softmax(1)[:, 1].view(*shape, self.scale**2)

    def mixed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The upsamplers mixed by their probabilities, which the second phase trains.

        Args:
            x: low-resolution pictures, (B, C, H, W).

        Returns:
            Pictures, (B, C, s·H, s·W); probabilities of the heavy upsampler, (B·s²·H·W,).
        """
        features = self._features(x)
        score = self.scores(features, (x.shape[0], *x.shape[2:])).flatten()
        light, heavy = (up(features, self.places) for up in (self.light_upsampler, self.heavy_upsampler))
        return self._picture(torch.lerp(light, heavy, score[:, None]), x), score

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.mixed(x)[0]
        shape = (x.shape[0], *x.shape[2:])
        if self.threshold is None:
            self._record(None, shape)
            return self.heavy(x)
        features = self._features(x)
        score = self.scores(features, shape)
        chosen = score >= (two_means(score) if self.threshold == "adaptive" else self.threshold)
        rows = self.light_upsampler(features, self.places)
        if len(index := chosen.flatten().nonzero()[:, 0]):
            heavy = self.heavy_upsampler(features, self.places, index)
            rows = put(rows[None], index[None], heavy[None])[0]
        self._record(chosen, shape)
        out = self._picture(rows, x)
        return self._refined(out, chosen) if self.refine else out

    def _refined(self, out: Tensor, chosen: Tensor) -> Tensor:
        heavy = F.pixel_shuffle(chosen.permute(0, 3, 1, 2).to(out), self.scale)
        beside = (F.max_pool2d(heavy, 3, 1, 1) > heavy).expand_as(out)
        return torch.where(beside, F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, 1), out)

    def costs(self) -> tuple[float, float, float, float]:
        """Multiply-adds for each input pixel.

        Returns:
            Of the backbone and all first layers, and of the classifier's, the light and the heavy upsampler's rest.
        """
        parts = [p.cost for p in (self.classifier, self.light_upsampler, self.heavy_upsampler)]
        once = self.backbone.cost + sum(first for first, _ in parts)
        classifier, light, heavy = (rest * self.scale**2 for _, rest in parts)
        return once, classifier, light, heavy

    def _record(self, chosen: Tensor | None, shape: tuple[int, int, int]) -> None:
        if (routes := recorded()) is None:
            return
        once, classifier, light, heavy = self.costs()
        of = shape[1] * shape[2] * self.scale**2
        share = torch.ones(shape) if chosen is None else chosen.float().mean(3).cpu()
        least = 0.0 if chosen is None else classifier + light
        whole = self.backbone.cost + self.heavy_upsampler.cost[0] + heavy
        once = once if chosen is not None else whole - heavy
        work = ((once + least + heavy * share) / whole).clamp(max=1)
        routes.append(Route(work.numpy(), (float(share.mean()) * of,), (of,), unit="pixels"))

    def threshold_at(self, k: float) -> float:
        """Threshold of the paper's knob.

        Args:
            k: knob; 0 takes the likelier upsampler, more saves more.

        Returns:
            Probability of the heavy upsampler.
        """
        once, _, light, heavy = self.costs()
        return float(torch.tensor(k * math.log((once + heavy) / (once + light)), dtype=torch.float64).sigmoid())

    @torch.no_grad()
    def fit_budget_(self, budget: float, pictures: Sequence[Tensor] = ()) -> None:
        """Set the threshold at which some pictures take a share of the multiply-adds of the heavy network.

        Args:
            budget: share, in (0, 1]; 1 is the heavy upsampler everywhere.
            pictures: low-resolution pictures to find it on, (B, C, H, W) each; none are needed for 1.

        Raises:
            ValueError: a budget outside (0, 1], one that the light upsampler alone exceeds, or no pictures.
        """
        once, classifier, light, heavy = self.costs()
        whole = self.backbone.cost + self.heavy_upsampler.cost[0] + heavy
        share = affordable(budget, least=(once + classifier + light) / whole, each=heavy / whole)
        wanted = pictures if share < 1 else ()
        scores = [self.scores(self._features(x), (x.shape[0], *x.shape[2:])) for x in wanted]
        self.threshold = threshold_for(share, scores)


def loss(network: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Loss of the second phase.

    Args:
        network: `PCSR` in training.
        batch: low- and high-resolution patches, (B, C, h, w) and (B, C, s·h, s·w).

    Returns:
        1000 times the mean error of the mixed picture, plus 3 times the average loss |2 · mean(p_heavy) − 1|.
    """
    out, score = network.mixed(batch[0])
    return 1000 * F.l1_loss(out, batch[1]) + 3 * (2 * score.mean() - 1).abs()


METHOD = Method(
    id=40,
    name="PCSR",
    kind="model",
    summary="A classifier gives every pixel of the larger picture to a heavy or a light upsampler; one threshold.",
    paper=Paper(
        "Accelerating Image Super-Resolution Networks with Pixel-Level Classification",
        "J. Jeong et al.",
        2024,
        "arXiv:2407.21448",
    ),
    models={"pcsr": PCSR},
    cases={"pcsr": {"scale": 2, "dim": 4, "depth": 1, "heavy": (8, 8), "light": (4,), "classifier": (4,)}},
)
