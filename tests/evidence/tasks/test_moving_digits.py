import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.run import run_one
from foveal.evidence.tasks import moving_digits


@pytest.fixture(autouse=True)
def _few():
    with rehearsal():
        yield


class Repeats(nn.Module):
    """The last frame, moved towards a grey by a share."""

    def __init__(self, share=0.0):
        super().__init__()
        self.share, self.weight = share, nn.Parameter(torch.zeros(1))

    def forward(self, film):
        return film + self.share * (0.1 - film) + 0 * self.weight

    def generate(self, film, frames):
        return self(film[:, -1:]).expand(-1, frames, -1, -1, -1)


def test_films_move_and_stay_inside():
    films = moving_digits.films("train", frames=6, side=24)
    assert films.shape == (2, 6, 1, 24, 24)
    assert 0 <= films.min() <= films.max() <= 1
    assert (films[:, 1:] - films[:, :-1]).abs().amax((2, 3, 4)).min() > 0.1
    assert films.sum((2, 3, 4)).min() > 5
    assert torch.equal(moving_digits.films("train", frames=6, side=24), films)
    assert not torch.equal(moving_digits.films("test", frames=6, side=24), films)


@pytest.mark.parametrize("generated", [False, True])
def test_the_last_frame_repeated_scores_zero(generated):
    assert moving_digits.score(Repeats(), generated=generated) == pytest.approx(0, abs=1e-6)
    # A tenth of a step towards grey lowers every difference that movement makes.
    assert moving_digits.score(Repeats(0.1), generated=generated) > 0.1


def test_scores_are_decibels_of_squared_error():
    tests, wanted = moving_digits.films("test"), moving_digits.films("test")[:, 5:]
    floor = (tests[:, 4:-1] - wanted).square().mean()
    grey = (0.1 - wanted).square().mean()
    assert moving_digits.score(Repeats(1.0)) == pytest.approx(10 * torch.log10(floor / grey).item(), abs=1e-4)


def test_a_constant_picture_does_not_pass_the_floors():
    """One uniform grey is below the last frame's error, and so is the mean picture: neither foresees anything."""
    assert moving_digits.score(Repeats(1.0), generated=True) > 0
    assert moving_digits.mean_score(generated=True) > 0
    claim = moving_digits.above_floors(lambda: Repeats(1.0), "Grey.", steps=2, paper="", generated=True, clause=1)
    assert run_one(claim).verdict == "does not hold"


def test_claims_compare_networks():
    claim = moving_digits.better(
        lambda: Repeats(0.1), "Less error.", than=lambda: Repeats(), steps=2, paper="", beyond="something"
    )
    assert run_one(claim).value == pytest.approx(moving_digits.score(Repeats(0.1)))
    assert claim.check["seeds"] == 3
    assert claim.needs == ("minutes",)
    assert "the next frame, after five" in claim.check["data"]
