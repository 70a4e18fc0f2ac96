import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.run import run_one
from foveal.evidence.tasks import digits


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(digits, "COUNT", {"train": 30, "test": 20})


def test_pictures_are_bright_noisy_and_the_same_each_time(few):
    # Called past the cache, which other tests share.
    x, labels = digits.pictures.__wrapped__("train")
    assert x.shape == (30, 1, 16, 16)
    assert labels.dtype == torch.int64
    assert 0 <= labels.min() <= labels.max() <= 9
    assert ((x * 0.3 + 0.2).amax((1, 2, 3)) > 0.4).all()
    assert len(torch.unique(x.flatten(1), dim=0)) == 30
    assert torch.equal(digits.pictures.__wrapped__("train")[0], x)
    assert not torch.equal(digits.pictures.__wrapped__("test")[0], x[:20])


def test_every_font_has_every_digit():
    pictures = [picture for _, picture in digits.glyphs()]
    assert len(pictures) == 170
    assert len({picture.tobytes() for picture in pictures}) == 170
    assert all(sum(picture.histogram()[128:]) > 100 for picture in pictures)


class Constant(nn.Module):
    """Names one digit, with a weight that it does not need."""

    def __init__(self, digit):
        super().__init__()
        self.digit, self.weight = digit, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return nn.functional.one_hot(torch.full((len(x),), self.digit), 10) + 0 * self.weight


def test_the_score_counts_digits_named_right():
    with rehearsal():
        labels = digits.pictures("test")[1]
        for digit in (0, 7):
            assert digits.score(Constant(digit)) == pytest.approx(100 * (labels == digit).float().mean().item())


def test_claims_compare_networks_or_take_a_bound():
    with rehearsal():
        share = [digits.score(Constant(digit)) for digit in (0, 1, 2)]
        most, least = share.index(max(share)), share.index(min(share))
        words = {"steps": 5, "paper": "", "clause": 1}
        gain = digits.better(lambda: Constant(most), "More.", than=lambda: Constant(least), **words)
        assert run_one(gain).value == pytest.approx(max(share) - min(share))
        bound = digits.above(lambda: Constant(most), "Enough.", at_least=max(share) + 1, **words)
        assert run_one(bound).verdict == "does not hold"
    assert gain.check["seeds"] == 3
    assert gain.needs == ("minutes",)
    assert "5 steps" in gain.check["data"]
