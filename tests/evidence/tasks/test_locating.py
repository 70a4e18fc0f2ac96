import pytest
import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import digits, locating
from foveal.vlm.random import Random

pytestmark = pytest.mark.dear("imports transformers and draws digits")


@pytest.fixture
def drawn():
    with rehearsal():
        yield


def test_a_picture_shows_the_digits_where_the_answers_say(drawn):
    inputs, answers = locating.batch("test", 5, asked=6, seed=3)
    ids, canvas = inputs["input_ids"], inputs["pixel_values"]
    assert ids.shape == (5, 1 + 64 + 11)
    assert canvas.shape == (5, 1, 128, 128)
    glyphs, labels = digits.pictures("test")
    for row in range(5):
        named = (ids[row, 65::2] - locating.DIGIT).tolist()
        cells = (answers[row] - locating.ANSWER).tolist()
        assert len(set(named)) == len(set(cells)) == 6
        assert ids[row, 66::2].tolist() == answers[row, :5].tolist()
        for digit, cell in zip(named, cells, strict=True):
            top, left = 16 * (cell // 8), 16 * (cell % 8)
            shown = canvas[row, 0, top : top + 16, left : left + 16]
            known = (glyphs[:, 0] == shown).all((1, 2))
            if digit in labels.tolist():  # twenty digits are drawn in a rehearsal, perhaps not all ten
                assert labels[known].unique().tolist() == [digit]
    again, _ = locating.batch("test", 5, asked=6, seed=3)
    assert torch.equal(again["pixel_values"], canvas)
    assert not torch.equal(locating.batch("test", 5, asked=6, seed=4)[0]["input_ids"], ids)


def test_one_question_is_a_prompt_without_its_answer(drawn):
    inputs, answers = locating.batch("train", 3, asked=1, seed=0)
    assert inputs["input_ids"].shape == (3, 66)
    assert answers.shape == (3, 1)
    assert ((answers >= locating.ANSWER) & (answers < locating.ANSWER + 64)).all()


def test_a_model_is_trained_and_asked(drawn):
    model = locating.trained(0)
    assert not model.training
    with torch.no_grad():
        logits = model(**locating.batch("test", 2, asked=2, seed=0)[0]).logits
    assert logits.shape == (2, 68, locating.ANSWER + 64)
    for method in (None, Random(0.5)):
        assert 0 <= locating.accuracy(0, method) <= 100
    assert not model.model._forward_pre_hooks
