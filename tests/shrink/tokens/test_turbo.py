from functools import partial

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import foveal
from foveal.measure.cost import count_macs
from foveal.shrink.steps import step_class
from foveal.shrink.tokens.blocks import Seen
from foveal.shrink.tokens.drop import Drop
from foveal.shrink.tokens.merge import Merge
from foveal.shrink.tokens.turbo import Turbo, redundancy_of

vit = partial(VisionTransformer, img_size=20, patch_size=4, embed_dim=12, depth=3, num_heads=2, num_classes=3)


def network(**words):
    torch.manual_seed(0)
    model = vit(**words).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)  # fresh attention is nearly uniform
    return model


def pictures():
    return torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def tokens(step, **words):
    return step.apply(network(**words)).forward_features(pictures())


def seen(batch, length, heads=2):
    draw = torch.Generator().manual_seed(length)
    q, k = (torch.randn(batch, heads, length, 4, generator=draw) for _ in range(2))
    return Seen(q, k, 0.5)


@pytest.mark.parametrize("protect", [0, 1, 2])
@pytest.mark.parametrize("length", [7, 10])
def test_redundancy_is_the_best_match_in_the_other_set(protect, length):
    keys = torch.randn(2, length, 4, generator=torch.Generator().manual_seed(0))
    found = redundancy_of(keys, protect=protect)
    for b in range(2):
        for i in range(length):
            others = [j for j in range(protect, length) if (i - j) % 2]
            best = max(float(torch.cosine_similarity(keys[b, i], keys[b, j], dim=0)) for j in others)
            assert float(found[b, i]) == pytest.approx(best if i >= protect else -1, abs=1e-6)


@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize(("semantic", "redundancy"), [(0.05, 1.0), (0.4, 1.0), (1.0, 0.0), (0.0, 2.0)])
def test_the_least_informative_go(protect, semantic, redundancy):
    length, gone = 11, 3
    given = seen(2, length)
    x = torch.arange(2.0 * length).view(2, length, 1)
    degree = semantic * length * given.received(protect) - redundancy * redundancy_of(given.keys(), protect=protect)
    for how in ("merge", "drop"):
        found = Turbo(r=gone, semantic=semantic, redundancy=redundancy, how=how).reduce(
            x, None, given, gone, protect=protect
        )
        assert found.x.shape == (2, length - gone, 1)
        for b in range(2):
            candidates = [i for i in range(protect, length) if how == "drop" or i % 2 == 0]
            leaving = sorted(candidates, key=lambda i: float(degree[b, i]))[:gone]
            into = found.into()[b].tolist()
            if how == "drop":
                assert sorted(i for i in range(length) if into[i] < 0) == sorted(leaving)
                continue
            unit = torch.nn.functional.normalize(given.keys()[b], dim=1)
            odd = [j for j in range(protect, length) if j % 2]
            for i in range(length):
                best = max(odd, key=lambda j: float(unit[i] @ unit[j]))
                shared = [j for j in odd if into[j] == into[i]]
                assert shared == ([best] if i in leaving else [i] if i in odd else [])


@pytest.mark.parametrize("words", [{}, {"global_pool": "avg"}])
def test_its_limits_are_merging_and_pruning_by_attention(words):
    merged, dropped = (tokens(step(r=6, multiple=1), **words) for step in (Merge, Drop))
    assert torch.equal(tokens(Turbo(r=6, multiple=1, semantic=0), **words), merged)
    assert torch.equal(tokens(Turbo(r=6, multiple=1, redundancy=0, how="drop"), **words), dropped)
    for how, other in (("merge", merged), ("drop", dropped)):
        assert not torch.allclose(tokens(Turbo(r=6, multiple=1, semantic=0.3, how=how), **words), other)


def test_parameters_stay_and_learn():
    model = Turbo(r=6, multiple=1).apply(network())
    assert count_macs(model, (1, 3, 20, 20)) < 0.75 * count_macs(network(), (1, 3, 20, 20))
    model.train()(pictures()).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == set()
    before = network().state_dict()
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_foveate_reaches_it():
    assert step_class("turbo") is Turbo
    model = foveal.foveate(network(), 0.7, method="turbo", multiple=1, how="drop")
    assert count_macs(model, (1, 3, 20, 20)) <= 0.7 * count_macs(network(), (1, 3, 20, 20))
    route = foveal.shrink.tokens.foveate.look(model, pictures())
    assert route.work.shape == (2, 5, 5)
    assert route.work.min() < 1
    for how in ("merge", "drop"):
        exact = foveal.foveate(network(), 1, method="turbo", how=how)
        assert torch.equal(exact(pictures()), network()(pictures()))


def test_wrong_settings_raise():
    with pytest.raises(ValueError, match="how must be one of merge, drop, got 'fuse'"):
        Turbo(r=2, how="fuse")
    for semantic, redundancy in ((-1, 1), (0, 0), (1, -0.5)):
        with pytest.raises(ValueError, match=f"must be at least 0 .* got {semantic} and {redundancy}; 0.05 and 1 suit"):
            Turbo(r=2, semantic=semantic, redundancy=redundancy)
    with pytest.raises(ValueError, match="give exactly one of r and keep"):
        Turbo()
