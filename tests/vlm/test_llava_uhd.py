import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.vlm.llava_uhd import COMMA, NEWLINE, Plan, Resampler, Sliced, cost, encoded, plan, score, sines, slices
from foveal.vlm.method import VlmError


class Patches(nn.Module):
    """Encoder: each patch as it is."""

    def forward(self, x):
        return F.unfold(x, 2, stride=2).transpose(1, 2)


def model(**words):
    torch.manual_seed(0)
    return Sliced(Patches(), Resampler(12, 5, queries=3, num_heads=2), img_size=8, patch_size=2, **words)


def test_the_papers_picture():
    made = plan((1088, 672))
    assert made.grid == (3, 2)
    assert made.tokens == 7 * 64 + 3 * 1 + 3
    assert made.shapes == ((30, 18), *[(24, 23)] * 6)
    assert 0.9 < cost(made) / cost(Plan((336, 336), (1, 1)), resample=False) < 0.95


def test_a_picture_that_fits_is_not_cut():
    made = plan((300, 376))
    assert (made.grid, made.boxes, made.schema, made.tokens) == ((1, 1), (), (0,), 64)


def test_score_by_hand():
    assert score((100, 100), (1, 1)) == 0
    assert score((100, 200), (1, 2)) == 0
    assert score((100, 200), (2, 1)) == pytest.approx(-math.log(4))
    assert score((200, 100), (1, 1), (40, 20)) == 0


def test_ties_go_to_fewer_slices():
    # 3 slices: N - 1, N and N + 1 hold no square grid but 2×2, which is best for a square picture
    assert plan((500, 500)).grid == (2, 2)
    # as far from square as each other: (1, 3) and (3, 1); fewer columns
    assert plan((500, 500), most=3).grid in ((1, 2), (2, 1))
    assert plan((500, 500), most=3).grid == (2, 1)


@pytest.mark.parametrize("size", [(7, 61), (500, 333), (97, 98), (61, 7)])
def test_boxes_tile_in_reading_order(size):
    made = plan(size, encoder=(20, 20), patch=4, queries=1)
    times = torch.zeros(size)
    for top, left, bottom, right in made.boxes:
        times[top:bottom, left:right] += 1
    assert (times == 1).all()
    assert list(made.boxes) == sorted(made.boxes)
    assert len(made.boxes) == made.grid[0] * made.grid[1]


def test_schema_and_tokens():
    made = Plan((20, 30), (2, 3), queries=5)
    assert made.schema == (0, 1, COMMA, 2, COMMA, 3, NEWLINE, 4, COMMA, 5, COMMA, 6, NEWLINE)
    assert made.tokens == 5 * 7 + 2 * 2 + 2


@pytest.mark.parametrize("size", [(1, 1), (10, 13), (1, 1000), (1000, 1), (24, 23)])
def test_slices_are_encoded_in_no_more_patches_and_in_their_shape(size):
    rows, columns = encoded(size, 576)
    assert 1 <= rows * columns <= 576
    if 1 / 20 < size[0] / size[1] < 20:
        assert rows / columns == pytest.approx(size[0] / size[1], rel=0.1)


def test_slices_hold_the_pixels_under_them():
    picture = torch.zeros(1, 1, 16, 24)
    picture[..., :8, 16:] = 1
    made = plan((16, 24), encoder=(8, 8), patch=2, queries=1)
    assert made.grid == (2, 3)
    seen = slices(picture, made)
    assert [float(x.mean()) for x in seen[1:]] == pytest.approx([0, 0, 1, 0, 0, 0], abs=1e-5)
    assert float(seen[0].mean()) == pytest.approx(1 / 6, abs=0.03)
    torch.testing.assert_close(seen[3], torch.ones(1, 1, 8, 8))


def test_tokens_of_a_model_follow_the_schema():
    net = model()
    x = torch.rand(2, 3, 16, 24)
    tokens = net(x)
    assert tokens.shape == (2, net.plan((16, 24)).tokens, 5)
    torch.testing.assert_close(tokens[:, 3 + 3], net.separators[0].expand(2, 5))  # behind overview and first slice
    torch.testing.assert_close(tokens[:, -1], net.separators[1].expand(2, 5))
    alone = net.resampler(net.encoder(x[..., :8, :8]), (4, 4))
    torch.testing.assert_close(tokens[:, 3:6], alone, atol=1e-5, rtol=1e-4)
    tokens.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_positions_tell_row_and_column():
    assert sines(3, 5, 8).shape == (15, 8)
    torch.testing.assert_close(sines(3, 5, 8)[7], torch.cat((sines(3, 1, 8)[1, :4], sines(1, 5, 8)[2, 4:])))


def test_an_overview_alone():
    assert model(most=1)(torch.rand(1, 3, 16, 24)).shape == (1, 3, 5)


def test_errors():
    with pytest.raises(VlmError, match="must be at least 1 and the encoder at least one patch, got a picture of "):
        plan((0, 5))
    with pytest.raises(VlmError, match=r"the plan is for \(4, 4\) pixels, got a picture of \(4, 5\); plan anew"):
        slices(torch.rand(1, 3, 4, 5), plan((4, 4)))
    with pytest.raises(ValueError, match="dim must be a multiple of 4 and of num_heads, got 10 and 5 heads"):
        Resampler(10, 4, num_heads=5)
