import pytest
import timm
import torch
from timm.models.levit import create_levit
from timm.utils.model import reparameterize_model
from torch import nn

from foveal.evidence.drawn import drawn_
from foveal.evidence.nn.levit import efficientnet, small
from foveal.nn.levit import (
    BiasedAttention,
    ShrinkingAttention,
    biased_attention,
    biased_attention_reference,
    distances,
    use_biased_,
)

SMALL = {"embed_dim": (8, 12, 16), "key_dim": 4, "num_heads": (1, 2, 3), "depth": (1, 2, 1), "num_classes": 5}


def inputs(size, stride, *, heads=2, key_dim=3, value_dim=4):
    torch.manual_seed(0)
    places = distances(*size, stride=stride)
    shapes = (2, heads, len(places), key_dim), (2, heads, size[0] * size[1], key_dim)
    shapes += (2, heads, size[0] * size[1], value_dim), (heads, size[0] * size[1])
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes], places


@pytest.mark.parametrize(("size", "stride"), [((1, 1), 1), ((3, 4), 1), ((5, 3), 2), ((1, 7), 3)])
def test_it_is_that_query_by_query(size, stride):
    given, places = inputs(size, stride)
    found = [function(*given, places) for function in (biased_attention, biased_attention_reference)]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), given) for out in found))


def test_it_is_torchs_attention_with_a_mask():
    (query, key, value, table), places = inputs((4, 5), 2)
    want = nn.functional.scaled_dot_product_attention(query, key, value, table[:, places])
    torch.testing.assert_close(biased_attention(query, key, value, table, places), want.transpose(1, 2).flatten(2))


def test_places_are_distances_in_rows_and_columns():
    assert distances(2, 3).tolist()[5] == [5, 4, 3, 2, 1, 0]
    # every second of three rows and of four columns
    shrunk = distances(3, 4, stride=2)
    assert shrunk.shape == (4, 12)
    assert shrunk[3].tolist() == [10, 9, 8, 9, 6, 5, 4, 5, 2, 1, 0, 1]


def test_a_large_bias_finds_the_pixel_itself():
    (query, key, value, table), places = inputs((4, 5), 2)
    table = torch.zeros_like(table)
    table[:, 0] = 1e3
    out = biased_attention(query, key, value, table, places)
    want = value.unflatten(2, (4, 5))[:, :, ::2, ::2].flatten(2, 3)
    torch.testing.assert_close(out, want.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("merged", [False, True])
def test_timms_network_gives_the_same_logits(distilled, merged):
    torch.manual_seed(0)
    model = drawn_(create_levit("levit_128s", distilled=distilled, img_size=(96, 80), **SMALL).eval())
    x = torch.randn(2, 3, 96, 80)
    with torch.no_grad():
        before = model(x)
        model = reparameterize_model(model) if merged else model
        assert use_biased_(model) is model
        assert sum(isinstance(module, BiasedAttention) for module in model.modules()) == 4
        assert sum(isinstance(module, ShrinkingAttention) for module in model.modules()) == 2
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
        model.stages[1].downsample.attn_downsample.attention_biases[:, 0] += 5
        assert not torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)


def test_folding_leaves_no_batch_norm():
    model = reparameterize_model(use_biased_(timm.create_model("levit_128s", **SMALL).eval()))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="expected a LeViT of timm, got Linear without its attention"):
        use_biased_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="expected a LeViT of linear layers, got one of convolutions"):
        use_biased_(timm.create_model("levit_conv_128s", **SMALL))


@pytest.mark.parametrize(
    "build", [BiasedAttention, lambda dim, heads, **sizes: ShrinkingAttention(dim, 8, heads, **sizes)]
)
def test_sizes(build):
    with pytest.raises(ValueError, match="must be at least 1, got 0, 16 and"):
        build(8, 0)
    with pytest.raises(ValueError, match=r"must be at least 1, got 2, 4 and 0\.1·4"):
        build(8, 2, key_dim=4, attn_ratio=0.1)


def test_both_networks_have_maps_of_the_same_size():
    x = torch.randn(2, 3, 32, 32)
    ours, theirs = small().eval(), efficientnet(16).eval()
    assert ours(x).shape == theirs(x).shape == (2, 10)
    y, sides = theirs.conv_stem(x), []
    for block in theirs.blocks:
        y = block(y)
        sides.append(y.shape[-1])
    assert sides == [one.shape[-1] for one in ours.forward_intermediates(x)[1]] == [16, 8, 4]
    assert sum(isinstance(module, BiasedAttention) for module in ours.modules()) == 4
