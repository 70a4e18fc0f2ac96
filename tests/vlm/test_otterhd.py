import pytest
import torch

from foveal.vlm.method import VlmError
from foveal.vlm.otterhd import PAD, Layout, drawn_side, layout, magnified, options, patches, prompt, shorter
from foveal.vlm.tiny import IMAGE, PATCH


def test_counts_of_fuyu():
    assert layout((300, 300)) == Layout((300, 300), 10, 10)
    assert layout((300, 300)).tokens == 110
    assert layout((301, 299)).tokens == 11 * 11
    assert layout((1080, 1920)).tokens == 36 * 65
    assert layout((1, 1)).tokens == 2


def test_a_larger_picture_is_reduced_to_the_limit():
    assert layout((2160, 3840)).size == (1080, 1920)
    assert layout((2000, 1000)) == Layout((1080, 540), 36, 18)
    assert layout((2000, 1000), limit=None).size == (2000, 1000)
    assert layout((1, 9000), limit=(30, 60)).size == (1, 60)


def test_each_row_ends_with_a_line_break():
    assert layout((5, 7), patch=3, limit=None).ids(8, 9).tolist() == [8, 8, 8, 9, 8, 8, 8, 9]


def test_patches_keep_order_and_pad_right_and_below():
    picture = torch.arange(2 * 3 * 3.0).view(1, 2, 3, 3)
    found = patches(picture, patch=2)
    assert found.shape == (1, 4, 8)
    assert found[0, 0].tolist() == [0, 9, 1, 10, 3, 12, 4, 13]
    torch.testing.assert_close(found[0, 3], torch.tensor([8.0, 17.0, *[PAD] * 6]))


def test_the_shorter_side():
    assert shorter((300, 200), 100) == (150, 100)
    assert shorter((200, 301), 100) == (100, 151)


def test_sides_are_drawn_evenly_and_repeatably():
    sides = [drawn_side(step, seed=1) for step in range(300)]
    assert sides == [drawn_side(step, seed=1) for step in range(300)]
    assert sides != [drawn_side(step, seed=2) for step in range(300)]
    assert all(70 < sides.count(side) < 130 for side in (448, 512, 768))


@pytest.mark.parametrize("size", [(4, 4), (7, 13), (16, 3)])
def test_a_fuyu_reads_any_size(size, model_of):
    model = model_of("fuyu")
    words = torch.tensor([[10, 11, 12], [13, 14, 15]])
    given = prompt(torch.rand(2, 3, *size), words, image=IMAGE, newline=7, patch=PATCH)
    made = layout(size, patch=PATCH, limit=None)
    assert given["input_ids"].shape == (2, made.tokens + 3)
    assert given["pixel_values"].shape == (2, made.patches, 48)
    with torch.no_grad():
        logits = model(**given, use_cache=False).logits
        other = model(**given | {"pixel_values": given["pixel_values"] + 1}, use_cache=False).logits
    assert logits.shape[1] == made.tokens + 3
    assert not torch.allclose(logits[:, -1], other[:, -1])


def test_a_prompt_at_another_side():
    picture, words = torch.rand(1, 3, 8, 16), torch.tensor([[10]])
    given = prompt(picture, words, image=IMAGE, newline=7, side=4, patch=PATCH)
    assert given["pixel_values"].shape == (1, 2, 48)
    torch.testing.assert_close(given["pixel_values"].mean(), picture.mean(), atol=0.05, rtol=0)
    same = prompt(picture, words, image=IMAGE, newline=7, side=8, patch=PATCH)
    assert torch.equal(same["pixel_values"], patches(picture, patch=PATCH))


def test_things_are_pasted_where_they_belong():
    scene, things = torch.zeros(2, 3, 6, 6), torch.ones(2, 1, 3, 2, 3)
    cover = torch.tensor([1.0, 0.5]).view(2, 1, 1, 1, 1).expand(2, 1, 1, 2, 3)
    made = magnified(scene, things, cover, torch.tensor([[[0, 0]], [[4, 3]]]))
    assert scene.sum() == 0
    assert made[0, :, :2, :3].sum() == made[0].sum() == 18
    assert made[1, :, 4:, 3:].sum() == made[1].sum() == 9


def test_options_hold_the_answer_once_and_anywhere():
    answers = torch.arange(10).repeat(40)
    found = options(answers, classes=10, seed=0)
    assert found.shape == (400, 4)
    assert ((found == answers[:, None]).sum(1) == 1).all()
    assert all(len(set(row)) == 4 for row in found.tolist())
    places = (found == answers[:, None]).float().argmax(1).bincount(minlength=4)
    assert (places > 70).all()


def test_errors():
    with pytest.raises(VlmError, match=r"need at least one pixel, got \(0, 3\) and patches of 30"):
        layout((0, 3))
    with pytest.raises(VlmError, match=r"whole patches of 30 pixels, got \(50, 60\); take multiples of 30"):
        layout((3, 3), limit=(50, 60))
    with pytest.raises(VlmError, match="sides must hold at least one side in pixels, got none"):
        drawn_side(0, seed=0, sides=())
    with pytest.raises(VlmError, match="got 2 pictures and 1 rows of words"):
        prompt(torch.rand(2, 3, 4, 4), torch.tensor([[10]]), image=5, newline=7)
    with pytest.raises(VlmError, match=r"must lie inside scenes of 6×6, got places from 0 to 5; places may be 0 to \["):
        magnified(
            torch.zeros(1, 3, 6, 6), torch.ones(1, 1, 3, 2, 3), torch.ones(1, 1, 1, 2, 3), torch.tensor([[[5, 0]]])
        )
    with pytest.raises(VlmError, match="there are 3 answers, which cannot fill 4 options; take at most 3"):
        options(torch.tensor([0]), classes=3, seed=0)
