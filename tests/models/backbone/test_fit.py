import pytest
import torch
from torch import nn

from foveal.models.backbone.fit import FIT, CrossAttention, FITStage, join, split


def fit(**words):
    torch.manual_seed(0)
    settings = {"dim": 8, "layers": ((1, 1), (1, 1)), "num_heads": 2, "patch_size": 2, "group_size": 2, "latents": 3}
    return FIT(**{**settings, "grid": (4, 6), "num_classes": 3, **words}).eval()


def test_groups_are_squares_and_join_is_the_inverse():
    x = torch.arange(24.0).view(1, 24, 1)  # 4 rows of 6
    groups = split(x, (4, 6), 2)
    assert groups[0, 1].flatten().tolist() == [2, 3, 8, 9]
    assert groups[0, 3].flatten().tolist() == [12, 13, 18, 19]
    assert torch.equal(join(groups, (4, 6), 2), x)


def test_cross_attention_equals_one_token_at_a_time_with_gradients():
    torch.manual_seed(0)
    layer = CrossAttention(6, 2).double()
    x, context = (torch.randn(2, count, 6, dtype=torch.float64, requires_grad=True) for count in (3, 5))

    def plain(x, context):
        q, (k, v) = layer.q(layer.norm(x)), layer.kv(layer.norm_context(context)).chunk(2, 2)
        out = []
        for head in (slice(0, 3), slice(3, 6)):
            weights = (q[..., head] @ k[..., head].transpose(1, 2) / 3**0.5).softmax(2)
            out.append(weights @ v[..., head])
        return x + layer.proj(torch.cat(out, 2))

    ours, theirs = layer(x, context), plain(x, context)
    torch.testing.assert_close(ours, theirs)
    every = [x, context, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), every) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_stage_equals_groups_worked_on_one_by_one():
    torch.manual_seed(0)
    stage = FITStage(8, 2, (1, 2), group=4, latents=3, write=True).double().eval()
    tokens = torch.randn(2, 5 * 7, 8, dtype=torch.float64)
    wanted = torch.empty_like(tokens)
    for picture in range(2):
        groups = [tokens[picture : picture + 1, 7 * t : 7 * t + 7] for t in range(5)]
        data = [stage.local_layers(group[:, :4]) for group in groups]
        latents = [stage.read(group[:, 4:], x) for group, x in zip(groups, data, strict=True)]
        mixed = stage.global_layers(torch.cat(latents, 1))
        for t in range(5):
            z = mixed[:, 3 * t : 3 * t + 3]
            wanted[picture, 7 * t : 7 * t + 7] = torch.cat((stage.write(data[t], z), z), 1)[0]
    torch.testing.assert_close(stage(tokens, (0, 0)), wanted)


def test_without_global_layers_groups_do_not_see_each_other():
    torch.manual_seed(0)
    x = torch.randn(1, 14, 8)
    other = x.clone()
    other[:, 7:] += 1
    for layers, apart in (((2, 0), True), ((1, 1), False)):
        stage = FITStage(8, 2, layers, group=4, latents=3, write=True).eval()
        assert torch.equal(stage(x, (0, 0))[:, :4], stage(other, (0, 0))[:, :4]) is apart


def test_the_head_reads_latents_or_patches():
    x = torch.rand(2, 3, 8, 12)
    for layers, first, last in ((((1, 1), (1, 1)), 4, 7), (((1, 1), (1, 0)), 0, 4)):
        model = fit(layers=layers)
        tokens = model.forward_features(x).view(2, 6, 7, 8)
        torch.testing.assert_close(model(x), model.head(tokens[:, :, first:last].mean((1, 2))))


def test_maps_are_the_patches_where_they_were():
    model, x = fit(), torch.rand(1, 3, 8, 12)
    tokens, size = model.embed(x)
    plain = model.patch_embed(x) + model.pos_embed.transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(model._map(tokens, size), plain)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [tuple(one.shape) for one in maps] == [(1, 8, 4, 6)] * 2


@pytest.mark.parametrize("size", [(8, 12), (9, 13), (17, 5)])
def test_any_size(size):
    model = fit()
    assert model(torch.rand(2, 3, *size)).shape == (2, 3)
    tokens, (rows, columns) = model.embed(torch.rand(1, 3, *size))
    assert rows % 2 == columns % 2 == 0
    assert tokens.shape[1] == rows * columns // 4 * 7


def test_latents_are_made_for_whole_groups():
    assert fit(grid=(3, 5)).latent_embed.shape == (1, 6, 3, 8)
    assert "latent_embed" in fit().no_weight_decay()


def test_every_parameter_learns():
    for layers in (((1, 1), (1, 1)), ((1, 1), (1, 0))):
        model = fit(layers=layers).train()
        model(torch.rand(2, 3, 8, 12)).sum().backward()
        assert {name for name, value in model.named_parameters() if value.grad is None} == set()


def test_wrong_layers_raise():
    for layers in ((), ((1, 0), (1, 1))):
        with pytest.raises(ValueError, match="each stage but the last must have global layers, got"):
            fit(layers=layers)
    assert isinstance(fit(layers=((2, 0),)), nn.Module)
