import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import foveal
from foveal.measure.cost import count_macs
from foveal.models.backbone.plainmamba import plainmamba, plainmamba_l1
from foveal.models.backbone.vim import vim
from foveal.ops import selective_scan
from foveal.shrink.rebuild import Origin, build, load, save
from foveal.shrink.tokens.foveate import look
from foveal.shrink.tokens.top_vim import ToPViM, aligned_scan, mix, score_tokens


def networks(depth=3):
    torch.manual_seed(0)
    found = [vim(8, depth, 2, 4, num_classes=3), plainmamba(8, depth, 0, 2, 4, num_classes=3)]
    return [model.eval() for model in found]


def test_scores_are_means_of_what_is_above_zero():
    y = torch.tensor([[[1.0, -5.0], [3.0, 2.0]]])
    assert score_tokens(y).tolist() == [[2.0, 1.0]]


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


@pytest.mark.parametrize("size", [(16, 12), (20, 20), (9, 4)])
def test_keeping_all_is_the_whole_network(size):
    x = torch.rand(2, 3, *size)
    for model in networks():
        pruned = ToPViM(after=(1, 2), keep=1.0).apply(copy.deepcopy(model))
        assert torch.equal(pruned(x), model(x))
        assert torch.equal(pruned.forward_features(x), model.forward_features(x))
        route = look(pruned, x)
        assert route.share == 1
        assert np.all(route.work == 1)


@pytest.mark.parametrize("align", [True, False])
def test_a_mixer_of_all_tokens_is_the_blocks_own(align):
    tokens, places = torch.randn(2, 12, 8), torch.arange(12).expand(2, -1)
    for model in networks():
        mixer, size = model.blocks[0].mixer, (4, 3)
        found, y = mix(mixer, tokens, places, size, 12, align)
        whole = mixer(tokens, size) if model.num_prefix_tokens == 0 else mixer(tokens)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
        assert y.shape == (2, 16, 12)


@pytest.mark.parametrize("align", [True, False])
def test_the_route_tells_how_many_stayed_and_where(align):
    x = torch.rand(2, 3, 20, 28)
    for model in networks(4):
        own = model.num_prefix_tokens
        pruned = ToPViM(after=(1, 3), keep=0.5, align=align).apply(model)
        route = look(pruned, x)
        # 35 to 18 to 9 patches
        assert route.counts == (35 + own, 18 + own, 18 + own, 9 + own)
        assert route.of == (35 + own,) * 4
        assert route.work.shape == (2, 5, 7)
        for work in route.work:
            assert [(work == share).sum() for share in (0.25, 0.75, 1)] == [17, 9, 9]
        assert route.draw(np.zeros((20, 28, 3), np.uint8)).shape == (20, 28, 3)
        assert pruned.forward_features(x).shape == (2, 9 + own, 8)
        assert pruned(x).shape == (2, 3)


def test_the_patches_of_the_highest_scores_stay():
    for model in networks():
        x, seen = torch.rand(2, 3, 12, 20), []
        tokens, size = model.embed(x)
        count, own = tokens.shape[1], model.num_prefix_tokens
        block = model.blocks[0]
        _, y = mix(block.mixer, block.norm(tokens), torch.arange(count).expand(2, -1), size, count, True)
        score = score_tokens(y)
        patches = score[:, torch.arange(count) != count // 2] if own else score
        seen = patches.topk(6, dim=1).indices.sort(1).values
        work = look(ToPViM(after=(1,), keep=0.4).apply(model), x).work.reshape(2, 15)
        assert [np.flatnonzero(row == 1).tolist() for row in work] == seen.tolist()


@pytest.mark.parametrize("keep", [0.2, 0.4, 0.5])  # 3, 6 and 8 of 15 patches: an even and an odd number
def test_the_class_token_is_what_the_head_reads(keep):
    model = networks()[0]
    with torch.no_grad():
        model.cls_token.copy_(100.0)
    x = torch.rand(2, 3, 12, 20)
    pruned = ToPViM(after=(1, 2), keep=keep).apply(model)
    last = []
    model.norm.register_forward_hook(lambda _, given, __: last.append(given[0]))
    found, tokens = pruned(x), pruned.forward_features(x)
    assert (last[0].abs().mean(2).argmax(1) == (tokens.shape[1] - 1) // 2).all()
    torch.testing.assert_close(found, model.head(tokens[:, (tokens.shape[1] - 1) // 2]))
    model.set_global_pool("avg")
    patches = torch.arange(tokens.shape[1]) != (tokens.shape[1] - 1) // 2
    torch.testing.assert_close(pruned(x), model.head(tokens[:, patches].mean(1)))


def test_a_pruned_network_learns():
    for model in networks():
        names = list(model.state_dict())
        pruned = ToPViM(after=(1, 2), keep=0.6).apply(model.train())
        assert pruned is model
        assert list(model.state_dict()) == names
        F.cross_entropy(pruned(torch.rand(2, 3, 16, 12)), torch.tensor([0, 1])).backward()
        assert {name for name, value in pruned.named_parameters() if value.grad is None} == set()


def test_a_pruned_network_comes_back_from_a_folder(tmp_path):
    origin = Origin("foveal", "vim_tiny", {"dim": 8, "depth": 3, "state": 2, "patch_size": 4, "num_classes": 3})
    pruned, x = ToPViM(after=(1, 2), keep=0.5).apply(build(origin)), torch.rand(1, 3, 16, 12)
    save(pruned, tmp_path, origin)
    assert torch.equal(load(tmp_path)(x), pruned(x))


def test_a_budget_of_foveate_is_met(monkeypatch):
    monkeypatch.setattr("foveal.shrink.tokens.foveate.STEPS_OF_KEEP", 8)
    words, shape = {"method": "topvim", "after": (1,)}, (1, 3, 20, 28)
    whole, x = networks(2)[0], torch.rand(*shape)
    fewer = foveal.foveate(copy.deepcopy(whole), 0.8, shape=shape, **words)
    assert 0.7 < count_macs(fewer, shape) / count_macs(whole, shape) <= 0.8
    assert 0.6 < look(fewer, x).share < 0.9
    for model in networks(2):
        assert torch.equal(foveal.foveate(copy.deepcopy(model), 1, **words)(x), model(x))


def test_multiply_adds_fall_with_the_tokens():
    model = vim(16, 4, 4, 4)
    half = ToPViM(after=(1,), keep=0.5).apply(copy.deepcopy(model))
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
    with pytest.raises(
        TypeError, match=r"got Linear without the patches, blocks and head of .*; build one by its name"
    ):
        ToPViM().apply(nn.Linear(2, 2))
    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=4, depth=1, num_heads=1)
    with pytest.raises(
        TypeError, match="model must be a Vim or a PlainMamba, got VisionTransformer without the patches"
    ):
        foveal.foveate(vit, 0.5, method="topvim")
    other = networks()[0]
    other.blocks[1].mixer = nn.Identity()
    with pytest.raises(TypeError, match="got Isotropic without a Mamba or PlainMamba mixer in block 2, a VimBlock"):
        ToPViM(after=(1,)).apply(other)
    with pytest.raises(
        ValueError, match=r"model drops tokens already, by ToPViM\(after=\(1,\), keep=0.7, align=True\); apply"
    ):
        ToPViM(after=(1,)).apply(ToPViM(after=(1,)).apply(networks()[0]))
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
