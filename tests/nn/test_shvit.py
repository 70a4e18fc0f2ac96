import pytest
import timm
import torch
from timm.utils.model import reparameterize_model
from torch import nn

from foveal.evidence.nn.shvit import drawn_, mobilevitv2_in_use, small
from foveal.nn.shvit import SHSA, partial_attention, partial_attention_reference, use_single_head_

SMALL = {"embed_dim": (16, 24, 32), "partial_dim": (4, 5, 7), "depth": (1, 1, 2), "types": ("i", "s", "s")}


def inputs(part, height, width, *, qk_dim=3, passed=4):
    torch.manual_seed(0)
    shapes = (2, 2 * qk_dim + part, height, width), (2, passed, height, width)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("part", "height", "width"), [(1, 1, 1), (2, 3, 5), (5, 7, 1)])
def test_it_is_that_pixel_by_pixel(part, height, width):
    given = inputs(part, height, width)
    found = [function(*given, qk_dim=3) for function in (partial_attention, partial_attention_reference)]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), given) for out in found))


def test_with_all_channels_it_is_torchs_attention():
    qkv, passed = inputs(6, 5, 4, passed=0)
    query, key, value = (part.flatten(2).mT for part in qkv.split([3, 3, 6], 1))
    want = nn.functional.scaled_dot_product_attention(query, key, value).mT.reshape(2, 6, 5, 4)
    torch.testing.assert_close(partial_attention(qkv, passed, qk_dim=3), want)


def test_without_queries_every_pixel_gets_the_mean():
    qkv, passed = inputs(4, 3, 5)
    qkv = torch.cat([torch.zeros_like(qkv[:, :3]), qkv[:, 3:]], 1)
    out = partial_attention(qkv, passed, qk_dim=3)
    torch.testing.assert_close(out[:, :4], qkv[:, 6:].mean((2, 3), keepdim=True).expand(-1, -1, 3, 5))
    assert torch.equal(out[:, 4:], passed)


def test_channels_that_pass_meet_their_own_pixel_only():
    torch.manual_seed(0)
    layer, x = drawn_(SHSA(9, 3, qk_dim=4)).double().eval(), torch.randn(1, 9, 5, 5, dtype=torch.float64)
    before, moved = layer(x), []
    for channel in (1, 7):
        changed = x.clone()
        changed[:, channel, 2, 3] += 1
        moved.append(int(((layer(changed) - before).abs().amax(1) > 1e-12).sum()))
    assert moved == [25, 1]


@pytest.mark.parametrize("folded", [False, True])
def test_timms_network_gives_the_same_logits(folded):
    torch.manual_seed(0)
    model = drawn_(timm.create_model("shvit_s1", **SMALL, num_classes=5).eval())
    x = torch.randn(2, 3, 100, 130)
    with torch.no_grad():
        before = model(x)
        model = reparameterize_model(model) if folded else model
        assert use_single_head_(model) is model
        assert sum(isinstance(module, SHSA) for module in model.modules()) == 3
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
        model.stages[1].blocks[0].mixer.m.pre_norm.weight.add_(1)
        assert not torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)


def test_folding_leaves_no_batch_norm():
    model = reparameterize_model(use_single_head_(timm.create_model("shvit_s1", **SMALL).eval()))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert sum(isinstance(module, SHSA) for module in model.modules()) == 3


def test_the_folded_rival_is_the_rival():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    logits = []
    for build in (mobilevitv2_in_use, lambda: timm.create_model("mobilevitv2_100").eval()):
        torch.manual_seed(0)
        model = build()
        assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == bool(logits)
        with torch.inference_mode():
            logits.append(model(x))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="expected a SHViT of timm, got Linear without single-head attention"):
        use_single_head_(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((28, 0), "partial_dim must be in 1…28 for 28 channels, got 0; the paper takes 6"),
        ((28, 29), "partial_dim must be in 1…28 for 28 channels, got 29"),
        ((28, 6, 0), "qk_dim must be at least 1, got 0; the paper takes 16"),
    ],
)
def test_sizes(arguments, text):
    with pytest.raises(ValueError, match=text):
        SHSA(*arguments[:2], **({"qk_dim": arguments[2]} if arguments[2:] else {}))


def test_the_small_network_attends_in_two_stages():
    network = small()
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert [sum(isinstance(m, SHSA) for m in stage.modules()) for stage in network.stages] == [0, 2, 2]
