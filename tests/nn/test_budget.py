import math

import pytest
import torch

from foveal.nn.budget import affordable, threshold_for


@pytest.mark.parametrize(("budget", "share"), [(1, 1), (0.9, 1), (0.75, 0.9375), (0.4, 0.5), (0.2, 0.25), (1e-9, 0)])
def test_what_a_budget_pays_for(budget, share):
    assert affordable(budget, least=0, each=0.8) == pytest.approx(share, abs=1e-8)


def test_what_every_place_costs_comes_first():
    assert affordable(0.6, least=0.4, each=0.5) == pytest.approx(0.4)
    assert affordable(0.4, least=0.4, each=0.5) == 0


@pytest.mark.parametrize("budget", [0, -0.1, 1.01])
def test_a_budget_outside_its_range_is_refused(budget):
    with pytest.raises(ValueError, match=rf"budget must be in \(0, 1\], got {budget}"):
        affordable(budget, least=0.1, each=0.9)


def test_a_budget_that_cannot_be_met_names_the_least():
    with pytest.raises(ValueError, match=r"budget must be at least 0\.250, .* got 0\.2"):
        affordable(0.2, least=0.25, each=0.75)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.95])
def test_the_share_of_scores_that_reach_the_threshold(share):
    scores = [torch.rand(3, 7, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    threshold = threshold_for(share, scores)
    assert sum(int((score >= threshold).sum()) for score in scores) == math.floor(share * 84)


def test_all_and_none():
    assert threshold_for(1, []) is None
    assert threshold_for(0, [torch.rand(3)]) == math.inf
    assert threshold_for(0.1, [torch.rand(3)]) == math.inf


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="a budget below 1 is found on pictures, got none"):
        threshold_for(0.5, [])
