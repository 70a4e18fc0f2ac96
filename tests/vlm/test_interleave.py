import pytest
import torch

from foveal.vlm.interleave import arranged, expanded, predicted_length, splice, splice_reference, visual_tokens
from foveal.vlm.method import VlmError

IDS = [1, 7, 3, 7, 5]  # 7 stands for a picture


def test_the_papers_tokens():
    assert visual_tokens(384, 14) == 729
    assert visual_tokens(384, 14, pool=2) == 169
    assert visual_tokens(336, 14) == 576


def test_both_formats():
    assert arranged(IDS, image=7, mark=6, front=False) == IDS
    assert arranged(IDS, image=7, mark=6, front=True) == [1, 7, 7, 6, 3, 6, 5]
    assert arranged([1, 2], image=7, mark=6, front=True) == [1, 2]


def test_placeholders_become_their_pictures_tokens():
    assert expanded(IDS, [2, 3], image=7) == [1, 7, 7, 3, 7, 7, 7, 5]
    assert expanded([1, 2], [], image=7) == [1, 2]
    for tokens in ([1, 1], [2, 3], [16, 1]):
        assert predicted_length(IDS, tokens, image=7) == len(expanded(IDS, tokens, image=7))
    assert predicted_length(arranged(IDS, image=7, mark=6, front=True), [2, 3], image=7) == 8 + 2


def test_pictures_stand_where_their_placeholders_stood():
    table = torch.arange(14.0).view(7, 2)  # the placeholder's id lies outside
    first, second = torch.full((2, 2), -1.0), torch.full((1, 2), -2.0)
    made = splice(torch.tensor(IDS), table, [first, second], image=7)
    assert made.tolist() == [[2, 3], [-1, -1], [-1, -1], [6, 7], [-2, -2], [10, 11]]
    assert torch.equal(splice(torch.tensor([1, 2]), table, [], image=7), table[1:3])


def test_neighbours_and_ends():
    table = torch.randn(7, 3)
    for ids in ([7, 7], [7, 1, 7], [1, 7, 7]):
        pictures = [torch.randn(3, 3), torch.randn(1, 3)]
        torch.testing.assert_close(
            splice(torch.tensor(ids), table, pictures, image=7),
            splice_reference(torch.tensor(ids), table, pictures, image=7),
        )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: visual_tokens(10, 14),
            "must be at least 1 and leave a token, got 10, 14 and 1; 384, 14 and 1 are the",
        ),
        (lambda: visual_tokens(384, 14, pool=0), "got 384, 14 and 0"),
        (lambda: arranged([7, 1], image=7, mark=6, front=True), r"begins with its start .* got \[7, 1\]… and mark 6"),
        (
            lambda: arranged([], image=7, mark=6, front=True),
            r"got \[\]… and mark 6 with placeholder 7; write the start",
        ),
        (lambda: arranged(IDS, image=7, mark=7, front=True), "and mark 7 with placeholder 7"),
        (lambda: expanded(IDS, [2], image=7), r"has 2 placeholders for 1 pictures; write one \(7\) for each of them"),
        (lambda: predicted_length(IDS, [1, 1, 1], image=7), "has 2 placeholders for 3 pictures"),
        (lambda: splice(torch.tensor(IDS), torch.zeros(7, 2), [], image=7), "has 2 placeholders for 0 pictures"),
    ],
)
def test_errors(make, says):
    with pytest.raises(VlmError, match=says):
        make()
