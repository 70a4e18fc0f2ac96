import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from foveal.models.backbone.piip import PIIP, DeformableAttention, Interaction, piip, sample

TINY = {"dims": (16, 8), "depths": (4, 2), "heads": (2, 2), "img_sizes": (8, 12), "patch_size": 2}
TINY |= {"interactions": 2, "num_heads": 2, "points": 3, "num_classes": 5}


def plain_sample(value, places, weight):
    """`sample` by its definition: four cells around each point, those outside of the map being zero."""
    batch, heads, dim, height, width = value.shape
    out = value.new_zeros(batch, weight.shape[2], heads, dim)
    x, y = places[..., 0] * width - 0.5, places[..., 1] * height - 0.5
    for b in range(batch):
        for h in range(heads):
            for n in range(weight.shape[2]):
                total = value.new_zeros(dim)
                for p in range(weight.shape[3]):
                    left, top = int(x[b, h, n, p].floor()), int(y[b, h, n, p].floor())
                    for row in (top, top + 1):
                        for column in (left, left + 1):
                            if 0 <= row < height and 0 <= column < width:
                                share = (1 - (x[b, h, n, p] - column).abs()) * (1 - (y[b, h, n, p] - row).abs())
                                total = total + weight[b, h, n, p] * share * value[b, h, :, row, column]
                out[b, n, h] = total
    return out.flatten(2)


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double).requires_grad_()


def test_sampling_is_a_weighted_sum_of_bilinear_values_and_zero_outside():
    value, weight = drawn(2, 2, 3, 3, 5), drawn(2, 2, 4, 3, seed=1)
    places = (drawn(2, 2, 4, 3, 2, seed=2).detach() * 1.6 - 0.3).requires_grad_()
    found, wanted = sample(value, places, weight), plain_sample(value, places, weight)
    torch.testing.assert_close(found, wanted)
    toward = drawn(*wanted.shape, seed=3).detach()
    gradients = [torch.autograd.grad((y * toward).sum(), (value, places, weight)) for y in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_queries_look_from_their_own_place_and_begin_in_all_directions():
    torch.manual_seed(0)
    attention = DeformableAttention(8, 4, points=2).double()
    steps = attention.offsets.bias.view(4, 2, 2)
    wanted = torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.double)
    torch.testing.assert_close(steps, torch.stack((wanted, 2 * wanted), 1), rtol=0, atol=1e-6)
    # with offsets of nothing each query reads its own place of a map of equal size
    torch.nn.init.zeros_(attention.offsets.bias)
    query, feature = drawn(2, 15, 8), drawn(2, 15, 8, seed=1)
    found = attention(query, feature, (3, 5), (3, 5))
    torch.testing.assert_close(found, attention.proj(attention.value(feature)))
    # one cell to the right on a map twice as wide: offsets are in cells of the map
    attention.offsets.bias.data.copy_(torch.tensor([0.5, 0.0]).repeat(8))
    wide = drawn(1, 30, 8, seed=2)
    right = attention.value(wide).view(1, 3, 10, 4)[:, :, 1::2].reshape(1, 15, 4)
    torch.testing.assert_close(attention(query[:1], wide, (3, 5), (3, 10)), attention.proj(right))


def test_an_exchange_reads_what_was_before_it():
    torch.manual_seed(0)
    unit = Interaction((8, 4), 2, points=2).double()
    for parameter in unit.parameters():
        torch.nn.init.normal_(parameter)
    a, b = drawn(2, 6, 8), drawn(2, 15, 4, seed=1)
    sizes = ((2, 3), (3, 5))
    found = unit(a, b, sizes)
    for one, q, f, at, size in (
        (unit.first, a, unit.to_first(b), *sizes),
        (unit.second, b, unit.to_second(a), *sizes[::-1]),
    ):
        y = q + one.gamma * one.attn(one.norm_query(q), one.norm_feature(f), at, size)
        hidden = one.fc1(one.norm_mlp(y)).unflatten(1, at).permute(0, 3, 1, 2)
        hidden = F.gelu(F.conv2d(hidden, one.dwconv.weight, one.dwconv.bias, padding=1, groups=hidden.shape[1]))
        wanted = y + one.delta * one.fc2(hidden.permute(0, 2, 3, 1).flatten(1, 2))
        torch.testing.assert_close(found[one is unit.second], wanted)


@pytest.mark.parametrize("merge", [False, True])
def test_without_exchange_branches_run_by_themselves(merge):
    torch.manual_seed(0)
    branches = [
        VisionTransformer(size, 2, embed_dim=dim, depth=2, num_heads=2, num_classes=0, global_pool="", reg_tokens=regs)
        for size, dim, regs in (((6, 4), 8, 0), ((10, 6), 4, 1))
    ]
    x = torch.rand(2, 3, 10, 6)
    small = F.interpolate(x, (6, 4), mode="bilinear", align_corners=False)
    with torch.no_grad():
        last = [branch.eval().forward_features(y) for branch, y in zip(branches, (small, x), strict=True)]
    model = PIIP(branches, interactions=1, num_heads=1, num_classes=3, merge=merge).eval()
    assert model.img_size == (10, 6)
    first = F.layer_norm(last[0][:, 1:], (8,), eps=1e-6).transpose(1, 2).unflatten(2, (3, 2))
    second = F.layer_norm(last[1][:, 2:], (4,), eps=1e-6).transpose(1, 2).unflatten(2, (5, 3))
    first = F.interpolate(first, (5, 3), mode="bilinear", align_corners=False)
    with torch.no_grad():
        if merge:
            # what the branches give is normalised once more here, all but without effect on one group a channel
            assert model.forward_features(x).shape == (2, 8, 5, 3)
        else:
            # norms of a timm branch do the same as those of the pair
            torch.testing.assert_close(model.forward_features(x), torch.cat((first, second), 1), rtol=0, atol=1e-4)
            torch.testing.assert_close(
                model(x), model.head(torch.cat((first, second), 1).mean((2, 3))), rtol=0, atol=1e-4
            )


def test_merged_maps_are_projected_resized_and_summed():
    torch.manual_seed(0)
    model = piip(**TINY, merge=True).eval()
    model.join.weight.data.copy_(torch.tensor([0.3, 2.0]))
    x, join = torch.rand(2, 3, 12, 12), model.join
    with torch.no_grad():
        tokens = model.stem(x)
        for stage in model.stages:
            tokens = stage(tokens)
        large, small = (
            y[:, 1:].transpose(1, 2).unflatten(2, size) for y, size in zip(tokens, ((4, 4), (6, 6)), strict=True)
        )
        large = F.interpolate(F.group_norm(large, 16), (6, 6), mode="bilinear", align_corners=False)
        proj = join.projs[0]
        small = F.group_norm(F.conv2d(F.group_norm(small, 8), proj.weight[..., None, None], proj.bias), 16)
        merged = (0.3 * large + 2 * small).permute(0, 2, 3, 1)
        wanted = F.layer_norm(merged, (16,), eps=1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(model.forward_features(x), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(x), model.head(wanted.mean((2, 3))), rtol=0, atol=1e-5)
        assert torch.equal(model.forward_intermediates(x)[1][-1], model.forward_features(x))


def test_three_branches_exchange_from_the_largest_picture_down():
    torch.manual_seed(0)
    sizes = {"dims": (8, 8, 4), "depths": (1, 1, 1), "heads": (2, 2, 2), "img_sizes": (4, 6, 8), "interactions": 1}
    model = piip(**{**TINY, **sizes}).eval()
    stage, order = model.stages[0], []
    for i, unit in enumerate(stage.units):
        unit.register_forward_hook(lambda *_, i=i: order.append(i))
    model(torch.rand(1, 3, 8, 8))
    assert order == [1, 0]
    assert [len(blocks) for blocks in stage.blocks] == [1, 1, 1]


def test_timm_knows_it():
    model = timm.create_model("piip_tsb", features_only=True, **{k: v for k, v in TINY.items() if k != "num_classes"})
    assert [tuple(found.shape) for found in model(torch.rand(1, 3, 12, 12))] == [(1, 24, 6, 6)] * 2


def test_wrong_sizes_raise():
    with pytest.raises(ValueError, match=r"num_heads must divide the 4 channels of the values, half of 8, got 3"):
        DeformableAttention(8, 3)
    with pytest.raises(
        ValueError, match=r"from the smallest picture on, got pictures of \[144, 64\] pixels; sort them"
    ):
        piip(**{**TINY, "img_sizes": (12, 8)})
    with pytest.raises(ValueError, match=r"branches must be two or more, .* got pictures of \[64\] pixels"):
        piip(**{**TINY, "dims": (8,), "depths": (2,), "heads": (2,), "img_sizes": (8,)})
    with pytest.raises(ValueError, match=r"interactions must divide the depths \[4, 2\], got 4; their gcd does"):
        piip(**{**TINY, "interactions": 4})
