import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveal.shrink.quantize.fake import quantized_layers
from foveal.shrink.quantize.powers_of_two import IntegerShift, integer_
from foveal.shrink.quantize.shift_add_vit import (
    AddAttention,
    ShiftAddViT,
    ShiftMixture,
    balanced,
    binary_codes,
    latency_aware,
    routers,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vit(seed=0, **words):
    torch.manual_seed(seed)
    settings = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3}
    return VisionTransformer(**settings | words)


def pictures():
    return drawn(3, 3, 8, 8, seed=1)


def test_codes_by_hand():
    x = torch.tensor([[3.0, 0.0, 4.0, 0.1], [-1.0, -2.0, -3.0, -6.0]], requires_grad=True)
    codes = binary_codes(x)
    assert codes.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]
    assert torch.equal(binary_codes(x.detach()), binary_codes(10 * x.detach()))
    codes.sum().backward()
    assert x.grad[0].any()
    assert not x.grad[1].any()  # below 0, where clamp is flat


def test_attention_is_the_formula_in_quadratic_order():
    module, x = AddAttention(vit().blocks[0].attn), drawn(2, 5, 12)
    qkv, heads = module.qkv(x), []
    for head in range(2):
        q, k, v = (qkv[..., 12 * i + 6 * head : 12 * i + 6 * head + 6] for i in range(3))
        y = v / 2 + (binary_codes(q) @ binary_codes(k).mT) @ v / math.pi
        kernel = module.local.weight[head, 0, :, 0]
        near = torch.stack([F.conv1d(v[..., d][:, None], kernel[None, None], padding=4)[:, 0] for d in range(6)], -1)
        heads.append(F.normalize(y, dim=-1) + near)
    torch.testing.assert_close(module(x), module.proj(torch.cat(heads, -1)))


def test_a_picture_does_not_depend_on_its_batch():
    model = ShiftAddViT().apply(vit()).eval()
    torch.testing.assert_close(model(pictures())[:1], model(pictures()[:1]))


def test_the_loss_is_least_when_both_experts_are_busy_equally_long():
    one = torch.full((8, 2), 0.0)
    assert latency_aware(one, (3.0, 3.0)).item() == pytest.approx(0.0, abs=1e-12)
    # importance and load are 4 tokens each: busy 3·4 and 1·4, deviation² 32, mean 8
    assert latency_aware(one, (3.0, 1.0)).item() == pytest.approx(2 * 32 / 64)
    # with sharp logits, 1 of 4 tokens for the expert that is 3 times as slow
    sharp = torch.tensor([[20.0, -20.0], [-20.0, 20.0], [-20.0, 20.0], [-20.0, 20.0]])
    assert latency_aware(sharp, (3.0, 1.0)).item() == pytest.approx(0.0, abs=1e-6)
    assert latency_aware(sharp.view(2, 2, 2), (3.0, 1.0)) == latency_aware(sharp, (3.0, 1.0))


def test_the_load_is_what_noise_gives():
    logits, generator = drawn(6, 2), torch.Generator().manual_seed(0)
    noise = torch.randn(20000, 6, 2, generator=generator) / 2
    often = ((logits + noise).argmax(-1) == 0).float().mean(0).sum()
    first = torch.stack([often, 6 - often]) * torch.tensor([2.0, 1.0]) / 3
    importance = logits.softmax(-1).sum(0) * torch.tensor([2.0, 1.0]) / 3
    wanted = sum(x.var() / x.mean().square() for x in (first, importance))
    torch.testing.assert_close(latency_aware(logits, (2.0, 1.0)), wanted, rtol=0.02, atol=0.01)


def test_its_gradient_moves_tokens_to_the_faster_expert():
    logits = torch.zeros(4, 2, requires_grad=True)
    latency_aware(logits, (2.0, 1.0)).backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1] < 0).all()


def test_each_token_gets_its_expert_and_its_probability():
    mixture = ShiftMixture(vit().blocks[0].mlp).eval()
    x = drawn(2, 5, 12)
    p = mixture.router(x).softmax(-1)
    wanted = torch.where(
        p[..., :1] > p[..., 1:], p[..., :1] * mixture.experts[0](x), p[..., 1:] * mixture.experts[1](x)
    )
    assert 0 < int((p[..., 0] > p[..., 1]).sum()) < 10
    torch.testing.assert_close(mixture(x), wanted)
    with torch.no_grad():
        mixture.router.weight.copy_(torch.stack([x[0, 0], -x[0, 0]]))
    assert mixture(x[:1, :1]).shape == (1, 1, 12)  # one expert without a token
    mixture.train()
    torch.manual_seed(0)
    flat = nn.init.zeros_(mixture.router.weight) @ x.flatten(0, 1).T
    assert not flat.any()
    assert len({tuple(mixture(x).flatten().tolist()) for _ in range(4)}) > 1  # noise breaks ties while training


def test_both_copies_are_the_mlp_at_first():
    mlp = vit().blocks[0].mlp
    mixture = ShiftMixture(mlp)
    assert mixture.experts[0] is mlp
    assert torch.equal(mixture.experts[1].fc1.layer.weight, mlp.fc1.weight)
    assert mixture.experts[1].fc1.layer.weight is not mlp.fc1.weight


def test_phases_are_the_whole_conversion():
    first, second = ShiftAddViT(mlp="mult"), ShiftAddViT(attention=False)
    model = vit()
    assert first.apply(model) is model
    assert isinstance(model.blocks[0].attn, AddAttention)
    assert routers(model) == {}
    assert balanced(model, pictures())[1] == 0
    second.apply(model)
    assert list(routers(model)) == ["blocks.0.mlp.router", "blocks.1.mlp.router"]
    assert isinstance(model.head, nn.Linear)


def test_the_loss_of_a_model_is_the_mean_of_its_routers():
    model = ShiftAddViT(latencies=(3.0, 1.0)).apply(vit()).eval()
    y, balance = balanced(model, pictures())
    seen = []
    for mixture in routers(model).values():
        mixture.router.register_forward_hook(lambda *call: seen.append(call[-1]))
    assert torch.equal(model(pictures()), y)
    torch.testing.assert_close(balance, sum(latency_aware(x, (3.0, 1.0)) for x in seen) / 2)


def test_every_parameter_learns():
    model = ShiftAddViT().apply(vit())
    y, balance = balanced(model, pictures())
    (F.cross_entropy(y, torch.tensor([0, 1, 2])) + balance).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


@pytest.mark.parametrize("mlp", ["moe", "shift"])
def test_integers_compute_what_was_trained(mlp):
    model = ShiftAddViT(mlp=mlp).apply(vit(qk_norm=True, norm_layer=nn.LayerNorm)).eval()
    assert len(list(quantized_layers(model))) == 4
    wanted = model(pictures())
    found = integer_(model)
    assert sum(isinstance(m, IntegerShift) for m in found.modules()) == 4
    torch.testing.assert_close(found(pictures()), wanted, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_converted_raises():
    with pytest.raises(ValueError, match="mlp must be one of moe, shift, mult, got 'add'"):
        ShiftAddViT(mlp="add")
    with pytest.raises(ValueError, match=r"latencies must be above 0, got \(0.0, 1.0\); measure both experts"):
        ShiftAddViT(latencies=(0.0, 1.0))
    with pytest.raises(ValueError, match="changes attention, MLPs or both, got neither"):
        ShiftAddViT(attention=False, mlp="mult")
    with pytest.raises(ValueError, match="bits must be in 2 to 4"):
        ShiftAddViT(bits=8)
    with pytest.raises(ValueError, match="Linear has no blocks of attn and mlp; take a vision transformer"):
        ShiftAddViT().apply(nn.Linear(2, 2))
    for again in (ShiftAddViT(mlp="mult"), ShiftAddViT(attention=False), ShiftAddViT(attention=False, mlp="shift")):
        with pytest.raises(ValueError, match="no attention or MLP left to change; apply each part once"):
            again.apply(ShiftAddViT().apply(vit()))
    with pytest.raises(ValueError, match="attention by additions takes no mask"):
        ShiftAddViT().apply(vit()).blocks[0].attn(drawn(1, 5, 12), attn_mask=torch.ones(5, 5))
    gated = vit().blocks[0].attn
    gated.gate = nn.Identity()
    with pytest.raises(ValueError, match="attention by additions has no gate"):
        AddAttention(gated)
