import pytest

from foveal.evidence.studies.var_complexity_limits import (
    VAR_SIDES,
    drawn,
    entry_error,
    needed_rank,
    pyramid_work,
)
from foveal.measure.attention_rank import rank_of, taylor_error


def test_work_by_hand():
    assert pyramid_work((1, 2)) == 1 * 1 + 4 * 5
    assert pyramid_work((1, 2), rank=3) == 15
    assert sum(side**2 for side in VAR_SIDES) == 680  # tokens of a picture


def test_drawn_entries_hold_the_bound_and_reach_it():
    q, k = drawn(10, 3, 0.7)
    assert q.abs().max() == k.abs().max() == 0.7
    scores = q @ k.T / 3
    assert scores.max().item() == pytest.approx(0.49)
    assert scores.min().item() == pytest.approx(-0.49)


@pytest.mark.parametrize("degree", [0, 2, 4])
def test_errors_stay_below_the_remainder(degree):
    assert 0.1 < entry_error(*drawn(9, 3, 1.2), degree) / taylor_error(1.44, degree) <= 1


def test_the_needed_rank_is_measured():
    dim, error = 4, 0.1  # ln 64 is 4.2
    rank = needed_rank(64, 1.0)
    degree = next(g for g in range(9) if rank_of(dim, g) == rank)
    assert entry_error(*drawn(64, dim, 1.0), degree) <= error < entry_error(*drawn(64, dim, 1.0), degree - 1)
    assert needed_rank(64, 0.2) < rank < needed_rank(64, 2.0)
