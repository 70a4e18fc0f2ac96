"""CTCL-Seg: a convolutional network and a transformer learn to segment together, each from what the other knows better.

*Source*: J. Zhu et al., "A Good Student is Cooperative and Reliable: CNN-Transformer Collaborative Learning for
Semantic Segmentation", ICCV 2023 (arXiv:2307.12574): heterogeneous feature distillation (HFD), bidirectional selective
distillation (BSD) by regions and by pixels. For each student a and the other one b:

    HFD:     D(S_b(A f_a), sg g_b)                 f low features, g = S(f) the next stage's
    regions: Σ_r [ℓ_b(r) < ℓ_a(r)] D_r(P h_a, sg h_b)       ℓ(r) mean cross-entropy, h last features
    pixels:  Σ_i [b is right at i, ℓ_b(i) < ℓ_a(i)] KL(sg p_b(i) ‖ p_a(i))
    L = Σ_a CE_a + α HFD_a + β regions_a + γ pixels_a

A and P are 1×1 convolutions from a's channels to b's, D is the squared distance of features of unit length, a mean over
places, sg stops gradients. In HFD the other student's stage is held fixed, running statistics included: what it makes
of a's features is to be what it makes of its own. Pictures (B, 3, H, W), labels (B, H, W), features (B, C, h, w),
logits (B, classes, h, w).

*Differs from the paper*: only its abstract could be read; D, the 1×1 convolutions, the grid of
regions and the weights α = 0.1, β = 0.1, γ = 1 are choices made here.
*Provenance*: written from the paper's abstract and the mechanism it describes; there is no official code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from foveal.cases import Objective
from foveal.record import Method, Paper
from foveal.shrink.distill.taps import Taps

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CollaborativeLearning",
    "directions",
    "held_fixed",
    "pixel_losses",
    "pixel_transfer",
    "region_losses",
    "region_transfer",
]


def pixel_losses(logits: Tensor, labels: Tensor, *, ignored: int = 255) -> Tensor:
    """Cross-entropy of each pixel.

    Args:
        logits: logits of the labels' size, (B, classes, H, W).
        labels: labels, (B, H, W).
        ignored: label of pixels that do not count.

    Returns:
        Losses, (B, H, W), 0 where the label is ignored.
    """
    return F.cross_entropy(logits, labels, ignore_index=ignored, reduction="none")


def region_losses(losses: Tensor, counted: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """Mean loss of each region.

    Args:
        losses: losses of pixels, (B, H, W).
        counted: which pixels count, (B, H, W), boolean.
        grid: rows and columns of regions.

    Returns:
        Means over the pixels that count, (B, *grid); NaN where there is none.
    """
    weights = counted.to(losses.dtype)
    return F.adaptive_avg_pool2d(losses * weights, grid) / F.adaptive_avg_pool2d(weights, grid)


def directions(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Which student gives, by their losses; neither where they are equal or NaN.

    Args:
        first: losses of the first student, of any shape.
        second: losses of the second one, of the same shape.

    Returns:
        Where the first student gives to the second, and where the second gives to the first, boolean.
    """
    return first < second, second < first


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared distance of features of unit length, (B, h, w)."""
    return (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1)


def region_transfer(receiver: Tensor, giver: Tensor, given: Tensor) -> Tensor:
    """Distance of features in the regions in which the other student gives.

    Args:
        receiver: projected features of the student that learns, (B, C, h, w).
        giver: features of the other one, (B, C, h, w); no gradient reaches them.
        given: where it gives, (B, rows, columns), boolean.

    Returns:
        Scalar, the mean over all places, with 0 where nothing is given.
    """
    mask = F.interpolate(given[:, None].to(receiver.dtype), receiver.shape[2:], mode="nearest-exact")[:, 0]
    return (mask * _distance(receiver, giver.detach())).mean()


def pixel_transfer(receiver: Tensor, giver: Tensor, given: Tensor) -> Tensor:
    """Divergence of predictions at the pixels at which the other student gives.

    Args:
        receiver: logits of the student that learns, (B, classes, H, W).
        giver: logits of the other one, of the same shape; no gradient reaches them.
        given: where it gives, (B, H, W), boolean.

    Returns:
        Scalar, the mean over all pixels, with 0 where nothing is given.
    """
    log_p, log_q = giver.detach().log_softmax(1), receiver.log_softmax(1)
    return (given * (log_p.exp() * (log_p - log_q)).sum(1)).mean()


def held_fixed(stage: nn.Module, x: Tensor) -> Tensor:
    """Output of a stage without gradients for its parameters and without a trace in its running statistics.

    Args:
        stage: stage.
        x: its input.

    Returns:
        Output, with gradients for x.
    """
    state = {name: p.detach() for name, p in stage.named_parameters()}
    state |= {name: b.clone() for name, b in stage.named_buffers()}
    return functional_call(stage, state, (x,))


class CollaborativeLearning(nn.Module):
    """Two students in training: batches in, loss out. Its parameters are theirs and those of the 1×1 convolutions.

    Args:
        students: two networks, (B, 3, H, W) to logits (B, classes, h, w).
        low_dims: channels of each student's low features.
        dims: channels of each student's last features.
        low: name of the module that makes low features.
        stage: name of the module that takes low features and makes the next ones, (B, C, h, w) to (B, C', h', w').
        last: name of the module that makes the last features before the classifier.
        grid: rows and columns of regions.
        weights: α, β and γ.
        ignored: label of pixels that do not count.

    Raises:
        ValueError: another number of students than two, or a module that a student does not have.
    """

    def __init__(
        self,
        students: Sequence[nn.Module],
        *,
        low_dims: tuple[int, int],
        dims: tuple[int, int],
        low: str = "stages.0",
        stage: str = "stages.1",
        last: str = "decoder",
        grid: tuple[int, int] = (6, 8),
        weights: tuple[float, float, float] = (0.1, 0.1, 1.0),
        ignored: int = 255,
    ) -> None:
        super().__init__()
        if len(students) != 2:
            raise ValueError(f"two students learn from each other, got {len(students)}; give two networks")
        self.students = nn.ModuleList(students)
        self.names, self.grid, self.weights, self.ignored = (low, stage, last), grid, weights, ignored
        self._taps = [Taps(student, self.names) for student in students]
        self.enter = nn.ModuleList([nn.Conv2d(low_dims[a], low_dims[1 - a], 1) for a in range(2)])
        self.project = nn.ModuleList([nn.Conv2d(dims[a], dims[1 - a], 1) for a in range(2)])

    def parts(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The four sums over both students.

        Args:
            inputs: pictures, (B, 3, H, W).
            labels: labels, (B, H, W).

        Returns:
            `supervised`, `features`, `regions` and `pixels`, scalars.
        """
        logits, features = [], []
        for student, taps in zip(self.students, self._taps, strict=True):
            with taps:
                logits.append(F.interpolate(student(inputs), labels.shape[1:], mode="bilinear"))
            features.append(taps.values())
        counted = labels != self.ignored
        losses = [pixel_losses(x, labels, ignored=self.ignored) for x in logits]
        right = [x.argmax(1) == labels for x in logits]
        by_region = [region_losses(x.detach(), counted, grid=self.grid) for x in losses]
        gives_region, gives_pixel = directions(*by_region), directions(losses[0].detach(), losses[1].detach())
        found = {
            "supervised": sum((x.sum() / counted.sum().clamp(min=1) for x in losses), logits[0].new_zeros(())),
            **{name: logits[0].new_zeros(()) for name in ("features", "regions", "pixels")},
        }
        for a, b in ((0, 1), (1, 0)):
            if self.weights[0]:
                stage = self.students[b].get_submodule(self.names[1])
                made = held_fixed(stage, self.enter[a](features[a][0]))
                found["features"] = found["features"] + _distance(made, features[b][1].detach()).mean()
            if self.weights[1]:
                projected = self.project[a](features[a][2])
                found["regions"] = found["regions"] + region_transfer(projected, features[b][2], gives_region[b])
            if self.weights[2]:
                given = gives_pixel[b] & right[b]
                found["pixels"] = found["pixels"] + pixel_transfer(logits[a], logits[b], given)
        return found

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Loss of a batch.

        Args:
            batch: pictures and labels.

        Returns:
            Scalar.
        """
        found = self.parts(*batch)
        terms = zip(self.weights, ("features", "regions", "pixels"), strict=True)
        return found["supervised"] + sum(weight * found[name] for weight, name in terms)


def _case(receiver: Tensor, giver: Tensor, features: Tensor, given: Tensor, labels: Tensor) -> Tensor:
    losses = [pixel_losses(x, labels) for x in (receiver, giver)]
    pixels = directions(*losses)[1] & (giver.argmax(1) == labels)
    counted = labels != 255
    regions = directions(*(region_losses(x, counted, grid=(2, 2)) for x in losses))[1]
    return (
        losses[0].mean()
        + pixel_transfer(receiver, giver, pixels)
        + region_transfer(features, given, torch.ones_like(regions))
    )


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(2, 3, 4, 6, generator=generator) for name in ("receiver", "giver", "features", "given")}
    return found | {"labels": torch.randint(0, 3, (2, 4, 6), generator=generator)}


METHOD = Method(
    id=304,
    name="CTCL-Seg",
    kind="objective",
    summary="A convolutional network and a transformer learn to segment together, each where the other knows better.",
    paper=Paper(
        "A Good Student is Cooperative and Reliable: CNN-Transformer Collaborative Learning for Semantic Segmentation",
        "J. Zhu et al.",
        2023,
        "arXiv:2307.12574",
    ),
    cases={"regions_and_pixels": Objective(_case, _inputs, learns=("receiver", "features"))},
)
