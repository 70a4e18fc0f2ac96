import pytest
import torch

from foveal.vlm.method import Cut, Seen, VlmError
from foveal.vlm.random import Random, random_scores


def seen(visual):
    nothing = torch.zeros(visual.shape)
    return Seen(nothing, visual, torch.ones_like(visual), nothing, visual.sum(1), nothing)


def test_rows_of_equal_numbers_keep_the_same_tokens():
    visual = torch.zeros(2, 30, dtype=torch.bool)
    visual[0, 2:22] = True
    visual[1, 8:28] = True
    chosen = Random(0.4).choose(seen(visual), 0)
    assert chosen.sum(1).tolist() == [8, 8]
    assert torch.equal(chosen[0, 2:22], chosen[1, 8:28])
    assert not chosen[~visual].any()


def test_a_seed_gives_one_choice_and_another_seed_another():
    visual = torch.ones(1, 40, dtype=torch.bool)
    assert torch.equal(random_scores(visual, seed=1), random_scores(visual, seed=1))
    assert not torch.equal(Random(0.5).choose(seen(visual), 0), Random(0.5, seed=1).choose(seen(visual), 0))
    assert random_scores(visual, seed=0).unique().numel() == 40


def test_it_cuts_where_it_is_told():
    assert Random(0.5).cuts(9) == (Cut(0),)
    assert Random(0.5, layer=3, cache=True).cuts(9) == (Cut(3, cache=True),)
    with pytest.raises(VlmError, match="layer must be at least 0, got -1; 0 drops tokens before the language model"):
        Random(layer=-1)
