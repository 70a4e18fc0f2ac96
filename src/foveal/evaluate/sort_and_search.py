"""Sort & Search: a new model is asked about a few samples of a ranked test set, and the rest is read off the ranking.

*Source*: A. Prabhu, V. Udandarao et al., "Lifelong Benchmarks: Efficient Model Evaluation in an Era of Rapid Progress",
2024 (arXiv:2402.19472), sections 3.1 to 3.3. A is a matrix of M models by N samples, 1 where the model is right.

*Sort*: samples from easy to hard, by how many models are right on them. Samples with equal sums are ordered by the
models whose threshold lies among them, since these alone tell them apart ("recursive sum").

*Search*: with the samples in order, model m is taken to be right on the first k and wrong on the rest. The best k is a
prefix sum away:

    k_m = argmin_k Σ_{j ≤ k} (1 - A_mj) + Σ_{j > k} A_mj = argmax_k Σ_{j ≤ k} (2 A_mj - 1),   0 ≤ k ≤ N

A new model is evaluated on n samples that lie evenly in the order. Its k among these, times N / n, is where it is taken
to go from right to wrong on all N: a prediction for each sample, whose mean estimates the accuracy.

For a new sample the matrix is transposed: few models answer, and the sample's place among all follows.

*Differs from the paper*: a threshold may be 0, so that a model that is wrong on all is predicted so. Predictions of the
samples that were evaluated are what was found, not what the threshold says.
*Provenance*: written from the paper; the order of equal sums was looked up in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveal.cases import Procedure
from foveal.record import Method, Paper

__all__ = ["Ranking", "evenly", "rank", "thresholds", "thresholds_reference"]


def _matrix(right: np.ndarray) -> np.ndarray:
    right = np.asarray(right)
    if right.ndim != 2 or not right.size:
        raise ValueError(f"a matrix of models by samples is wanted, got shape {right.shape}; give at least one of each")
    if not np.isin(right, (0, 1)).all():
        raise ValueError("entries must be 0 or 1, right or wrong; compare predictions with labels first")
    return right.astype(np.int64)


def thresholds(right: np.ndarray) -> np.ndarray:
    """For each row, after how many columns right turns into wrong with the fewest errors.

    Args:
        right: (M, N) of 0 and 1, columns in order.

    Returns:
        (M,) int64 in [0, N]; the least of equally good ones.

    Raises:
        ValueError: no matrix of 0 and 1.
    """
    signs = 2 * _matrix(right) - 1
    return np.concatenate([np.zeros((len(signs), 1), np.int64), signs.cumsum(1)], 1).argmax(1)


def thresholds_reference(right: np.ndarray) -> np.ndarray:
    """The same by trying all.

    Args:
        right: (M, N) of 0 and 1, columns in order.

    Returns:
        (M,) int64.
    """
    right = _matrix(right)
    errors = [(1 - right[:, :k]).sum(1) + right[:, k:].sum(1) for k in range(right.shape[1] + 1)]
    return np.stack(errors, 1).argmin(1)


def evenly(total: int, count: int) -> np.ndarray:
    """Places that lie evenly in an order.

    Args:
        total: N.
        count: n, from 1 to N.

    Returns:
        (n,) int64, the middles of n equal parts.

    Raises:
        ValueError: `count` is not between 1 and `total`.
    """
    if not 1 <= count <= total:
        raise ValueError(f"between 1 and {total} samples can be evaluated, got {count}")
    return ((np.arange(count) + 0.5) * total / count).astype(np.int64)


@dataclass(frozen=True)
class Ranking:
    """Samples from easy to hard.

    Args:
        order: indices of the samples, (N,).
    """

    order: np.ndarray

    def samples(self, count: int) -> np.ndarray:
        """Samples to evaluate a new model on.

        Args:
            count: n.

        Returns:
            Indices of samples, (n,), from easy to hard.
        """
        return self.order[evenly(len(self.order), count)]

    def predict(self, found: np.ndarray) -> np.ndarray:
        """What a new model is right on, from the samples that `samples` named.

        Args:
            found: whether it is right on them, (n,) of 0 and 1, in their order.

        Returns:
            (N,) bool, by index of the sample; its mean is the estimate of the accuracy.
        """
        found = np.asarray(found)
        total = len(self.order)
        places = evenly(total, len(found))
        cut = round(thresholds(found[None])[0] * total / len(found))
        sorted_right = np.arange(total) < cut
        sorted_right[places] = found.astype(bool)
        right = np.empty(total, bool)
        right[self.order] = sorted_right
        return right


def rank(right: np.ndarray, *, recursive: bool = True) -> Ranking:
    """Order samples by what many models are right on.

    Args:
        right: (M, N) of 0 and 1.
        recursive: whether samples with equal sums are ordered by the models whose threshold lies among them.

    Returns:
        The ranking.

    Raises:
        ValueError: no matrix of 0 and 1.
    """
    right = _matrix(right)
    sums = right.sum(0)
    order = np.argsort(-sums, kind="stable")
    if not recursive:
        return Ranking(order)
    cuts, ordered, result = thresholds(right[:, order]), sums[order], order.copy()
    for value in np.unique(ordered):
        (places,) = np.nonzero(ordered == value)
        deciding = (cuts > places[0]) & (cuts <= places[-1])
        among = right[deciding][:, order[places]].sum(0)
        result[places] = order[places][np.argsort(-among, kind="stable")]
    return Ranking(result)


def _predicted(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    skill, hardness = rng.random((9, 1)), rng.random(40)
    right = (skill > hardness + 0.1 * rng.standard_normal((9, 40))).astype(int)
    ranking = rank(right[:8])
    return ranking.predict(right[8, ranking.samples(10)])


METHOD = Method(
    id=45,
    name="Sort & Search",
    kind="procedure",
    summary="A new model is asked about a few samples of a ranked test set; its threshold predicts the rest.",
    paper=Paper(
        "Lifelong Benchmarks: Efficient Model Evaluation in an Era of Rapid Progress",
        "A. Prabhu et al.",
        2024,
        "arXiv:2402.19472",
    ),
    cases={
        "ten_of_forty": Procedure(
            _predicted,
            empty=lambda: rank(np.zeros((0, 4))),
            refuses="a matrix of models by samples is wanted, got shape (0, 4); give at least one of each",
        )
    },
)
