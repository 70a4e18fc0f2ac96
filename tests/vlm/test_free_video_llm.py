import pytest
import torch
import torch.nn.functional as F

from foveal.vlm.free_video_llm import Clip, FreeVideoLLM, corners, cropped, halved, likest, region, spread
from foveal.vlm.method import VlmError


def clip(frames=50, grid=(24, 24), channels=2):
    generator = torch.Generator().manual_seed(0)
    n = grid[0] * grid[1]
    shapes = ((frames, n, channels), (5,), (frames, 5), (frames, n, 5))
    return Clip(*(torch.randn(shape, generator=generator) for shape in shapes), grid)


def test_tokens_of_the_papers_configuration():
    assert FreeVideoLLM().count(50, (24, 24)) == 3 * 231 + 5 * 231 + 50 * 16 == 2648
    assert FreeVideoLLM()(clip()).shape == (2648, 2)


@pytest.mark.parametrize("frames", [1, 4, 50, 61])
@pytest.mark.parametrize("grid", [(4, 6), (5, 8)])
def test_tokens_of_other_clips(frames, grid):
    method = FreeVideoLLM(2, 5, 7, 0.3, 3, 0.1)
    assert len(method(clip(frames, grid))) == method.count(frames, grid)


def test_paths_stand_one_after_the_other():
    given = clip(9, (4, 4))
    slow, middle, fast = FreeVideoLLM(2, 0, 0), FreeVideoLLM(0, 3, 0), FreeVideoLLM(0, 0, 50)
    torch.testing.assert_close(
        FreeVideoLLM(2, 3, 50)(given), torch.cat([path(given) for path in (slow, middle, fast)]), rtol=0, atol=0
    )


def test_a_whole_frame_is_not_cropped():
    given = clip(4, (6, 4))
    kept = FreeVideoLLM(0, 4, 0, ratio=1.0)(given)
    torch.testing.assert_close(kept, halved(given.tokens).flatten(0, 1), rtol=0, atol=0)


def test_fast_path_of_too_many_frames_takes_the_likest():
    given = clip(9, (4, 4))
    best = F.cosine_similarity(given.text, given.frames, dim=-1).topk(3).indices.sort().values
    assert likest(given.text, given.frames, 3).tolist() == best.tolist()
    wanted = given.tokens[best].flatten(0, 1)  # averages of single tokens
    torch.testing.assert_close(FreeVideoLLM(0, 0, 3, side=4)(given), wanted)


def test_frames_by_hand():
    frames = torch.tensor([[1.0, 0], [0, 3], [2, 2], [-9, 1]])
    assert likest(torch.tensor([0.0, 5]), frames, 2).tolist() == [1, 2]
    assert likest(torch.tensor([0.0, 5]), frames, 7).tolist() == [0, 1, 2, 3]
    assert spread(50, 5).tolist() == [0, 10, 20, 30, 40]
    assert spread(7, 3).tolist() == [0, 2, 4]
    assert spread(2, 5).tolist() == [0, 1]


def test_neighbours_of_a_row_become_one():
    assert halved(torch.tensor([[[1.0], [4], [3], [2]]])).tolist() == [[[4], [3]]]


@pytest.mark.parametrize(("at", "top", "left"), [((0, 0), 0, 0), ((5, 3), 3, 2), ((3, 2), 2, 1)])
def test_region_lies_around_the_voters_and_inside(at, top, left):
    similar = torch.zeros(6, 4)
    similar[at] = 1
    assert region((6, 4), 0.25) == (3, 2)
    assert corners(similar.flatten()[None], (6, 4), 0.25, 0.05).tolist() == [[top, left]]


def test_a_planted_region_is_what_is_read():
    similar = torch.zeros(2, 8, 8)
    similar[0, 1:5, 4:8] = similar[1, 4:8, 0:4] = 1
    begin = corners(similar.flatten(1), (8, 8), 0.25)
    assert begin.tolist() == [[0, 3], [3, 0]]  # the mean of rows 1 … 4, 2.5, is rounded down
    seen = cropped(similar.flatten(1)[..., None], begin, (8, 8), (4, 4))
    assert seen.unflatten(1, (4, 4))[0, ..., 0].tolist() == [[0] * 4, *[[0, 1, 1, 1]] * 3]


def test_errors():
    x = torch.zeros(2, 6, 3)
    with pytest.raises(
        VlmError, match=r"must fit, got \[\(2, 6, 3\), \(3,\), \(2, 3\), \(2, 6, 3\)\] on a grid of 2×2; "
    ):
        Clip(x, x[0, 0], x[:, 0], x)
    with pytest.raises(VlmError, match="columns of a frame must be even, got 3; pairs of neighbours become one token"):
        Clip(x, x[0, 0], x[:, 0], x, (2, 3))
    with pytest.raises(VlmError, match=r"slow, middle and fast must be frames, not all 0, .* got \(0, 0, 0\), 4 and "):
        FreeVideoLLM(0, 0, 0)
    with pytest.raises(VlmError, match=r"ratio and voters in \(0, 1\], got \(3, 5, 50\), 4 and \[1.5, 0.1\]"):
        FreeVideoLLM(ratio=1.5, voters=0.1)
