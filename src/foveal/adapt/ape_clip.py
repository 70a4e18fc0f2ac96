"""APE: a cache of few labelled features beside class names, on the channels that tell classes apart.

*Source*: X. Zhu et al., "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement", ICCV 2023
(arXiv:2304.01195), sections 3.1 to 3.3. Text features W: (K, D) of K classes and features F: (K·M, D) of M labelled
pictures of each, all of length 1, labels L one-hot. Each channel gets a score, and the Q best stay (W', F', f'):

    S_d = mean of a_d · b_d over all pairs of features a, b of different classes, from texts and pictures
    V_d = variance of W_d over the classes
    J_d = -λ S_d + (1 - λ) V_d,  λ = 0.7

A picture with features f: (B, D) is classified by three affinities, f to W, f' to F' and F' to W' (APE):

    logits = 100 f Wᵀ + α exp(-β (1 - f' F'ᵀ)) diag(R) L
    R_i    = exp(γ KL(L_i ‖ softmax(F'_i W'ᵀ)))                  KL in bits; a shot that its text does not explain

With Q = D and γ = 0 this is Tip-Adapter. APE-T trains a residual of each class on the Q channels, (K, Q), added to its
text and to its M shots alike, and the weights R: (K·M,) directly, from 1, without normalising again.

*Differs from the paper*: α, β and γ are arguments; `searched` chooses them on labelled features, as the authors do, on
another grid. S_d is computed from sums over classes, in O(K·M·D) rather than over all pairs.

*Provenance*: written from the paper; where it is silent (bits, 1e-6 inside the logarithm, unbiased variance) as the
authors' code.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.adapt.tune import batches_of, tune
from foveal.cases import Operator
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["APE", "APET", "ape_t", "channel_scores", "channel_scores_by_pairs", "searched"]


def channel_scores(text: Tensor, shots: Tensor, *, weight: float = 0.7) -> Tensor:
    """How well each channel tells the classes apart.

    Args:
        text: text features, (K, D), K at least 2.
        shots: features of labelled pictures, (K, M, D); M may be 0.
        weight: λ, in [0, 1].

    Returns:
        J, (D,); the higher the better.

    Raises:
        ValueError: fewer than two classes, shots of other classes, or a weight outside [0, 1].
    """
    _check(text, shots, weight)
    classes, every = len(text), 1 + shots.shape[1]
    sums = text + shots.sum(1)  # (K, D)
    # Σ over pairs of different classes = (Σ of all)² less the pairs within each class
    alike = (sums.sum(0).square() - sums.square().sum(0)) / (classes * (classes - 1) * every**2)
    return -weight * alike + (1 - weight) * text.var(0)


def channel_scores_by_pairs(text: Tensor, shots: Tensor, *, weight: float = 0.7) -> Tensor:
    """The same by going through all pairs, slowly.

    Args:
        text: see `channel_scores`.
        shots: see there.
        weight: see there.

    Returns:
        J, (D,).
    """
    _check(text, shots, weight)
    features = torch.cat([text[:, None], shots], 1)  # (K, 1 + M, D)
    products = [
        a * b
        for i, j in itertools.product(range(len(text)), repeat=2)
        if i != j
        for a in features[i]
        for b in features[j]
    ]
    return -weight * torch.stack(products).mean(0) + (1 - weight) * text.var(0)


def _check(text: Tensor, shots: Tensor, weight: float) -> None:
    if len(text) < 2 or len(shots) != len(text) or shots.shape[-1] != text.shape[-1]:
        raise ValueError(
            "text must be (K, D) for at least two classes and shots (K, M, D) of the same, got "
            f"{tuple(text.shape)} and {tuple(shots.shape)}"
        )
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight}; 0.7 is the paper's")


class APE(nn.Module):
    """Classifier of features without training, (B, D) to (B, K).

    Args:
        text: text features, (K, D), of length 1.
        shots: features of labelled pictures, (K, M, D), of length 1.
        channels: Q, number of channels that stay; D for all of them.
        alpha: α, share of the cache.
        beta: β, sharpness of its affinities.
        gamma: γ, weight of the divergence; 0 for equal weights.
        weight: λ of the channel scores, in [0, 1].
        scale: factor of the affinities to the text, as the image-text model was trained with.

    Raises:
        ValueError: a number of channels outside 1…D, or shots of other classes.
    """

    text: Tensor
    keys: Tensor
    chosen: Tensor

    def __init__(
        self,
        text: Tensor,
        shots: Tensor,
        *,
        channels: int,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.1,
        weight: float = 0.7,
        scale: float = 100.0,
    ) -> None:
        super().__init__()
        if not 1 <= channels <= text.shape[-1]:
            raise ValueError(f"channels must be in 1…{text.shape[-1]}, the width of the features, got {channels}")
        scores = channel_scores(text, shots, weight=weight)
        self.register_buffer("text", text)
        self.register_buffer("keys", shots.flatten(0, 1))
        self.register_buffer("chosen", scores.topk(channels).indices.sort().values)
        self.shots = shots.shape[1]
        self.alpha, self.beta, self.gamma, self.scale = alpha, beta, gamma, scale

    def refined(self, features: Tensor) -> Tensor:
        """The chosen channels.

        Args:
            features: (…, D).

        Returns:
            (…, Q), of length 1.
        """
        return F.normalize(features[..., self.chosen], dim=-1)

    def labels(self) -> Tensor:
        """Labels of the shots.

        Returns:
            L, (K·M, K), one-hot.
        """
        return torch.eye(len(self.text)).to(self.text).repeat_interleave(self.shots, 0)

    def divergence(self) -> Tensor:
        """How little the text explains each shot.

        Returns:
            KL of its label from the affinities to the texts, in bits, (K·M,).
        """
        found = (self.refined(self.keys) @ self.refined(self.text).T).softmax(-1)
        labels = self.labels()
        return (labels * ((labels + 1e-6) / (found + 1e-6)).log2()).sum(-1)

    def forward(self, features: Tensor) -> Tensor:
        # (B, K·M)
        affinity = (-self.beta * (1 - self.refined(features) @ self.refined(self.keys).T)).exp()
        weights = (self.gamma * self.divergence()).exp()
        return self.scale * features @ self.text.T + self.alpha * affinity @ (weights[:, None] * self.labels())


class APET(APE):
    """Classifier with K·Q + K·M trained values; arguments as for `APE`, whose γ it does not use."""

    def __init__(
        self,
        text: Tensor,
        shots: Tensor,
        *,
        channels: int,
        alpha: float = 1.0,
        beta: float = 1.0,
        weight: float = 0.7,
        scale: float = 100.0,
    ) -> None:
        super().__init__(text, shots, channels=channels, alpha=alpha, beta=beta, gamma=0.0, weight=weight, scale=scale)
        self.residual = nn.Parameter(text.new_zeros(len(text), channels))
        self.weights = nn.Parameter(text.new_ones(len(self.keys)))

    def forward(self, features: Tensor) -> Tensor:
        text = self.text.index_add(1, self.chosen, self.residual)
        keys = self.keys.index_add(1, self.chosen, self.residual.repeat_interleave(self.shots, 0))
        affinity = (-self.beta * (1 - features @ keys.T)).exp()
        return self.scale * features @ text.T + self.alpha * affinity @ (self.weights[:, None] * self.labels())


def ape_t(
    text: Tensor,
    shots: Tensor,
    *,
    channels: int,
    alpha: float = 1.0,
    beta: float = 1.0,
    scale: float = 100.0,
    steps: int = 100,
    lr: float = 1e-3,
    seed: int = 0,
) -> APET:
    """Train APE-T on the shots themselves.

    Args:
        text: see `APE`.
        shots: see there.
        channels: Q.
        alpha: α.
        beta: β.
        scale: see `APE`.
        steps: number of steps of up to 256 shots.
        lr: peak learning rate.
        seed: seed of the batches.

    Returns:
        The classifier in eval mode.
    """
    model = APET(text, shots, channels=channels, alpha=alpha, beta=beta, scale=scale)
    labels = torch.arange(len(text)).repeat_interleave(shots.shape[1])
    batches = batches_of(model.keys, labels, batch=min(256, len(labels)), seed=seed)
    tune(model, batches, [model.residual, model.weights], steps=steps, lr=lr, weight_decay=0.1, seed=seed)
    return model


def searched(
    model: APE,
    features: Tensor,
    labels: Tensor,
    *,
    alphas: Iterable[float] = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    betas: Iterable[float] = (1.0, 3.0, 10.0, 30.0),
    gammas: Iterable[float] = (0.0, 0.1, 0.2, 0.4),
) -> APE:
    """Choose α, β and γ on labelled features, in place; the first of equally good triples.

    Args:
        model: the classifier.
        features: (n, D).
        labels: (n,).
        alphas: values of α.
        betas: values of β.
        gammas: values of γ.

    Returns:
        The same classifier.
    """
    best, right = (model.alpha, model.beta, model.gamma), -1
    with torch.no_grad():
        for model.alpha, model.beta, model.gamma in itertools.product(alphas, betas, gammas):
            if (found := int((model(features).argmax(-1) == labels).sum())) > right:
                best, right = (model.alpha, model.beta, model.gamma), found
    model.alpha, model.beta, model.gamma = best
    return model


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "text": torch.randn(4, 7, generator=generator),
        "shots": torch.randn(4, 3, 7, generator=generator),
    }


METHOD = Method(
    id=88,
    name="APE-CLIP",
    kind="operator",
    summary="Few labelled features beside class names, on the channels that tell classes apart; nothing is trained.",
    paper=Paper(
        "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement",
        "X. Zhu et al.",
        2023,
        "arXiv:2304.01195",
    ),
    cases={"scores": Operator(channel_scores, channel_scores_by_pairs, _inputs)},
)
