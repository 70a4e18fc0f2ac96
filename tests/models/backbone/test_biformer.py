import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.drawn import drawn_
from foveal.evidence.models.backbone.biformer import small, window_twin
from foveal.models.backbone.biformer import (
    BiFormer,
    BiFormerBlock,
    BiLevelRoutingAttention,
    LocalAttention,
    from_authors,
    region_size,
    routed_attention,
    routed_attention_reference,
    routes,
)
from foveal.nn.windows import WindowAttention

TINY = {"dims": (8, 12), "depths": (1, 2), "num_heads": (2, 3), "top_ks": (2, None), "regions": 3}


def drawn(*shape):
    torch.manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize(("height", "width"), [(6, 9), (7, 5), (1, 4), (11, 3)])
@pytest.mark.parametrize("top_k", [1, 2, 9])
def test_gathering_equals_a_mask_with_gradients(height, width, top_k):
    qkv = drawn(2, height, width, 6)
    options = {"regions": 3, "top_k": top_k, "num_heads": 2}
    found, wanted = (run(*qkv, **options) for run in (routed_attention, routed_attention_reference))
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(out.square().sum(), qkv) for out in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("run", [routed_attention, routed_attention_reference])
@pytest.mark.parametrize("size", [(6, 9), (5, 7)])
def test_all_regions_are_dense_attention(run, size):
    qkv = drawn(2, *size, 6)
    q, k, v = (x.flatten(1, 2).unflatten(-1, (2, 3)).transpose(1, 2) for x in qkv)
    dense = F.scaled_dot_product_attention(q, k, v, scale=6**-0.5).transpose(1, 2).reshape(2, *size, 6)
    torch.testing.assert_close(run(*qkv, regions=3, top_k=9, num_heads=2), dense)


def test_a_region_finds_what_is_most_like_it():
    # four regions of one token; the first is like itself and the last, the others like the third
    query = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.1, 1.0]]).view(1, 4, 1, 2)
    key = torch.tensor([[2.0, 0.0], [0.0, -1.0], [0.0, 3.0], [1.0, 0.0]]).view(1, 4, 1, 2)
    assert routes(query, key, 1).squeeze().tolist() == [0, 2, 2, 2]
    assert sorted(routes(query, key, 2)[0, 0].tolist()) == [0, 3]
    assert routes(query, key, 9).shape == (1, 4, 4)


def test_means_are_those_of_tokens_without_padding():
    # the second region has one token, whose key is as large as the mean of the first region's two
    query, key = torch.ones(1, 2, 2, 1), torch.tensor([[2.0, 2.0], [3.0, 0.0]]).view(1, 2, 2, 1)
    assert routes(query, key, 1, torch.tensor([2, 1])).flatten().tolist() == [1, 1]
    assert routes(query, key, 1).flatten().tolist() == [0, 0]


def test_tokens_of_regions_that_are_not_found_do_not_matter():
    query, key, value = (x.detach() for x in drawn(1, 4, 4, 2))
    query, key = query.abs(), key.clone()
    key[:, :2, :2], key[:, 2:], key[:, :, 2:] = 5.0, -5.0, -5.0
    other = value.clone()
    other[:, 2:] = 7.0
    other[:, :, 2:] = 7.0
    one, two = (routed_attention(query, key, v, regions=2, top_k=1, num_heads=1) for v in (value, other))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("side", "rows"), [(56, 8), (55, 8), (7, 1), (8, 2), (3, 1)])
def test_regions_cover_the_map(side, rows):
    assert region_size(side, 7, 7) == (rows, 1)


def test_the_layer_adds_a_local_term_of_the_values():
    layer, x = drawn_(BiLevelRoutingAttention(6, 2, regions=2, top_k=3, kernel_size=3)), torch.randn(2, 4, 6, 6)
    query, key, value = layer.qkv(x).chunk(3, -1)
    out = routed_attention_reference(query, key, value, regions=2, top_k=3, num_heads=2)
    local = F.conv2d(value.permute(0, 3, 1, 2), layer.local.weight, layer.local.bias, padding=1, groups=6)
    torch.testing.assert_close(layer(x), layer.proj(out + local.permute(0, 2, 3, 1)))


def test_dense_attention_is_torchs_beside_a_local_term_of_the_input():
    layer, x = drawn_(LocalAttention(6, 2)), torch.randn(2, 3, 5, 6)
    theirs = nn.MultiheadAttention(6, 2, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(layer.qkv.weight)
        theirs.out_proj.weight.copy_(torch.eye(6))
    tokens = x.flatten(1, 2)
    out = theirs(tokens, tokens, tokens, need_weights=False)[0].view_as(x)
    torch.testing.assert_close(layer(x), layer.proj(out + layer.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))


def test_a_block_normalises_each_token_before_attention_and_before_its_perceptron():
    block, x = drawn_(BiFormerBlock(6, 2, regions=2, top_k=1)).eval(), torch.randn(2, 6, 4, 5)
    y = (x + block.pos_conv(x)).permute(0, 2, 3, 1)
    y = y + block.attn(F.layer_norm(y, (6,), block.norm1.weight, block.norm1.bias, 1e-6))
    y = y + block.mlp(F.layer_norm(y, (6,), block.norm2.weight, block.norm2.bias, 1e-6))
    torch.testing.assert_close(block(x), y.permute(0, 3, 1, 2))


def test_each_stage_has_its_own_attention():
    kinds = [
        [(type(m.attn).__name__, getattr(m.attn, "top_k", None)) for m in stage if isinstance(m, BiFormerBlock)]
        for stage in BiFormer(num_classes=2, **TINY).stages
    ]
    assert kinds == [[("BiLevelRoutingAttention", 2)], [("LocalAttention", None)] * 2]


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (9, 70)])
def test_any_size(size):
    model = BiFormer(num_classes=3, **TINY).eval()
    assert model(torch.rand(1, 3, *size)).shape == (1, 3)


def test_names_of_the_authors():
    model = BiFormer(num_classes=2, **TINY)
    theirs = ["downsample_layers.0.3.weight", "downsample_layers.1.1.running_mean", "norm.weight", "head.bias"]
    theirs += [f"stages.{i}.0.{name}" for i in (0, 1) for name in ("pos_embed.weight", "norm1.bias", "mlp.0.weight")]
    theirs += [f"stages.0.0.attn.{name}" for name in ("qkv.qkv.bias", "wo.weight", "lepe.bias")]
    theirs += [f"stages.1.1.{name}" for name in ("attn.qkv.weight", "attn.proj.bias", "attn.lepe.weight", "mlp.3.bias")]
    found = from_authors(dict.fromkeys(theirs))
    assert len(found) == len(theirs)
    assert set(found) <= set(model.state_dict())
    assert {"stages.1.3.attn.local.weight", "stages.0.0.mlp.fc1.weight"} <= set(found)


def test_wrong_settings_raise():
    for layer in (BiLevelRoutingAttention, LocalAttention):
        with pytest.raises(ValueError, match="dim must be a multiple of num_heads = 3, got 8"):
            layer(8, 3)
    for regions, top_k in ((0, 1), (7, 0)):
        with pytest.raises(ValueError, match=f"regions and top_k must be at least 1, got {regions} and {top_k}; None"):
            BiLevelRoutingAttention(8, 2, regions=regions, top_k=top_k)
    with pytest.raises(ValueError, match=r"dims, depths, num_heads and top_ks must have the same length, got \[2, 1"):
        BiFormer(**{**TINY, "depths": (1,)})


def test_the_twin_differs_in_attention_alone():
    ours, twin = small().eval(), window_twin(32).eval()
    x = torch.randn(2, 3, 32, 32)
    assert ours(x).shape == twin(x).shape == (2, 10)
    kinds = [type(m.attn) for m in twin.modules() if isinstance(m, BiFormerBlock)]
    assert kinds == [WindowAttention] * 4 + [LocalAttention] * 2
    # windows of every other block are shifted, where there are several
    shifts = [m.shift for m in twin.modules() if isinstance(m, WindowAttention)]
    assert shifts == [(0, 0), (2, 2)] * 2
    own = {name for name, _ in ours.named_parameters() if ".attn." not in name}
    assert own == {name for name, _ in twin.named_parameters() if ".attn." not in name}
