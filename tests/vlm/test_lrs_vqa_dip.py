import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.vlm.lrs_vqa_dip import Level, RegionFocus, cut, distillation, levels, look, under
from foveal.vlm.method import VlmError


def pixels(tiles):
    return tiles.flatten(2).transpose(1, 2)


def brightest(tokens, _):
    return tokens[..., 0]


def test_the_papers_sizes():
    pyramid = levels((7000, 5000))
    assert [level.grid for level in pyramid] == [(3, 3), (6, 4), (11, 8), (21, 15)]
    assert pyramid[-1].size == (7056, 5040)
    assert [level.grid for level in levels((2048, 2048), tile=128, base=512)] == [(4, 4), (8, 8), (16, 16)]
    # smaller than the base: one level, its own size, enlarged to whole tiles
    assert levels((500, 700)) == (Level((672, 941), 336),)


def test_tiles_hold_the_pixels_and_end_in_nothing():
    picture = torch.rand(1, 2, 4, 6)
    tiles = cut(picture, Level((4, 6), 4))
    assert tiles.shape == (1, 1, 2, 2, 4, 4)
    torch.testing.assert_close(tiles[0, 0, 0], picture[0, :, :, :4])
    torch.testing.assert_close(tiles[0, 0, 1], F.pad(picture[0, :, :, 4:], (0, 2)))


def test_tokens_lead_to_the_tiles_under_them():
    coarse, fine = levels((16, 16), tile=4, base=8)
    kept = torch.zeros(1, 8, 8, dtype=torch.bool)
    kept[0, 0, 1] = kept[0, 1, 0] = kept[0, 7, 4] = True  # four tokens are a tile of the next level
    assert under(kept, coarse, fine)[0].nonzero().tolist() == [[0, 0], [3, 2]]
    # 6 of 8 pixels are picture; the next level's 12 have three tiles in 12 pixels
    assert under(kept, Level((6, 8), 4), Level((12, 16), 4))[0].nonzero().tolist() == [[0, 0], [2, 2]]


def test_one_bright_pixel_is_found_with_a_tile_a_level():
    picture = torch.zeros(2, 1, 32, 32)
    picture[0, 0, 13, 22] = picture[1, 0, 31, 0] = 1
    pyramid = levels((32, 32), tile=4, base=8)
    tiles = [cut(picture, level) for level in pyramid]
    found = look(picture.new_zeros(2, 1, 1), tiles, pyramid, pixels, brightest, keep=1 / 64)
    assert found.encoded.tolist() == [1 + 4 + 1 + 1] * 2
    torch.testing.assert_close(found.tokens[:, :, 0], torch.tensor([[0.0, 1], [0, 1]]))


def test_everything_is_read_when_everything_is_kept():
    picture = torch.rand(1, 1, 12, 20)
    pyramid = levels((12, 20), tile=4, base=10)
    tiles = [cut(picture, level) for level in pyramid]
    found = look(torch.full((1, 2, 1), 9.0), tiles, pyramid, pixels, brightest, keep=1.0)
    assert int(found.encoded) == 1 + sum(level.grid[0] * level.grid[1] for level in pyramid)
    # in reading order over the whole picture, behind the overview
    torch.testing.assert_close(found.tokens[0, 2:, 0], picture.flatten())
    assert found.real.all()


def test_padding_is_never_read():
    picture = torch.rand(1, 1, 10, 6)
    pyramid = (Level((10, 6), 4),)
    found = look(torch.zeros(1, 0, 1), [cut(picture, pyramid[0])], pyramid, pixels, brightest, keep=1.0)
    torch.testing.assert_close(found.tokens[0, :, 0], picture.flatten())


def test_scores_see_the_overview_and_only_what_was_encoded():
    seen = []
    picture, pyramid = torch.rand(1, 1, 16, 16), levels((16, 16), tile=4, base=8)

    def score(tokens, real):
        seen.append((tokens[0, :2, 0].tolist(), int(real.sum())))
        return tokens[..., 0]

    look(torch.ones(1, 2, 1), [cut(picture, level) for level in pyramid], pyramid, pixels, score, keep=1 / 64)
    assert seen == [([1.0, 1.0], 2 + 64), ([1.0, 1.0], 2 + 16)]


class Attend(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, words, tokens, real):
        scores = (self.scale * words @ tokens.transpose(1, 2)).masked_fill(~real[:, None], -torch.inf)
        attention = scores.softmax(2)
        return words + attention @ tokens, attention[:, None]


def test_the_module_copies_layers_and_scores_by_the_last_words_attention():
    torch.manual_seed(0)
    layers = [Attend(0.5), Attend(1.0), Attend(2.0)]
    module = RegionFocus(layers, (0, 2))
    words, tokens = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    real = torch.ones(2, 5, dtype=torch.bool)
    real[0, 4] = False
    between, _ = layers[0](words, tokens, real)
    torch.testing.assert_close(module.score(words, tokens, real), layers[2](between, tokens, real)[1][:, 0, -1])
    assert not module.score(words, tokens, real)[0, 4]
    module.layers[0].scale.data.fill_(7)
    assert float(layers[0].scale.detach()) == 0.5


def test_distillation_is_the_divergence_and_teaches_the_copy_alone():
    p, q = torch.tensor([[[0.5, 0.25, 0.25]]]), torch.tensor([[[0.2, 0.4, 0.4]]], requires_grad=True)
    by_hand = 0.5 * torch.tensor(2.5).log() + 0.5 * torch.tensor(0.625).log()
    torch.testing.assert_close(distillation([q], [p]), by_hand)
    torch.testing.assert_close(distillation([3 * p], [p]), torch.tensor(0.0))  # parts of rows count as rows
    p.requires_grad_(True)
    distillation([q, q], [p, p]).backward()
    assert q.grad is not None
    assert p.grad is None


def test_distillation_brings_attention_closer():
    torch.manual_seed(0)
    teacher, words, tokens = Attend(3.0), torch.randn(4, 1, 8), torch.randn(4, 6, 8)
    real = torch.ones(4, 6, dtype=torch.bool)
    module = RegionFocus([Attend(0.1)], (0,))
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    _, theirs = teacher(words, tokens, real)
    losses = []
    for _ in range(40):
        value = distillation(module(words, tokens, real), [theirs[:, :, -1]])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_errors():
    with pytest.raises(VlmError, match=r"sizes must be at least 1 pixel, got a picture of \(0, 4\), tiles of 336 and"):
        levels((0, 4))
    pyramid = levels((16, 16), tile=4, base=8)
    with pytest.raises(VlmError, match=r"the levels have grids \[\(2, 2\), \(4, 4\)\], got tiles of \[\(2, 2\)\]; cut"):
        look(torch.zeros(1, 0, 1), [torch.zeros(1, 2, 2, 1, 4, 4)], pyramid, pixels, brightest)
    with pytest.raises(VlmError, match=r"keep must be in \(0, 1\], got 0"):
        look(torch.zeros(1, 0, 1), [], pyramid, pixels, brightest, keep=0)
    with pytest.raises(VlmError, match=r"picked must be numbers of the 1 layers, from 0, got \(1,\)"):
        RegionFocus([Attend(1.0)], (1,))
