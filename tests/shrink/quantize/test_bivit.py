import itertools

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveal.ops import use_backend
from foveal.ops.xnor import sign
from foveal.shrink.quantize.bivit import BinaryAttention, BinaryLinear, BiViT, phases, select, softmax_aware
from foveal.shrink.quantize.fake import quantized_layers
from foveal.shrink.quantize.packed import load_packed_, packed_bytes, save_packed


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vit(seed=0, **words):
    torch.manual_seed(seed)
    settings = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3}
    return VisionTransformer(**settings | words)


def pictures():
    return drawn(3, 3, 8, 8, seed=1)


def test_a_map_by_hand():
    attention = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.1, 0.4]])
    chosen, alpha = softmax_aware(attention)
    assert chosen.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]]
    torch.testing.assert_close(alpha, torch.tensor([[0.7], [0.25], [0.4]]))


def test_no_other_choice_is_closer():
    attention = (2 * drawn(20, 6)).softmax(-1)
    chosen, alpha = softmax_aware(attention)
    errors = (attention - alpha * chosen).square().sum(-1)
    for bits in itertools.product([0.0, 1.0], repeat=6):
        other = torch.tensor(bits)
        scale = (attention * other).sum(-1, keepdim=True) / max(1.0, sum(bits))
        assert (errors <= (attention - scale * other).square().sum(-1) + 1e-7).all()


def test_selected_signs_are_summed_exactly_with_gradients():
    chosen, v = (drawn(2, 5, 7) > 0).float().requires_grad_(), drawn(2, 7, 3, seed=1).requires_grad_()
    wanted = chosen @ sign(v)
    assert torch.equal(select(chosen, v), wanted)
    g = drawn(2, 5, 3, seed=2)
    ours, theirs = (torch.autograd.grad((y * g).sum(), (chosen, v)) for y in (select(chosen, v), chosen @ sign(v)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_binary_layer_is_the_formula_and_its_scales_learn():
    linear = nn.Linear(70, 5)
    layer, x = BinaryLinear(linear), drawn(2, 3, 70).requires_grad_()
    with torch.no_grad():
        layer.weight_quantizer.scale.mul_(1.5)
    wanted = F.linear(sign(x), layer.quantized_weight()) * x.abs().mean(-1, keepdim=True) + linear.bias
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
    leaves = [x, linear.weight, linear.bias, layer.weight_quantizer.scale]
    ours, theirs = (torch.autograd.grad(y.square().sum(), leaves) for y in (layer(x), wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_attention_is_the_formula():
    module = vit().blocks[0].attn
    binary, x = BinaryAttention(module), drawn(2, 5, 12)
    qkv = binary.qkv(x)
    outputs = []
    for head in range(2):
        q, k, v = (qkv[..., 12 * i + 6 * head : 12 * i + 6 * head + 6] for i in range(3))
        scores = sign(q) @ sign(k).mT * q.abs().mean(-1)[..., None] * k.abs().mean(-1)[:, None] / 6**0.5
        chosen, alpha = softmax_aware(scores.softmax(-1))
        outputs.append(alpha * chosen @ sign(v) * v.abs().mean((1, 2))[:, None, None])
    torch.testing.assert_close(binary(x), binary.proj(torch.cat(outputs, -1)))


def test_the_attention_map_passes_its_gradient_on():
    """With the map itself in the place of α B, the gradient of the queries is the same for that α B."""
    binary, x = BinaryAttention(vit().blocks[0].attn), drawn(1, 5, 12)
    seen = {}

    def whole(attention):
        seen["attention"] = attention
        return torch.ones_like(attention), torch.full_like(attention[..., :1], 0.2)

    binary.binarise = whole
    y = binary(x)
    assert seen["attention"].sum(-1).allclose(torch.ones(1, 2, 5))
    y.square().sum().backward()
    assert binary.qkv.layer.weight.grad[:24].any()  # queries and keys


def test_phases_change_attention_first_and_then_the_mlps():
    model = vit()
    first, second = phases()
    assert first.apply(model) is model
    kinds = [type(m).__name__ for block in model.blocks for m in (block.attn, block.mlp.fc1, block.mlp.fc2)]
    assert kinds == ["BinaryAttention", "Linear", "Linear"] * 2
    second.apply(model)
    assert len(list(quantized_layers(model))) == 8
    again = BiViT().apply(vit())
    assert torch.equal(again.eval()(pictures()), model.eval()(pictures()))
    assert isinstance(model.head, nn.Linear)


def test_every_parameter_learns():
    model = BiViT().apply(vit())
    F.cross_entropy(model(pictures()), torch.tensor([0, 1, 2])).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    assert all(layer.weight_quantizer.scale.grad.any() for _, layer in quantized_layers(model))


def test_bits_and_floats_compute_the_same():
    model = BiViT().apply(vit(qk_norm=True, norm_layer=nn.LayerNorm)).eval()
    with use_backend("reference"):
        wanted = model(pictures())
    torch.testing.assert_close(model(pictures()), wanted)


def test_a_packed_file_gives_the_same_network(tmp_path):
    model = BiViT().apply(vit()).eval()
    with torch.no_grad():
        for _, layer in quantized_layers(model):
            layer.weight_quantizer.scale.mul_(0.7)
    save_packed(model, tmp_path / "model.safetensors")
    again = load_packed_(BiViT().apply(vit(5)), tmp_path / "model.safetensors")
    torch.testing.assert_close(again(pictures()), model(pictures()))
    layer = model.blocks[0].mlp.fc1
    assert packed_bytes(layer) == 12 * 48 / 8 + 4 * 48 + 4 * 48  # bits, scales, bias


def test_what_cannot_be_binary_raises():
    with pytest.raises(ValueError, match="BiViT makes attention, mlp or both binary, got neither"):
        BiViT(attention=False, mlp=False)
    with pytest.raises(ValueError, match="Linear has no blocks of attn and mlp; take a vision transformer"):
        BiViT().apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="the model is binary already"):
        BiViT(mlp=False).apply(BiViT().apply(vit()))
    with pytest.raises(ValueError, match="no gate and no dropout of its map"):
        BiViT().apply(vit(attn_drop_rate=0.1))
    with pytest.raises(ValueError, match="binary attention takes no mask"):
        BiViT().apply(vit()).blocks[0].attn(drawn(1, 5, 12), attn_mask=torch.ones(5, 5))
