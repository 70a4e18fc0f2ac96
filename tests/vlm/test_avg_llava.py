import pytest
import torch
import torch.nn.functional as F

from foveal.vlm.avg_llava import Router, filtered, rglf, scaled, shapes
from foveal.vlm.method import VlmError


def test_grids_of_the_paper():
    assert shapes((24, 24)) == [(24, 24), (24, 12), (12, 12), (12, 6), (6, 6)]
    assert [x.shape[1] for x in scaled(torch.rand(1, 576, 2), (24, 24))] == [576, 288, 144, 72, 36]
    assert Router(8).tokens == (576, 288, 144, 72, 36)


def test_means_by_hand():
    x = torch.arange(8.0)[None, :, None]  # 2×4
    made = [y.flatten().tolist() for y in scaled(x, (2, 4), 4)]
    assert made == [list(range(8)), [0.5, 2.5, 4.5, 6.5], [2.5, 4.5], [3.5]]


def test_grids_of_several_views():
    x = torch.rand(2, 3, 16, 5)
    for together, alone in zip(scaled(x, (4, 4)), scaled(x[1, 2][None], (4, 4)), strict=True):
        torch.testing.assert_close(together[1, 2], alone[0])


def test_words_like_the_picture_come_first():
    visual = torch.tensor([[[1.0, 0], [3, 0]]])
    words = torch.tensor([[[0.0, 1], [5, 0], [1, 1], [9, 0]]])
    assert filtered(words, visual, 2).tolist() == [[[5, 0], [9, 0]]]
    real = torch.tensor([[True, False, True, False]])
    assert filtered(words, visual, 3, real).tolist() == [[[1, 1], [0, 1], [0, 0]]]
    assert filtered(words, visual, 6).shape == (1, 6, 2)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    net = Router(8, (4, 4), words=3).eval()
    x, words = torch.rand(2, 1, 16, 8), torch.rand(2, 2, 8)
    padded, real = torch.cat((words, torch.rand(2, 4, 8)), 1), torch.tensor([[True, True, *[False] * 4]] * 2)
    torch.testing.assert_close(net(x, padded, real), net(x, words))


def test_views_vote_together():
    torch.manual_seed(0)
    net = Router(8, (4, 4), words=3).eval()
    x, words = torch.rand(2, 1, 16, 8), torch.rand(2, 4, 8)
    alone = net(x, words)
    assert alone.shape == (2, 5)
    torch.testing.assert_close(net(x.expand(-1, 3, -1, -1), words), alone)
    one = net(torch.cat((x[:1], torch.rand(1, 2, 16, 8)), 1), words[:1])
    assert not torch.allclose(one, alone[:1])
    net(x, words).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_the_word_decides():
    torch.manual_seed(0)
    net = Router(8, (4, 4), words=1, drop=0.0).eval()
    x = torch.rand(1, 1, 16, 8)
    assert not torch.allclose(net(x, torch.ones(1, 1, 8)), net(x, -torch.ones(1, 1, 8)))


def test_loss_by_hand():
    logits, losses = torch.log(torch.tensor([[0.25, 0.75]])), torch.tensor([[1.0, 3.0]])
    # fine is better by 2 nats, and its score is log 3 lower
    wanted = torch.log(torch.tensor(3.0)) + 2 - 0.1 * torch.log(torch.tensor(0.25))
    torch.testing.assert_close(rglf(logits, losses), wanted)
    torch.testing.assert_close(
        rglf(logits.flip(1), losses), 2 - torch.log(torch.tensor(3.0)) - 0.1 * torch.tensor(0.75).log()
    )


def test_loss_is_cross_entropy_where_all_grids_are_as_good_and_rightly_ranked():
    logits = torch.tensor([[1.0, 2, 3]])
    torch.testing.assert_close(rglf(logits, torch.ones(1, 3)), 0.1 * F.cross_entropy(logits, torch.tensor([2])))


def test_slack_prefers_the_coarse():
    losses = torch.tensor([[1.0, 1.05, 2.0]])
    fine, coarse = torch.tensor([[5.0, 0, 0]]), torch.tensor([[0.0, 5, 0]])
    assert rglf(fine, losses) < rglf(coarse, losses)
    assert rglf(fine, losses, slack=0.1) > rglf(coarse, losses, slack=0.1)


def test_errors():
    with pytest.raises(VlmError, match="5 grids halve rows 2 times and columns 2 times, got 6×8; take fewer grids"):
        shapes((6, 8))
    with pytest.raises(VlmError, match=r"losses must be one a grid, \(2, 5\), got \(2, 4\); run the model on all"):
        rglf(torch.rand(2, 5), torch.rand(2, 4))
