import pytest
import timm
import torch

from foveal.measure.cost import count_macs
from foveal.models.backbone.lookup_vit import LookupBlock, lookup_vit, lookup_vit_base, lookup_vit_small

TINY = {"dim": 8, "depth": 2, "num_heads": 2, "patch_size": 4, "grid": (4, 4), "num_classes": 5}


def test_a_block_looks_up_works_and_reads_back():
    torch.manual_seed(0)
    block = LookupBlock(6, num_heads=2, narrow=3).double()
    patches = torch.randn(2, 15, 6, dtype=torch.double, requires_grad=True)
    few = torch.randn(2, 4, 6, dtype=torch.double, requires_grad=True)
    found = block(torch.cat((patches, few), 1), (3, 5))
    q, (k, v) = block.q(block.norm_few(few)), block.kv(block.norm_all(patches)).chunk(2, 2)
    gathered, weights = torch.zeros_like(few), []
    for head in (slice(0, 3), slice(3, 6)):
        alike = q[..., head] @ k[..., head].transpose(1, 2) / 3**0.5
        gathered[..., head] = alike.softmax(2) @ v[..., head]
        weights.append(alike.transpose(1, 2).softmax(2))
    worked = block.block(few + block.gathered(gathered))
    values, back = block.v(block.norm_back(worked)), torch.zeros_like(patches)
    for head, weight in zip((slice(0, 3), slice(3, 6)), weights, strict=True):
        back[..., head] = weight @ values[..., head]
    seen = patches + block.read(back)
    seen = seen + block.mlp(block.norm_mlp(seen))
    wanted = torch.cat((seen, worked), 1)
    torch.testing.assert_close(found, wanted)
    assert block.mlp.fc1.weight.shape == (2, 6)
    toward = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((y * toward).sum(), (patches, few)) for y in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_compressed_tokens_are_the_resized_patches():
    torch.manual_seed(0)
    model, x = lookup_vit(**TINY, sides=(2,)).eval(), torch.rand(1, 3, 16, 16)
    tokens, size = model.embed(x)
    assert size == (4, 4)
    blocks = tokens[:, :16].view(1, 2, 2, 2, 2, 8).mean((2, 4))  # 4×4 to 2×2: means of four
    torch.testing.assert_close(tokens[:, 16:], blocks.flatten(1, 2))


def test_the_head_reads_both_means():
    torch.manual_seed(0)
    model, x = lookup_vit(**TINY, sides=(3,)).eval(), torch.rand(2, 3, 13, 22)
    tokens, size = model.embed(x)
    assert tokens.shape == (2, 24 + 9, 8)
    for block in model.blocks:
        tokens = block(tokens, size)
    tokens = model.norm(tokens)
    assert model.forward_features(x).shape == (2, 24, 8)
    torch.testing.assert_close(model(x), model.head(tokens[:, :24].mean(1) + tokens[:, 24:].mean(1)))
    last, maps = model.forward_intermediates(x)
    torch.testing.assert_close(last, model.forward_features(x))
    assert [tuple(found.shape) for found in maps] == [(2, 8, 4, 6)] * 2


def test_the_number_of_compressed_tokens_can_be_changed():
    torch.manual_seed(0)
    model, x = lookup_vit(**TINY, sides=(1, 3)).eval(), torch.rand(2, 3, 16, 16)
    found = []
    for side in (1, 2, 3):
        model.set_side(side)
        found.append((model(x), count_macs(model, (1, 3, 16, 16))))
    assert not torch.allclose(found[0][0], found[2][0])
    assert found[0][1] < found[1][1] < found[2][1]
    seen = {model.train().embed(x)[0].shape[1] for _ in range(20)}
    assert seen == {17, 25}


def test_counts_are_half_of_the_vit_s():
    for ours, name in ((lookup_vit_small, "small"), (lookup_vit_base, "base")):
        model, plain = (
            ours(depth=1, num_classes=0),
            timm.create_model(f"vit_{name}_patch16_224", depth=1, num_classes=0),
        )
        less = [count_macs(network, (1, 3, 224, 224)) - 196 * 768 * network.num_features for network in (model, plain)]
        assert less[0] / less[1] < 0.5


def test_timm_knows_it():
    model = timm.create_model("lookup_vit_small", features_only=True, out_indices=(0, 1), **TINY)
    assert [tuple(found.shape) for found in model(torch.rand(1, 3, 16, 16))] == [(1, 8, 4, 4)] * 2


def test_wrong_sizes_raise():
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads, got 8 and 3; change one of them"):
        lookup_vit(**{**TINY, "num_heads": 3})
    for sides in ((), (0, 2)):
        with pytest.raises(ValueError, match="sides must be one or more numbers from 1 on, got"):
            lookup_vit(**TINY, sides=sides)
    with pytest.raises(ValueError, match="side must be at least 1, got 0; M is its square"):
        lookup_vit(**TINY).set_side(0)
