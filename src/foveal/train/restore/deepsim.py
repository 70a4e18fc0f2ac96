"""DeePSiM: pictures are made by a loss of three terms: pixels, what a frozen network sees, and what a critic believes.

*Source*: A. Dosovitskiy and T. Brox, "Generating Images with Perceptual Similarity Metrics based on Deep Networks",
NIPS 2016 (arXiv:1602.02644), sections 2 and 3. For pictures x̂ = G(·) that should be x, a comparator C and a critic D
with logits,

    L_G = λ_img mean (x̂ - x)² + λ_feat mean (C(x̂) - C(x))² / mean C(x)² + λ_adv mean softplus(-D(x̂))
    L_D = mean softplus(D(x̂)) + mean softplus(-D(x)),   not learnt from while L_D < 0.1 · mean softplus(-D(x̂))

softplus(-D) is -log of the probability that D gives the picture. The pixels fix colours and places, the comparator what
the picture shows, and the critic its statistics, which squared errors average away.

*Differs from the paper*: means in place of sums, and features over their own mean square, so that the weights do not
depend on sizes and networks; the critic has no dropout and does not see the features; both are trained at once, by
gradients of the same pictures.

*Provenance*: written from the paper; there is no code of the authors for the loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from foveal.cases import Objective
from foveal.record import Method, Paper

__all__ = ["Critic", "DeePSiM", "deepsim_loss", "relative_error"]

RESTS_BELOW = 0.1  # the critic rests while its loss is a smaller share of the adversarial one


def relative_error(x: Tensor, y: Tensor) -> Tensor:
    """Squared error over the target's mean square.

    Args:
        x: features, of any shape.
        y: the wanted ones, of the same shape; they get no gradient.

    Returns:
        Scalar, 1 where x is 0.
    """
    y = y.detach()
    return F.mse_loss(x, y) / y.square().mean().clamp_min(1e-12)


def deepsim_loss(
    out: Tensor,
    target: Tensor,
    *,
    seen: Tensor,
    wanted: Tensor,
    logits: Tensor,
    image: float = 1.0,
    feature: float = 0.05,
    adversarial: float = 0.002,
) -> Tensor:
    """L_G, the loss of whoever makes the pictures.

    Args:
        out: pictures made, (B, C, H, W).
        target: pictures wanted, of the same shape; they get no gradient.
        seen: what the comparator makes of `out`, of any shape.
        wanted: what it makes of `target`; it gets no gradient.
        logits: what the critic says of `out`, of any shape; above 0 for "real".
        image: λ_img.
        feature: λ_feat.
        adversarial: λ_adv.

    Returns:
        Scalar.
    """
    pixels = F.mse_loss(out, target.detach())
    return image * pixels + feature * relative_error(seen, wanted) + adversarial * F.softplus(-logits).mean()


class Critic(nn.Module):
    """D: pictures (B, 3, H, W) in [0, 1] to logits, (B, 1).

    Args:
        dim: channels of its first layer; twice and four times as many at a quarter and at an eighth of the side.
    """

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, dim, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(dim, 2 * dim, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * dim, 4 * dim, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * dim, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers((x - 0.5) * 4)
        return logits


class DeePSiM(nn.Module):
    """Trains a network that makes pictures; as a module, it gives L_G + L_D of a batch, for both networks at once.

    Gradients of L_G reach the network alone, those of L_D the critic alone, and none the comparator.

    Args:
        net: G, for example an autoencoder; it is called with what the batch gives.
        comparator: network with `features`, whose last ones are compared; its parameters are frozen.
        critic: D.
        image: λ_img.
        feature: λ_feat.
        adversarial: λ_adv; 0 leaves the critic out.

    Raises:
        TypeError: a comparator without `features`.
    """

    def __init__(
        self,
        net: nn.Module,
        comparator: nn.Module,
        critic: nn.Module | None = None,
        *,
        image: float = 1.0,
        feature: float = 0.05,
        adversarial: float = 0.002,
    ) -> None:
        super().__init__()
        if not hasattr(comparator, "features"):
            raise TypeError(f"a comparator has a method `features`, got {type(comparator).__name__} without it")
        self.net, self.comparator = net, comparator.requires_grad_(False)
        self.critic = Critic() if critic is None else critic
        self.weights = {"image": image, "feature": feature, "adversarial": adversarial}

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """The losses of a batch.

        Args:
            x: what the network is given.
            target: pictures wanted, (B, 3, H, W) in [0, 1]; None for x itself, as autoencoders have it.

        Returns:
            Scalar.
        """
        target = x if target is None else target
        out: Tensor = self.net(x)
        see: Any = self.comparator.features
        with torch.no_grad():
            wanted = see(target)[-1]
        fixed = {name: value.detach() for name, value in self.critic.named_parameters()}
        logits: Tensor = functional_call(self.critic, fixed, (out,))
        made = deepsim_loss(out, target, seen=see(out)[-1], wanted=wanted, logits=logits, **self.weights)
        told = F.softplus(self.critic(out.detach())).mean() + F.softplus(-self.critic(target.detach())).mean()
        learns = told.detach() >= RESTS_BELOW * F.softplus(-logits.detach()).mean()
        return made + told * learns if self.weights["adversarial"] else made


def _inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"out": (2, 3, 5, 4), "target": (2, 3, 5, 4), "seen": (2, 6), "wanted": (2, 6), "logits": (2, 1)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


METHOD = Method(
    id=228,
    name="DeePSiM",
    kind="objective",
    summary="Makes pictures by a loss of three terms: pixels, a frozen network's features, and a critic.",
    paper=Paper(
        "Generating Images with Perceptual Similarity Metrics based on Deep Networks",
        "A. Dosovitskiy, T. Brox",
        2016,
        "arXiv:1602.02644",
    ),
    cases={"three_terms": Objective(deepsim_loss, _inputs, learns=("out", "seen", "logits"))},
)
