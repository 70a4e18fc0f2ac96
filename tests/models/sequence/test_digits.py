import pytest
import torch
from foveal.models.sequence._digits import digits, moving_digits

from foveal.models.sequence import _digits


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(_digits, "COUNT", {"train": 30, "test": 20})
    digits.cache_clear()
    yield
    digits.cache_clear()


def test_pictures_are_bright_noisy_and_the_same_each_time(few):
    x, labels = digits("train")
    assert x.shape == (30, 1, 16, 16)
    assert labels.dtype == torch.int64
    assert 0 <= labels.min() <= labels.max() <= 9
    assert ((x * 0.3 + 0.2).amax((1, 2, 3)) > 0.4).all()
    assert len(torch.unique(x.flatten(1), dim=0)) == 30
    again = digits.__wrapped__("train")
    assert torch.equal(again[0], x)
    assert not torch.equal(digits("test")[0], x[:20])


def test_every_font_has_every_digit():
    pictures = [picture for _, picture in _digits._glyphs()]
    assert len(pictures) == 170
    assert len({picture.tobytes() for picture in pictures}) == 170
    assert all(sum(picture.histogram()[128:]) > 100 for picture in pictures)


def test_films_move_and_stay_inside():
    films = moving_digits("train", 3, frames=6, side=24)
    assert films.shape == (3, 6, 1, 24, 24)
    assert 0 <= films.min() <= films.max() <= 1
    assert (films[:, 1:] - films[:, :-1]).abs().amax((2, 3, 4)).min() > 0.1
    assert films.sum((2, 3, 4)).min() > 5
