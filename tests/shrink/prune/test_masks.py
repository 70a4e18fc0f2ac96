"""Patterns of masks, their checks, and layers under a mask."""

import pytest
import torch
from torch import nn

from foveal.shrink.prune.masks import (
    bake_,
    block_mask,
    density,
    fine_mask,
    global_mask,
    is_blocks,
    is_n_of_m,
    mask_,
    masked,
    n_of_m_mask,
)


@pytest.mark.parametrize("keep", [0.1, 0.35, 1.0])
def test_the_highest_scores_stay(keep: float):
    scores = torch.randn(7, 3, 3)
    mask = fine_mask(scores, keep)
    assert int(mask.sum()) == round(keep * 63)
    if keep < 1:
        assert scores[mask].min() >= scores[~mask].max()


def test_ties_leave_exactly_the_share():
    assert int(fine_mask(torch.zeros(10), 0.3).sum()) == 3


def test_all_layers_compete():
    masks = global_mask({"a": torch.ones(2, 5), "b": torch.zeros(3, 5)}, 0.4)
    assert masks["a"].all()
    assert not masks["b"].any()
    assert masks["b"].shape == (3, 5)


def test_two_of_four():
    scores = torch.randn(5, 3, 2, 2)
    mask = n_of_m_mask(scores, 2, 4)
    assert is_n_of_m(scores * mask, 2, 4)
    assert not is_n_of_m(scores, 2, 4)
    rows, kept = scores.view(5, -1, 4), mask.view(5, -1, 4)
    for row, k in zip(rows.reshape(-1, 4), kept.reshape(-1, 4), strict=True):
        assert set(row[k].tolist()) == set(row.sort().values[2:].tolist())


def test_blocks():
    scores = torch.randn(8, 12)
    mask = block_mask(scores, 0.5, (4, 3))
    assert int(mask.sum()) == 48
    assert is_blocks(mask, (4, 3))
    mask[0, 0] = ~mask[0, 0]
    assert not is_blocks(mask, (4, 3))
    assert not is_blocks(mask, (5, 3))


def test_training_keeps_the_zeros_and_baking_keeps_the_outputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    mask_(net, {"0": fine_mask(torch.randn(4, 3, 3, 3), 0.25)})
    mask_(net, {"0": fine_mask(torch.randn(4, 3, 3, 3), 0.5), "3": fine_mask(torch.randn(2, 4), 0.5)})  # replaced
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 3, 3)).square().sum().backward()
        optimizer.step()
    assert density(net) == pytest.approx(0.5)
    x = torch.randn(2, 3, 3, 3)
    before, masks = net(x), masked(net)
    assert torch.equal(bake_(net)(x), before)
    assert not masked(net)
    assert not net[0].weight[~masks["0"]].any()
    assert set(net.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"keep must be in \(0, 1\], got 0"):
        fine_mask(torch.ones(3), 0)
    with pytest.raises(ValueError, match="rows of 27 weights do not divide into groups of 4; leave this layer dense"):
        n_of_m_mask(torch.ones(2, 3, 3, 3), 2, 4)
    with pytest.raises(ValueError, match="n must be in 1…m, got n = 5 and m = 4"):
        n_of_m_mask(torch.ones(2, 4), 5, 4)
    with pytest.raises(ValueError, match=r"a weight of \(6, 4\) does not divide into blocks of \(4, 4\)"):
        block_mask(torch.ones(6, 4), 0.5, (4, 4))
    with pytest.raises(ValueError, match=r"layer '0' has a weight of \(2, 3\), the mask is \(3, 2\)"):
        mask_(nn.Sequential(nn.Linear(3, 2)), {"0": torch.ones(3, 2)})
    with pytest.raises(ValueError, match="layer '0' has no weight"):
        mask_(nn.Sequential(nn.ReLU()), {"0": torch.ones(3, 2)})
    with pytest.raises(ValueError, match="ReLU has no linear layer or convolution"):
        density(nn.ReLU())
