import numpy as np
import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.rivals.fusion import Concatenation
from foveal.evidence.run import run_one
from foveal.evidence.tasks import two_views


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(two_views, "COUNT", {"train": 40, "test": 30})
    monkeypatch.setattr(two_views, "SCENES", {"train": 50, "test": 30})
    monkeypatch.setattr(two_views, "_digits", two_views._digits.__wrapped__)  # nothing of this stays in the caches


def test_the_brighter_view_of_a_cell_is_right_and_the_other_never(few):
    # Called past the caches, which other tests share.
    views, right = two_views.scenes.__wrapped__("test")
    made, names = two_views._digits("test")
    assert views.shape == (30, 2, 24, 24)
    assert right.shape == (30, 4)
    cells = (views * 0.25 + 0.15).unflatten(3, (2, 12)).unflatten(2, (2, 12)).transpose(3, 4).flatten(2, 3)
    # each cell is a contrast times one of the digits: the projection on it leaves the noise only
    flat, digits = cells.flatten(3).double(), torch.from_numpy(made).flatten(1).double()
    contrast = flat @ digits.T / digits.square().sum(1)
    left = (flat[..., None, :] - contrast[..., None] * digits).square().sum(-1)
    best = left.argmin(-1)
    assert left.min(-1).values.sqrt().max() < 2  # of 144 pixels with noise of 0.05
    found, given = torch.from_numpy(names)[best], contrast.gather(-1, best[..., None])[..., 0]
    assert (found[:, 0] != found[:, 1]).all()
    sure = (given[:, 0] - given[:, 1]).abs() > 0.1
    brighter = torch.where(given[:, 0] > given[:, 1], found[:, 0], found[:, 1])
    assert torch.equal(brighter[sure], right[sure])
    assert 0.35 < (found[:, 0] == right).float().mean() < 0.65


def test_the_ceiling_of_one_view():
    """p, the chance to have the higher contrast, is uniform; naming another digit is right in a ninth of 1 - p."""
    p = np.linspace(0, 1, 100_001)
    assert 100 * np.maximum(p, (1 - p) / 9).mean() == pytest.approx(two_views.CEILING, abs=0.1)


def test_scenes_are_the_same_each_time_and_only_the_second_view_moves(few):
    still, moved = two_views.scenes.__wrapped__("train"), two_views.scenes.__wrapped__("train", shift=3)
    assert torch.equal(two_views.scenes.__wrapped__("train")[0], still[0])
    assert not torch.equal(two_views.scenes.__wrapped__("test")[0], still[0][:30])
    assert torch.equal(still[1], moved[1])
    distance = (still[0] - moved[0]).abs().amax((0, 2, 3))
    assert distance[1] > 1
    assert distance[0] < 2.5  # another draw of the noise


def test_one_view_is_all_that_a_network_of_one_view_gets():
    torch.manual_seed(0)
    x = torch.randn(2, 2, 24, 24)
    other = x.clone()
    other[:, 1] += 1
    for view, same in (("first", True), ("second", False), ("both", False)):
        model = two_views.TwoStreams(Concatenation, dim=4, view=view).eval()
        assert model(x).shape == (2, 10, 4)
        assert torch.equal(model(x), model(other)) == same
    with pytest.raises(ValueError, match="view must be one of both, first, second, got 'third'"):
        two_views.TwoStreams(Concatenation, view="third")


class Says(nn.Module):
    """Names one digit for every cell."""

    def __init__(self, digit):
        super().__init__()
        self.digit = digit

    def forward(self, views):
        return nn.functional.one_hot(torch.full((len(views), 4), self.digit), 10).mT.float()


def test_the_score_counts_cells_named_right():
    with rehearsal():
        right = two_views.scenes("test")[1]
        for digit in (1, 6):
            assert two_views.score(Says(digit)) == pytest.approx(100 * (right == digit).float().mean().item())


def test_claims_are_differences(monkeypatch):
    values = {"both": 70.0, "first": 40.0, "second": 50.0}

    def trained(fusion, *, steps, seed, view="both", shift=0):
        return values[view] - (5 if fusion is nn.Identity else 0)

    monkeypatch.setattr(two_views, "trained", trained)
    monkeypatch.setattr(two_views, "score", lambda value, *, shift: value)
    words = {"steps": 5, "paper": "", "clause": 1}
    assert run_one(two_views.above_single(Concatenation, "Above.", **words)).value == 20
    assert run_one(two_views.better(Concatenation, "More.", than=nn.Identity, **words)).value == 5
