import numpy as np
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import foveal
from foveal.measure.cost import count_macs
from foveal.runtime.route import recording
from foveal.shrink.tokens.foveate import look
from foveal.shrink.tokens.sparsevit import SparseViT, draw_keep, search_keep, set_keep_

SIZE = (16, 24)  # with patches of 2: maps of 8×12 and 4×6, windows of 2×2


def swin():
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 2, "num_classes": 3}
    model = SwinTransformer(SIZE, 2, drop_path_rate=0.0, **sizes).eval()
    for name, value in model.named_parameters():  # timm's start is nearly the identity
        if "norm" not in name:
            nn.init.normal_(value, std=0.2)
    return model


def pictures(batch=2):
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_windows_of_the_largest_norm_are_worked_on():
    model = SparseViT((0.25, 1.0)).apply(swin())
    x = torch.zeros(1, 8, 12, 8)
    x[:, 4:6, 6:10] = torch.randn(1, 2, 4, 8)  # windows 15 and 16 of 24
    model.layers[0].blocks.keep = 2 / 24
    with torch.no_grad():
        moved = (model.layers[0].blocks(x) - x).abs().sum(-1)[0]
    # the shifted block reaches one row and column further
    assert moved[4:6, 6:10].min() > 0
    assert moved[:3].max() == moved[7:].max() == moved[:, :5].max() == 0


def test_everything_kept_is_the_stock_network():
    x = pictures()
    for step in (SparseViT(1.0), SparseViT((1.0, 0.999))):  # rounded up, 0.999 keeps all six windows
        assert torch.equal(step.apply(swin())(x), swin()(x))
    assert foveal.foveate(swin(), 1, method="sparsevit")(x).equal(swin()(x))
    assert SparseViT(0.3).apply(swin()).state_dict().keys() == swin().state_dict().keys()


def test_random_windows_are_the_same_for_every_call_and_drawn_anew_in_training():
    model, x = SparseViT(0.3, by="random").apply(swin()), pictures()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        assert not torch.equal(model.train()(x), model(x))


def test_half_of_the_windows_take_half_of_the_blocks_work():
    shape = (1, 3, *SIZE)
    whole, half, least = (count_macs(SparseViT((keep, 1.0)).apply(swin()), shape) for keep in (1.0, 0.5, 1 / 24))
    # 12 and 23 of the first stage's 24 windows are skipped
    assert 0 < (whole - half) * 23 == (whole - least) * 12


def test_the_route_tells_the_windows_of_all_stages():
    model = SparseViT((0.5, 1.0)).apply(swin())
    route = look(model, pictures())
    assert route.counts == (12, 12, 6, 6)
    assert route.of == (24, 24, 6, 6)
    assert route.unit == "windows"
    assert route.work.shape == (2, 8, 12)
    assert route.work.min() == pytest.approx(0.5)
    assert route.work.mean() == pytest.approx(0.75)
    # the second stage covers two rows and columns of the first with one of its own
    set_keep_(model, (1.0, 1 / 6))
    with recording() as routes, torch.no_grad():
        model(pictures())
    assert len(routes) == 1
    halved = routes[0].work[:, ::2, ::2]
    assert np.array_equal(halved.repeat(2, 1).repeat(2, 2), routes[0].work)
    assert routes[0].work.mean() == pytest.approx(0.5 + 0.5 / 6)


def test_adaptation_draws_shares_and_every_parameter_learns():
    model = SparseViT(1.0).apply(swin().train())
    drawn = [draw_keep(2, seed=seed) for seed in range(50)]
    assert draw_keep(2, seed=3) == drawn[3]
    assert {share for pair in drawn for share in pair} == {0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}
    set_keep_(model, drawn[0])(pictures()).sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_the_search_finds_the_best_shares_within_the_budget():
    model, shape = SparseViT((0.7, 0.6)).apply(swin()), (1, 3, *SIZE)

    def quality(network):
        first, second = (stage.blocks.keep for stage in network.layers)
        return first + 2 * second

    found = search_keep(model, quality, budget=0.7, shape=shape, shares=(0.25, 1.0), population=6)
    assert found == (0.25, 1.0)
    assert [stage.blocks.keep for stage in model.layers] == [0.7, 0.6]
    with pytest.raises(ValueError, match=r"budget 0.9 cannot be met: the least that these shares cost is 1\.000"):
        search_keep(model, quality, budget=0.9, shape=shape, shares=(1.0,))


def test_wrong_settings_raise():
    for keep in (0.0, 1.5, (0.5, -0.1)):
        with pytest.raises(ValueError, match=r"keep must be in \(0, 1\], got .*; 0.4 skips 60 % of the windows"):
            SparseViT(keep)
    with pytest.raises(ValueError, match="by must be one of norm, random, got 'mean'"):
        SparseViT(by="mean")
    with pytest.raises(ValueError, match="keep must be one share or one for each of 2 stages, got 3"):
        SparseViT((0.5, 0.5, 0.5)).apply(swin())
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\], got 2"):
        search_keep(SparseViT().apply(swin()), lambda _: 0.0, budget=2, shape=(1, 3, *SIZE))


def test_networks_that_it_does_not_know_raise():
    with pytest.raises(TypeError, match="model must be a Swin transformer of timm, got Linear"):
        SparseViT().apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear skips no windows; apply SparseViT to it first"):
        set_keep_(nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match="model skips windows already; change its shares by set_keep_"):
        SparseViT().apply(SparseViT().apply(swin()))
    model = swin()
    model.layers[0].blocks[1] = nn.Identity()
    with pytest.raises(TypeError, match="blocks must be timm's SwinTransformerBlock, got Identity"):
        SparseViT().apply(model)
