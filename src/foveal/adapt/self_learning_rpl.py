"""Self-learning with robust pseudo-labels: norms learn from the model's own answers on new, unlabelled pictures.

*Source*: E. Rusak et al., "If your data distribution shifts, use self-learning", TMLR 2022 (arXiv:2104.12928), sections
3 and 4. Batch norms use the statistics of the batch, only scales and shifts of norms learn, and the loss of logits
z: (B, K) with p = softmax(z) and the pseudo-label ŷ = argmax z is one of

    entropy   -Σ_k p_k log p_k                      test-time entropy minimisation
    hard      -log p_ŷ                              pseudo-labelling
    soft      -Σ_k p̂_k log p_k                      p̂ = p without its gradient
    robust    (1 - p_ŷ^q) / q,  q = 0.8             generalised cross-entropy, which tends to `hard` for q → 0

A wrong pseudo-label with a low p_ŷ has a gradient that is smaller by p_ŷ^q than under `hard`. Teacher and student are
one model, and no confidence is required.

*Differs from the paper*: AdamW in place of SGD with momentum, since one learning rate then suits both batch and layer
norms. A model without batch norms has no statistics to renew and learns through its other norms.

*Provenance*: written from the paper; compared with its formula, not with the authors' code.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.adapt.attach import difference
from foveal.adapt.delta import AdaptError
from foveal.adapt.tune import batches_of, norm_layers, renew_statistics_, tune
from foveal.cases import Objective
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from foveal.adapt.delta import Delta
    from foveal.adapt.methods import Pictures

__all__ = ["LOSSES", "generalised_cross_entropy", "self_learning_loss", "self_learning_rpl"]

LOSSES = ("robust", "hard", "soft", "entropy")


def generalised_cross_entropy(logits: Tensor, labels: Tensor, *, q: float = 0.8) -> Tensor:
    """(1 - p_y^q) / q, between cross-entropy (q → 0) and the mean absolute error (q = 1).

    Args:
        logits: z, (B, K).
        labels: y, (B,).
        q: in [0, 1]; 0 is cross-entropy.

    Returns:
        Mean over the batch.

    Raises:
        ValueError: q outside [0, 1].
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q must be in [0, 1], got {q}; 0.8 is usual")
    log_p = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    if q == 0:
        return -log_p.mean()
    return -torch.expm1(q * log_p).mean() / q


def self_learning_loss(logits: Tensor, *, kind: str = "robust", q: float = 0.8) -> Tensor:
    """The loss of logits under the answers that they give themselves.

    Args:
        logits: z, (B, K).
        kind: "robust", "hard", "soft" or "entropy".
        q: of "robust", in [0, 1].

    Returns:
        Mean over the batch.

    Raises:
        ValueError: another kind, or q outside [0, 1].
    """
    if kind not in LOSSES:
        raise ValueError(f"kind must be one of {', '.join(LOSSES)}, got {kind!r}")
    if kind in ("robust", "hard"):
        return generalised_cross_entropy(logits, logits.detach().argmax(-1), q=q if kind == "robust" else 0.0)
    log_p = logits.log_softmax(-1)
    p = log_p.exp() if kind == "entropy" else log_p.detach().exp()
    return -(p * log_p).sum(-1).mean()


def self_learning_rpl(
    model: nn.Module,
    pictures: Pictures,
    *,
    steps: int = 200,
    seed: int = 0,
    kind: str = "robust",
    q: float = 0.8,
    lr: float = 1e-3,
    batch: int = 128,
) -> Delta:
    """Adapt the norms of a classifier to pictures without labels.

    Args:
        model: classifier with norms; it stays as it is.
        pictures: pictures of the new kind; labels are not used.
        steps: number of steps.
        seed: seed of the batches.
        kind: loss, see `self_learning_loss`.
        q: of "robust".
        lr: peak learning rate.
        batch: B.

    Returns:
        What would change: scales and shifts of norms, and running statistics of batch norms.

    Raises:
        AdaptError: a model whose norms have no parameters.
    """
    work = copy.deepcopy(model)
    norms = norm_layers(work)
    learns = [p for module in norms.values() for p in module.parameters()]
    if not learns:
        raise AdaptError(f"{type(model).__name__} has no norm with scales and shifts to adapt; take another method")
    seen = batches_of(pictures.inputs, torch.zeros(len(pictures.inputs)).long(), batch=batch, seed=seed)
    loss = lambda logits, _: self_learning_loss(logits, kind=kind, q=q)  # noqa: E731
    tune(work, seen, learns, steps=steps, lr=lr, loss=loss, statistics=True, seed=seed)
    renew_statistics_(work, pictures.inputs)
    return difference(model, work, method="rpl", steps=steps)


def _inputs(seed: int) -> dict[str, Tensor]:
    return {"logits": torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))}


METHOD = Method(
    id=186,
    name="SelfLearningRPL",
    kind="objective",
    summary="Norms learn from the model's own answers on unlabelled pictures; wrong ones count for little.",
    paper=Paper("If your data distribution shifts, use self-learning", "E. Rusak et al.", 2022, "arXiv:2104.12928"),
    cases={"robust": Objective(self_learning_loss, _inputs, learns=("logits",))},
)
