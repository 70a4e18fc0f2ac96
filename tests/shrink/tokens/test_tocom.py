import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveal.shrink.tokens.merge import Merge
from foveal.shrink.tokens.tocom import Compensated, Delta, ToCom, fold_, gate, learn, plug_, plugged, run_at_

SMALL = {"rank": 8, "groups": 4}


def network(**words):
    torch.manual_seed(0)
    words = {"img_size": 20, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3, **words}
    return VisionTransformer(**words).eval()


def pictures(seed=1):
    return torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(seed))


def compensated(source=0, target=3):
    model = ToCom(source, target, **SMALL).apply(network())
    torch.manual_seed(1)
    for part in (m for m in model.modules() if isinstance(m, Delta)):
        nn.init.normal_(part.up.weight)
    return model


def test_the_last_groups_are_on():
    assert gate(0, 1, **SMALL).tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert gate(1, 3, **SMALL).tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert gate(4, 2, **SMALL).tolist() == [-1, -1, -1, -1, 0, 0, 0, 0]


def test_deltas_are_antisymmetric_and_add_up():
    torch.manual_seed(0)
    delta, x = Delta(8, 8).eval(), torch.randn(2, 5, 8)
    nn.init.normal_(delta.up.weight)
    there, back, on, all_ = (delta(x, gate(*pair, **SMALL)) for pair in ((1, 3), (3, 1), (3, 4), (1, 4)))
    torch.testing.assert_close(there, -back, rtol=0, atol=1e-6)
    torch.testing.assert_close(there + on, all_, rtol=1e-6, atol=1e-6)
    assert there.abs().max() > 0.1


def test_queries_and_values_get_what_keys_do_not():
    torch.manual_seed(0)
    layer = nn.Linear(8, 24)
    found, x = Compensated(layer, ToCom(1, 3, scale=0.5, **SMALL)).eval(), torch.randn(2, 5, 8)
    nn.init.normal_(found.q.up.weight)
    nn.init.normal_(found.v.up.weight)
    assert found.weight is layer.weight
    masked = [(x @ part.down.weight.T * gate(1, 3, **SMALL)) @ part.up.weight.T for part in (found.q, found.v)]
    wanted = layer(x) + 0.5 * torch.cat((masked[0], torch.zeros(2, 5, 8), masked[1]), 2)
    torch.testing.assert_close(found(x), wanted)


def test_a_fresh_plug_in_and_equal_rates_change_nothing():
    merged = Merge(r=3, multiple=1).apply(network())(pictures())
    torch.testing.assert_close(ToCom(0, 3, **SMALL).apply(network())(pictures()), merged)
    torch.testing.assert_close(compensated(3, 3)(pictures()), merged)
    assert not torch.allclose(compensated(0, 3)(pictures()), merged)
    assert network().state_dict().keys() <= compensated().state_dict().keys()


def test_the_rates_can_be_changed():
    model = run_at_(compensated(0, 3), 2, 4)
    torch.testing.assert_close(model(pictures()), compensated(2, 4)(pictures()))
    assert model.blocks.config.r == 4


def test_folded_it_is_the_same_and_plain():
    model, x = compensated().double(), pictures().double()  # rounding decides between pairs that are nearly alike
    before = model(x)
    fold_(model)
    assert not [m for m in model.modules() if isinstance(m, Compensated)]
    torch.testing.assert_close(model(x), before)
    assert model.state_dict().keys() == network().state_dict().keys()


def test_learning_changes_the_plug_in_alone_and_it_fits_other_networks():
    model = network()
    before = copy.deepcopy(model.state_dict())
    weights = learn(model, pictures, config=ToCom(target=4, **SMALL), steps=3, lr=0.05)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert weights.keys() == plugged(compensated()).keys()
    assert all(value.any() for value in weights.values())
    again = learn(model, pictures, config=ToCom(target=4, **SMALL), steps=3, lr=0.05)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    other = ToCom(**{**SMALL, "target": 3}).apply(network(num_classes=5))
    plain = other(pictures())
    assert not torch.allclose(plug_(other, weights)(pictures()), plain)


def test_it_learns_to_compensate():
    # what 60 steps reach on one batch: the divergence from the network that does not merge falls
    model, x = network(), pictures()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)
        model.head.weight.mul_(100)  # else the divergence is as small as rounding
    whole = model(x).log_softmax(1).detach()
    weights = learn(model, lambda step: x, config=ToCom(target=4, dropout=0.0, **SMALL), steps=60, lr=0.01)
    gaps = []
    for plug in (False, True):
        found = ToCom(0, 4, **SMALL).apply(copy.deepcopy(model))
        found = plug_(found, weights) if plug else found
        gaps.append(float((whole.exp() * (whole - found(x).log_softmax(1))).sum().detach()))
    assert gaps[1] < 0.7 * gaps[0]


def test_wrong_settings_raise():
    with pytest.raises(ValueError, match="rank must be a multiple of groups, got 6 and 4; 32 and 16 are the paper's"):
        ToCom(rank=6, groups=4)
    for source, target in ((-1, 2), (0, 5)):
        with pytest.raises(ValueError, match=r"source and target must be in 0…4, got (-1|5); there is one group"):
            ToCom(source, target, **SMALL)
    for do in (lambda: run_at_(network(), 0, 1), lambda: plugged(network()), lambda: fold_(network())):
        with pytest.raises(ValueError, match=r"VisionTransformer has no plug-in; apply ToCom\(source=…, target=…\)"):
            do()
    weights = plugged(ToCom(**{**SMALL, "target": 3}).apply(network(embed_dim=16)))
    with pytest.raises(ValueError, match=r"learnt on another network: blocks\.0\.attn\.qkv\.q\.down\.weight does not"):
        plug_(compensated(), weights)
