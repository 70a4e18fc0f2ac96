import pytest
import torch

from foveal.vlm.dynamic_vlm import Compressor, compress, side
from foveal.vlm.method import VlmError


def test_sides_of_the_papers_configuration():
    assert [side(frames) for frames in (1, 5, 6, 32, 100, 128, 800, 3200)] == [24, 24, 23, 10, 5, 5, 2, 1]
    assert side(1, budget=50, most=49) == 7


@pytest.mark.parametrize("budget", [1, 7, 128, 1000])
def test_no_clip_exceeds_the_budget_and_no_larger_side_fits(budget):
    for frames in range(1, min(budget, 128) + 1):
        s = side(frames, budget=budget, most=100)
        assert frames * s * s <= budget
        assert s == 10 or frames * (s + 1) ** 2 > budget


def test_means_by_hand():
    x = torch.arange(16.0)[None, :, None]
    assert compress(x, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert compress(x, 1).flatten().tolist() == [7.5]


def test_as_many_tokens_as_there_are_change_nothing():
    x = torch.rand(2, 15, 3)
    assert compress(x, 5, grid=(3, 5)) is x
    assert compress(x, 4, grid=(3, 5)).shape == (2, 12, 3)


def test_clips_of_several_lengths():
    net = Compressor(3, 5, budget=20, most=9, least=1).eval()
    clips = [torch.rand(length, 16, 3, requires_grad=True) for length in (1, 2, 5, 20)]
    made = net(clips)
    assert [tuple(y.shape) for y in made] == [(9, 5), (18, 5), (20, 5), (20, 5)]
    torch.testing.assert_close(made[2], net.project(compress(clips[2], 2)).flatten(0, 1), rtol=0, atol=0)
    sum(y.sum() for y in made).backward()
    assert all(p.grad is not None for p in (*net.parameters(), *clips))


def test_training_draws_a_side_for_each_clip():
    torch.manual_seed(0)
    net = Compressor(1, 1, budget=1000, most=16, least=4)
    assert {net.side(3) for _ in range(50)} == {2, 3, 4}
    assert {net.side(100) for _ in range(50)} == {2, 3}
    assert {net.eval().side(3) for _ in range(5)} == {4}


def test_errors():
    with pytest.raises(
        VlmError, match="frames must be in 1…5, the budget, and most at least 1, got 6 and 576; take fewe"
    ):
        side(6, budget=5)
    with pytest.raises(VlmError, match=r"a frame has 6 tokens, which is no grid of 2×2; give grid=\(h, w\)"):
        compress(torch.rand(1, 6, 1), 1)
    with pytest.raises(ValueError, match="least must be in 1…9, the most tokens of a frame, got 10"):
        Compressor(1, 1, most=9, least=10)
