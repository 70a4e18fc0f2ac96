import math

import pytest
import torch
from torch import nn

from foveal.train.diffusion import Draw, cosine_schedule, ordinary_pair, q_sample
from foveal.train.restore.sam_diffsr import Modulated, coefficient, embedding, rotated_ones


def turned(height, width):
    """Pairs of ones, turned as rotary embeddings turn a token of `width` numbers at position y."""
    made = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for pair in range(width // 2):
            angle = y * 10000 ** (-2 * pair / width)
            turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            made[y, 2 * pair : 2 * pair + 2] = turn.double() @ torch.ones(2).double()
    return made


@pytest.mark.parametrize(("height", "width"), [(1, 2), (5, 8), (9, 4)])
def test_ones_are_turned_as_rotary_embeddings_do(height, width):
    torch.testing.assert_close(rotated_ones(height, width).double(), turned(height, width), rtol=0, atol=1e-6)


def test_an_odd_width_lacks_the_last_of_a_pair():
    assert rotated_ones(3, 5).shape == (3, 5)
    torch.testing.assert_close(rotated_ones(3, 5)[:, 4], (torch.arange(3) * 10000 ** (-4 / 5)).cos()
                               - (torch.arange(3) * 10000 ** (-4 / 5)).sin())  # fmt: skip


@pytest.mark.parametrize("share", [True, False])
def test_each_region_has_its_number(share):
    labels = torch.randint(0, 6, (3, 7, 10), generator=torch.Generator().manual_seed(0))
    labels[1] = 5
    out, ones = embedding(labels, share=share), turned(7, 10)
    assert out.shape == (3, 1, 7, 10)
    for b in range(3):
        for label in labels[b].unique():
            inside = labels[b] == label
            wanted = float(ones[inside].sum() / (70 if share else inside.sum()))
            assert out[b, 0][inside].unique().tolist() == pytest.approx([wanted], abs=1e-6)


def test_names_of_regions_do_not_matter():
    labels = torch.randint(0, 4, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(embedding(labels), embedding(torch.tensor([9, 0, 4, 2])[labels]))
    assert embedding(labels[:0]).shape == (0, 1, 6, 6)


def test_the_coefficient_by_the_formula():
    alpha_bar = torch.tensor([0.9, 0.72, 0.36])
    expected = [0.1**0.5 * 0.1, 0.28**0.5 * 0.2, 0.64**0.5 * 0.5]
    torch.testing.assert_close(coefficient(alpha_bar), torch.tensor(expected))


def test_noise_and_noisy_picture_move_by_coefficient_times_embedding():
    torch.manual_seed(0)
    alpha_bar, t = cosine_schedule(100), torch.tensor([3, 60, 99])
    clean, noise = torch.randn(2, 3, 3, 6, 8)
    embedded = embedding(torch.randint(0, 3, (3, 6, 8)))
    pair = Modulated(embedded, coefficient(alpha_bar))
    noisy, wanted = pair(nn.Identity(), Draw(clean, noise, t, alpha_bar[t]))
    for i, time in enumerate(t):
        torch.testing.assert_close(wanted[i], noise[i] + coefficient(alpha_bar)[time] * embedded[i])
    torch.testing.assert_close(noisy, q_sample(clean, wanted, alpha_bar[t]))


def test_an_embedding_of_0_is_the_ordinary_pair():
    torch.manual_seed(0)
    alpha_bar, t = cosine_schedule(10), torch.tensor([1, 9])
    draw = Draw(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), t, alpha_bar[t], None, "v")
    pair = Modulated(torch.zeros(2, 1, 4, 4), coefficient(alpha_bar))
    for ours, theirs in zip(pair(nn.Identity(), draw), ordinary_pair(nn.Identity(), draw), strict=True):
        assert torch.equal(ours, theirs)


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match=r"labels must be integers, \(B, H, W\), got torch.float32, \(1, 2, 2\)"):
        embedding(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match=r"labels must be integers, \(B, H, W\), got torch.int64, \(2, 2\)"):
        embedding(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="labels must be at least 0, got -1"):
        embedding(torch.full((1, 2, 2), -1))
