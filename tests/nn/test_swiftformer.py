import pytest
import timm
import torch
from torch import nn

from foveal.evidence.nn.swiftformer import small
from foveal.nn.swiftformer import (
    AdditiveAttention,
    additive_attention,
    additive_attention_reference,
    use_additive_,
)

SMALL = {"layers": [1, 2], "embed_dims": [8, 12], "downsamples": [False, True], "num_classes": 5}


def inputs(tokens, dim=5):
    torch.manual_seed(0)
    shapes = (2, tokens, dim), (2, tokens, dim), (dim,), (dim, dim), (dim,)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("tokens", [1, 7, 63])
def test_it_is_that_token_by_token(tokens):
    given = inputs(tokens)
    found = [function(*given) for function in (additive_attention, additive_attention_reference)]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), given, allow_unused=True) for out in found))
    torch.testing.assert_close(additive_attention(*given[:4]), additive_attention_reference(*given[:4]))


def test_two_tokens_by_hand():
    query, key = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), torch.tensor([[[5.0, 0.0], [0.0, -7.0]]])
    # scores 0.6 and 0, so that the global query is the first one, (0.6, 0.8)
    out = additive_attention(query, key, torch.tensor([9.0, 0.0]), 10 * torch.eye(2))
    torch.testing.assert_close(out, torch.tensor([[[6.6, 0.8], [0.0, -7.0]]]))


def test_without_scores_each_query_passes():
    query, key, score, weight, bias = inputs(6)
    out = additive_attention(query, key, 0 * score, weight, bias)
    torch.testing.assert_close(out, nn.functional.normalize(query, dim=-1) + bias)


def test_only_directions_count_and_the_order_of_tokens_does_not():
    query, key, score, weight, bias = inputs(9)
    out, order = additive_attention(query, key, score, weight, bias), torch.randperm(9)
    torch.testing.assert_close(additive_attention(3 * query, key / 5, 7 * score, weight, bias), out)
    torch.testing.assert_close(additive_attention(query[:, order], key[:, order], score, weight, bias), out[:, order])


def test_a_pixel_reaches_all_others_of_its_picture():
    torch.manual_seed(0)
    layer, x = AdditiveAttention(6), torch.randn(2, 6, 5, 7)
    before = layer(x)
    x[0, :, 0, 0] += 1
    assert before.shape == x.shape
    assert ((layer(x) - before)[0].abs().amax(0) > 0).all()
    assert torch.equal(layer(x)[1], before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_timms_network_gives_the_same_logits(dtype):
    torch.manual_seed(0)
    model = timm.create_model("swiftformer_xs", **SMALL, layer_scale_init_value=1.0).to(dtype).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape) / 3)
    x = torch.randn(2, 3, 37, 50, dtype=dtype)
    before = model(x)
    assert use_additive_(model) is model
    assert sum(isinstance(module, AdditiveAttention) for module in model.modules()) == 2
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    model.stages[1].blocks[1].attn.w_g.data.add_(1)
    assert not torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="expected a SwiftFormer of timm, got Linear without additive attention"):
        use_additive_(nn.Linear(2, 2))


def test_the_small_network_attends_at_every_stage():
    network = small()
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert [isinstance(stage.blocks[-1].attn, AdditiveAttention) for stage in network.stages] == [True] * 3
