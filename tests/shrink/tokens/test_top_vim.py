import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.measure.cost import count_macs
from foveal.models.backbone.plainmamba import plainmamba, plainmamba_l1
from foveal.models.backbone.vim import vim
from foveal.ops import selective_scan
from foveal.shrink.tokens.top_vim import ToPViM, aligned_scan, keep_tokens, score_tokens


def networks(depth=3):
    torch.manual_seed(0)
    found = [vim(8, depth, 2, 4, num_classes=3), plainmamba(8, depth, 0, 2, 4, num_classes=3)]
    return [model.eval() for model in found]


def test_scores_are_means_of_what_is_above_zero():
    y = torch.tensor([[[1.0, -5.0], [3.0, 2.0]]])
    assert score_tokens(y).tolist() == [[2.0, 1.0]]


def test_the_highest_stay_in_order():
    score = torch.tensor([[0.1, 0.9, 0.5, 0.7], [3.0, 1.0, 2.0, 0.0]])
    assert keep_tokens(score, 2).tolist() == [[1, 3], [0, 2]]
    assert keep_tokens(score, 4).tolist() == [[0, 1, 2, 3]] * 2


def test_an_aligned_scan_is_the_whole_scan_of_zeros_elsewhere():
    torch.manual_seed(0)
    generator = {"dtype": torch.float64}
    u, delta = torch.randn(2, 4, 9, **generator), torch.rand(2, 4, 9, **generator)
    rates, skip, idle = -torch.rand(4, 3, **generator) - 0.1, torch.randn(4, **generator), torch.rand(4, **generator)
    into, out = (torch.randn(2, 3, 9, **generator) for _ in range(2))
    times = torch.tensor([[0, 3, 4, 8], [2, 5, 6, 7]])
    mask = torch.zeros(2, 1, 9, **generator).scatter(2, times[:, None], 1.0)
    whole = selective_scan(u * mask, torch.where(mask > 0, delta, idle[:, None]), rates, into, out, skip)

    def at(values):
        return values.gather(2, times[:, None].expand(-1, values.shape[1], -1))

    parts = [at(values) for values in (u, delta)]
    found = aligned_scan(*parts, rates, at(into), at(out), skip, times=times, idle=idle)
    torch.testing.assert_close(found, at(whole), rtol=0, atol=1e-12)
    naive = aligned_scan(*parts, rates, at(into), at(out), skip, times=times, idle=None)
    torch.testing.assert_close(naive, selective_scan(*parts, rates, at(into), at(out), skip))
    assert (naive - found).abs().max() > 0.01


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("size", [(16, 12), (20, 20), (9, 4)])
def test_keeping_all_changes_nothing(align, size):
    x = torch.rand(2, 3, *size)
    for model in networks():
        pruned = ToPViM(after=(1, 2), keep=1.0, align=align).apply(model)
        torch.testing.assert_close(pruned(x), model(x), rtol=0, atol=1e-5)
        tokens, places = pruned.forward_features(x)
        torch.testing.assert_close(tokens, model.forward_features(x), rtol=0, atol=1e-4)
        assert places.tolist() == [list(range(tokens.shape[1]))] * 2


@pytest.mark.parametrize("align", [True, False])
def test_as_many_stay_as_asked_and_the_class_token_with_them(align):
    x = torch.rand(2, 3, 20, 28)
    for model in networks(4):
        own = model.num_prefix_tokens
        pruned = ToPViM(after=(1, 3), keep=0.5, align=align).apply(model)
        tokens, places = pruned.forward_features(x)
        assert places.shape == (2, 9 + own)  # 35 to 18 to 9 patches
        assert tokens.shape == (2, 9 + own, 8)
        assert (places.diff(dim=1) > 0).all()
        assert not own or (places == 17).any(1).all()
        assert pruned(x).shape == (2, 3)


def test_the_class_token_is_what_the_head_reads():
    model = networks()[0]
    pruned = ToPViM(after=(1,), keep=0.4).apply(model)
    x = torch.rand(2, 3, 12, 20)
    tokens, places = pruned.forward_features(x)
    own = torch.stack([row[at == 7][0] for row, at in zip(tokens, places, strict=True)])
    torch.testing.assert_close(pruned(x), model.head(own))


def test_a_pruned_network_learns():
    for model in networks():
        pruned = ToPViM(after=(1, 2), keep=0.6).apply(model.train())
        F.cross_entropy(pruned(torch.rand(2, 3, 16, 12)), torch.tensor([0, 1])).backward()
        assert {name for name, value in pruned.named_parameters() if value.grad is None} == set()
        assert pruned.model is model


def test_multiply_adds_fall_with_the_tokens():
    model = vim(16, 4, 4, 4)
    half = ToPViM(after=(1,), keep=0.5).apply(model)
    whole, fewer = (count_macs(network, (1, 3, 64, 64)) for network in (model, half))
    assert fewer / whole == pytest.approx(1 / 4 + 3 / 8, abs=0.05)


def test_wrong_schedules_raise():
    for after in ((), (2, 1), (0,), (2, 2)):
        with pytest.raises(ValueError, match="after must be rising numbers of blocks from 1 on, got"):
            ToPViM(after=after)
    for keep in (0.0, 1.1):
        with pytest.raises(ValueError, match=rf"keep must be in \(0, 1\], got {keep}"):
            ToPViM(keep=keep)


def test_networks_that_cannot_be_pruned_raise():
    with pytest.raises(TypeError, match="model must be a Vim or a PlainMamba, got Linear"):
        ToPViM().apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"after must stay below the 3 blocks, got \(1, 3\)"):
        ToPViM(after=(1, 3)).apply(networks()[0])
    with pytest.raises(ValueError, match="block 1 convolves the whole map; prune after 2 or later"):
        ToPViM(after=(1,)).apply(plainmamba_l1(dim=8, depth=3, state=2))
    with pytest.raises(ValueError, match="build the network with released=False"):
        ToPViM(after=(1,)).apply(plainmamba(8, 3, 0, 2, released=True))


def test_after_a_convolving_block_it_can_be_pruned():
    torch.manual_seed(0)
    model = plainmamba_l1(dim=8, depth=3, state=2, patch_size=4, num_classes=3).eval()
    assert ToPViM(after=(2,), keep=0.5).apply(model)(torch.rand(1, 3, 16, 12)).shape == (1, 3)
