import math

import pytest
import torch

from foveal.train.bert4rec import BERT4Rec, cloze_loss, hit_rate, masked, ndcg, ranks


def model(**words):
    torch.manual_seed(0)
    return BERT4Rec(7, 6, dim=8, **words).eval()


def sequences(count=3, length=6):
    return torch.randint(7, (count, length), generator=torch.Generator().manual_seed(0))


def test_every_place_sees_both_sides_unless_it_is_causal():
    x = sequences(1)
    other = x.clone()
    other[0, -1] = (x[0, -1] + 1) % 7
    assert (model()(x) - model()(other))[0, 0].abs().max() > 1e-4
    apart = (model(causal=True)(x) - model(causal=True)(other)).abs().amax(2)[0]
    assert apart[:-1].max() < 1e-6 < apart[-1]


def test_the_next_item_is_asked_for_over_a_mask():
    x, net = sequences(2, 4), model()
    torch.testing.assert_close(net.next_scores(x), net(torch.cat([x, torch.full((2, 1), 7)], 1))[:, -1])
    long = sequences(2, 9)
    torch.testing.assert_close(net.next_scores(long), net.next_scores(long[:, -5:]))
    causal = model(causal=True)
    torch.testing.assert_close(causal.next_scores(long), causal(long[:, -6:])[:, -1])


def test_short_sequences_stand_at_the_end():
    net = model()
    with torch.no_grad():
        net.position[:2] += 1
        before = net(sequences(2, 4))
        net.position[:2] -= 1
    torch.testing.assert_close(net(sequences(2, 4)), before)


def test_masks_hide_a_share_at_least_one_and_sometimes_the_last_alone():
    x = torch.zeros(4000, 10, dtype=torch.int64)
    shown, hidden = masked(x, 7, share=0.3, last=0.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shown == 7, hidden)
    assert hidden.any(1).all()
    assert abs(hidden.float().mean() - 0.3) < 0.01
    _, hidden = masked(x, 7, share=1e-9, last=0.0)
    assert (hidden.sum(1) == 1).all()
    _, hidden = masked(x, 7, share=0.5, last=1.0)
    assert hidden[:, -1].all()
    assert hidden.sum() == len(x)


def test_the_causal_loss_predicts_each_next_item():
    net, x = model(causal=True), sequences(1)
    scores = net(x[:, :-1]).log_softmax(2)
    wanted = -torch.stack([scores[0, t, x[0, t + 1]] for t in range(5)]).mean()
    torch.testing.assert_close(cloze_loss(net, x), wanted)


def test_gradients_reach_all_parameters():
    net = model()
    cloze_loss(net, sequences()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_measures_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.2, 0.1]])
    places = ranks(scores, torch.tensor([2, 0]))
    assert places.tolist() == [2, 2]  # of two equal scores the wanted one comes last
    assert ndcg(torch.tensor([1, 2, 11])) == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert hit_rate(torch.tensor([1, 10, 11])) == pytest.approx(2 / 3)


def test_wrong_arguments_raise():
    with pytest.raises(ValueError, match="at least two items are wanted, got 1"):
        BERT4Rec(1, 4)
    with pytest.raises(ValueError, match="at most 6 places are wanted, got 7; keep the last ones"):
        model()(sequences(1, 7))
    with pytest.raises(ValueError, match="share must be between 0 and 1, got 1"):
        masked(sequences(), 7, share=1)
