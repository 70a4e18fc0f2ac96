import numpy as np
import pytest

from foveal.evaluate.sort_and_search import Ranking, evenly, rank, thresholds, thresholds_reference


def drawn(models=12, samples=60, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    hardness = rng.random(samples)
    return (np.linspace(0, 1, models)[:, None] > hardness + noise * rng.standard_normal((models, samples))).astype(int)


@pytest.mark.parametrize("samples", [1, 2, 7, 30])
def test_prefix_sums_find_the_best_threshold(samples):
    right = np.random.default_rng(0).integers(0, 2, (40, samples))
    assert thresholds(right).tolist() == thresholds_reference(right).tolist()


def test_thresholds_by_hand():
    assert thresholds(np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])).tolist() == [2, 0, 4, 3]


def test_without_noise_the_order_is_that_of_hardness_and_nothing_is_predicted_wrong():
    right = drawn(noise=0.0)
    ranking = rank(right)
    assert (np.diff(right.sum(0)[ranking.order]) <= 0).all()
    for row in right:
        assert ranking.predict(row[ranking.samples(60)]).tolist() == row.astype(bool).tolist()
        few = ranking.predict(row[ranking.samples(12)])
        assert (few != row).sum() <= 5  # the threshold is known to one of twelve parts


def test_equal_sums_are_ordered_by_the_models_that_turn_among_them():
    right = np.array([[1, 1, 0, 1, 0]] * 3 + [[1, 0, 1, 0, 0]] * 3)  # sums 6, 3, 3, 3, 0
    assert rank(right, recursive=False).order.tolist() == [0, 1, 2, 3, 4]
    found = rank(right).order
    assert found.tolist() == [0, 1, 3, 2, 4]  # the first three models turn among the equal ones, the others before

    def errors(order):
        ordered = right[:, order]
        return sum((row != (np.arange(5) < k)).sum() for row, k in zip(ordered, thresholds(ordered), strict=True))

    assert errors(found) < errors(np.arange(5))


def test_what_was_evaluated_is_not_predicted():
    ranking = Ranking(np.arange(10))
    assert ranking.samples(2).tolist() == [2, 7]
    assert ranking.predict(np.array([0, 1])).tolist() == [False] * 7 + [True] + [False] * 2


def test_it_predicts_better_than_the_majority():
    right = drawn(models=41, samples=400, noise=0.05)
    ranking = rank(right[::2])
    asked = ranking.samples(20)
    wrong = [(ranking.predict(row[asked]) != row).mean() for row in right[1::2]]
    majority = [min(row.mean(), 1 - row.mean()) for row in right[1::2]]
    assert np.mean(wrong) < 0.5 * np.mean(majority)


def test_wrong_matrices_raise():
    with pytest.raises(
        ValueError, match=r"a matrix of models by samples is wanted, got shape \(3,\); give at least one"
    ):
        thresholds(np.ones(3))
    with pytest.raises(
        ValueError, match="entries must be 0 or 1, right or wrong; compare predictions with labels first"
    ):
        rank(np.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="between 1 and 10 samples can be evaluated, got 11"):
        evenly(10, 11)
