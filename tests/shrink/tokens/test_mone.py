import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveal.measure.cost import count_macs
from foveal.shrink.tokens.foveate import look
from foveal.shrink.tokens.mone import MoNE, assign, capacities, set_capacity_, token_shares

SHAPE = (1, 3, 20, 20)  # 25 patches


def vit(**words):
    torch.manual_seed(0)
    settings = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3, **words}
    return VisionTransformer(img_size=20, patch_size=4, **settings).eval()


def pictures(batch=2):
    return torch.rand(batch, *SHAPE[1:], generator=torch.Generator().manual_seed(1))


def plain(model, x):
    """Every expert on all tokens, by weights whose other channels are zero; each token takes its own expert's."""
    nested, channels = model.blocks, model.blocks.channels
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    counts = token_shares(nested.shares, x.shape[1], protect=nested.protect)
    probability = nested.router(x).softmax(-1)
    order = assign(probability, counts, protect=nested.protect)
    expert = torch.zeros_like(order).scatter(
        1, order, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).expand(len(x), -1)
    )
    gate = probability.gather(2, expert[..., None])
    masks = torch.stack([(torch.arange(x.shape[2]) < m).float() for m in channels])[expert]
    width = torch.tensor(channels)[expert][..., None]

    def norm(layer, x):
        mean = (x * masks).sum(-1, keepdim=True) / width
        variance = ((x - mean).square() * masks).sum(-1, keepdim=True) / width
        return ((x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias) * masks

    for number, block in enumerate(nested._modules[str(i)] for i in range(nested.depth)):
        a = block.attn
        q, k, v = (t.unflatten(2, (a.num_heads, -1)).transpose(1, 2) for t in a.qkv(norm(block.norm1, x)).chunk(3, -1))
        weights = (q @ k.transpose(2, 3) * a.scale).softmax(-1)
        x = x + masks * block.ls1(a.proj((weights @ v).transpose(1, 2).flatten(2)))
        x = x + masks * (1 + nested.alpha[number] * gate) * block.ls2(block.mlp(norm(block.norm2, x)))
    return model.forward_head(model.norm(x))


@pytest.mark.parametrize("words", [{}, {"class_token": False, "global_pool": "avg"}, {"init_values": 0.5}])
def test_sorted_experts_equal_all_experts_on_all_tokens(words):
    model = MoNE(0.45).apply(vit(**words))
    for value in model.parameters():
        if value.ndim < 2:  # norms, scales, biases and alpha start alike in all channels
            nn.init.normal_(value, std=0.5)
    x = pictures().requires_grad_()
    ours, theirs = model(x), plain(model, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    names, values = zip(*model.named_parameters(), strict=True)
    grads = [torch.autograd.grad(y.square().sum(), (x, *values)) for y in (ours, theirs)]
    for name, one, other in zip(("x", *names), *grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("words", [{}, {"class_token": False, "global_pool": "avg"}, {"qk_norm": True}])
def test_all_tokens_at_the_largest_expert_are_the_plain_network(words):
    for capacity in (1.0, (1.0, 0.0, 0.0, 0.0)):
        torch.testing.assert_close(MoNE(capacity).apply(vit(**words))(pictures()), vit(**words)(pictures()))


def test_names_are_kept_and_only_the_router_and_alpha_are_new():
    plain_names, names = vit().state_dict(), MoNE().apply(vit()).state_dict()
    assert names.keys() - plain_names.keys() == {"blocks.router.weight", "blocks.router.bias", "blocks.alpha"}
    assert not plain_names.keys() - names.keys()


def test_experts_choose_one_after_the_other():
    score = torch.tensor([[[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]])
    assert assign(score, [2, 2]).tolist() == [[1, 3, 0, 2]]
    assert assign(score, [2, 2], protect=1).tolist() == [[0, 1, 2, 3]]
    assert assign(score, [0, 4]).tolist() == [[0, 1, 2, 3]]
    # the second expert would like token 2 most, which the first has taken
    three = torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.4, 0.1], [0.6, 0.4, 0.0]]])
    assert assign(three, [1, 1, 1]).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("capacity", [0.125, 0.2, 0.41, 0.6, 0.99, 1.0])
def test_capacities_have_the_mean_width_and_the_largest_entropy(capacity):
    widths = (1.0, 0.5, 0.25, 0.125)
    shares = capacities(capacity, widths)
    assert sum(shares) == pytest.approx(1)
    assert sum(c * w for c, w in zip(shares, widths, strict=True)) == pytest.approx(capacity)
    if min(shares) > 0.01:  # a move that keeps sum and mean lowers the entropy
        entropy = [-sum(c * math.log(c) for c in shares)]
        for sign in (1, -1):
            moved = [c + sign * 0.003 * d for c, d in zip(shares, (1, -3, 2, 0), strict=True)]
            entropy.append(-sum(c * math.log(c) for c in moved))
        assert entropy[0] > max(entropy[1:])


def test_numbers_of_tokens_are_rounded_down_and_the_last_expert_has_the_rest():
    assert token_shares((0.5, 0.25, 0.25), 10) == [5, 2, 3]
    assert token_shares((0.0, 0.5, 0.5), 10, protect=1) == [1, 5, 4]
    assert token_shares((1.0, 0.0), 7) == [7, 0]


def test_multiply_adds_are_those_of_the_widths():
    model, shape = MoNE(1.0).apply(vit()), SHAPE
    whole, small = count_macs(model, shape), count_macs(set_capacity_(model, (1 / 26, 0.0, 0.0, 25 / 26)), shape)
    assert whole - small == 2 * 25 * 12 * 16 * (16 - 2)  # two blocks, 25 tokens, 12·C·m
    router = 26 * 16 * 4
    assert whole == count_macs(vit(), shape) + router


def test_every_parameter_learns_once_alpha_has_left_0():
    model = MoNE(0.5).apply(vit().train())
    nn.init.ones_(model.blocks.alpha)
    F.cross_entropy(model(pictures()), torch.tensor([0, 1])).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_the_route_tells_the_width_of_each_patch():
    model = MoNE((0.5, 0.0, 0.5, 0.0)).apply(vit())
    route = look(model, pictures())
    assert route.work.shape == (2, 5, 5)
    assert set(route.work.ravel().tolist()) == {1.0, 0.25}
    assert (route.work == 1).sum() == 2 * 12  # the class token is the thirteenth
    assert route.counts == (13 + 13 / 4,) * 2
    assert route.of == (26.0, 26.0)


def test_random_routes_are_the_same_for_every_call_and_drawn_anew_in_training():
    model, x = MoNE(by="random").apply(vit()), pictures()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        assert not torch.equal(model.train()(x), model(x))


def test_wrong_settings_raise():
    with pytest.raises(ValueError, match=r"capacity must be in \[0.125, 1\] for these experts, got 0.1; 0.4 suits"):
        MoNE(0.1)
    for capacity in ((0.5, 0.5), (0.5, 0.5, 0.5, -0.5), (0.5, 0.1, 0.1, 0.1)):
        with pytest.raises(ValueError, match="capacity must be a mean width or 4 shares that sum to 1, got"):
            MoNE(capacity)
    for widths in ((1.0,), (0.5, 0.25), (1.0, 0.5, 0.5), (1.0, 0.0)):
        with pytest.raises(
            ValueError, match=r"widths must descend from 1 and stay above 0, got .*; take \(1\.0, 0\.5, 0\.25, 0\.125\)"
        ):
            MoNE(widths=widths)
    with pytest.raises(ValueError, match="by must be one of router, random, got 'norm'"):
        MoNE(by="norm")


def test_networks_that_cannot_be_nested_raise():
    with pytest.raises(TypeError, match="MoNE needs a vision transformer of timm, got Linear"):
        MoNE().apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model has nested experts already; change their capacity by set_capacity_"):
        MoNE().apply(MoNE().apply(vit()))
    with pytest.raises(ValueError, match=r"widths must give whole numbers of 12 channels, got 0\.125"):
        MoNE().apply(vit(embed_dim=12))
    with pytest.raises(ValueError, match="VisionTransformer has no nested experts; apply MoNE to it first"):
        set_capacity_(vit(), 0.5)
    model = vit()
    model.blocks[1] = nn.Identity()
    with pytest.raises(TypeError, match="blocks must be timm's Block with its Attention and Mlp, got Identity"):
        MoNE().apply(model)
