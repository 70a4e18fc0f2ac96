from functools import partial

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from foveal.measure.cost import count_macs
from foveal.shrink.tokens.blocks import Reduction, Seen
from foveal.shrink.tokens.drop import Drop, drop

vit = partial(VisionTransformer, img_size=20, patch_size=4, embed_dim=12, depth=3, num_heads=2, num_classes=3)


def network(**words):
    torch.manual_seed(0)
    return vit(**words).eval()


def pictures(batch=2):
    return torch.rand(batch, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def test_attention_received_is_the_class_token_s_row():
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    whole = (q @ k.transpose(2, 3) * 0.5).softmax(3).mean(1)
    torch.testing.assert_close(Seen(q, k, 0.5).received(1), whole[:, 0])
    mean = (q.mean(2, keepdim=True) @ k.transpose(2, 3) * 0.5).softmax(3).mean(1)[:, 0]
    torch.testing.assert_close(Seen(q, k, 0.5).received(0), mean)


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
def test_the_least_attended_go(fuse, sized):
    score = torch.tensor([[0.0, 0.4, 0.1, 0.3, 0.2]])
    x = torch.tensor([[[1.0], [2.0], [4.0], [8.0], [16.0]]])
    sizes = torch.tensor([[1.0, 1, 2, 1, 3]]) if sized else None
    found = drop(x, sizes, score, 2 - fuse, protect=1, fuse=fuse)
    assert found.into().tolist() == ([[0, 1, 3, 2, 3]] if fuse else [[0, 1, -1, 2, -1]])
    assert found.x.flatten().tolist() == pytest.approx([1, 2, 8, 12] if fuse else [1, 2, 8])
    if sized:
        assert found.sizes.tolist() == ([[1, 1, 1, 5]] if fuse else [[1, 1, 1]])
    else:
        assert found.sizes is None


@pytest.mark.parametrize("words", [{}, {"global_pool": "avg"}, {"class_token": False, "global_pool": "avg"}])
def test_keeping_all_is_exact(words):
    for step in (Drop(r=0), Drop(keep=1.0, by="random"), Drop(keep=1.0, fuse=True)):
        assert torch.equal(step.apply(network(**words))(pictures()), network(**words)(pictures()))


def test_tokens_that_went_come_back_as_they_were():
    model = Drop(r=5, multiple=1).apply(network(global_pool="avg"))
    seen = []
    model.blocks.get_submodule("0").mlp.register_forward_hook(lambda m, i, y: seen.append(y.shape[1]))
    tokens = model.forward_features(pictures())
    assert tokens.shape[1] == 26
    assert len(tokens[0].unique(dim=0)) == 26  # each is its own
    assert seen == [21]
    assert model.blocks.config.counts(26, 3) == [21, 16, 11]


def test_it_costs_less_and_learns():
    model = Drop(r=6, multiple=1, fuse=True).apply(network())
    assert count_macs(model, (1, 3, 20, 20)) < 0.7 * count_macs(network(), (1, 3, 20, 20))
    model.train()(pictures()).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == set()


def test_the_random_choice_is_seeded_and_another():
    found = [Drop(r=6, multiple=1, by=by, seed=seed).apply(network())(pictures())
             for by, seed in (("random", 0), ("random", 0), ("random", 1), ("attention", 0))]  # fmt: skip
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert not torch.allclose(found[0], found[3])


def test_wrong_settings_raise():
    with pytest.raises(ValueError, match="by must be one of attention, random, got 'norm'"):
        Drop(r=2, by="norm")
    with pytest.raises(ValueError, match="give exactly one of r and keep"):
        Drop()
    with pytest.raises(NotImplementedError, match="Reduction does not say how tokens become fewer; define reduce"):
        Reduction(r=2).apply(network())(pictures())
