import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.models.backbone.glmix import GLMix, GLNet, GLNetBlock, assign

TINY = {"dims": (8, 8), "depths": (1, 3), "mixers": ("glmix", "alternate"), "head_dim": 4, "num_slots": 4}


def plain(layer, x):
    """One slot and one pixel at a time."""
    out = []
    for picture in x:
        dim, height, width = picture.shape
        pixels = [picture[:, i, j] for i in range(height) for j in range(width)]
        slots = list(F.adaptive_avg_pool2d(picture, layer.cells).flatten(1).T)
        alike = [[layer.scale * F.cosine_similarity(s, p, dim=0) for p in pixels] for s in slots]
        sums = []
        for row in alike:
            total = sum(a.exp() for a in row)
            sums.append(sum(a.exp() / total * p for a, p in zip(row, pixels, strict=True)))
        mixed = layer.attn(torch.stack(sums)[None])[0]
        columns = []
        for i in range(height * width):
            total = sum(row[i].exp() for row in alike)
            columns.append(sum(row[i].exp() / total * z for row, z in zip(alike, mixed, strict=True)))
        out.append(torch.stack(columns, 1).view(dim, height, width))
    return torch.stack(out) + layer.conv(x)


@pytest.mark.parametrize("size", [(3, 5), (4, 4)])
def test_it_equals_one_pixel_at_a_time_with_gradients(size):
    torch.manual_seed(0)
    layer = GLMix(6, 2, num_slots=4, kernel_size=3).double()
    layer.scale.data.fill_(3.0)
    x, back = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True), torch.randn(2, 6, *size).double()
    every = [x, *layer.parameters()]
    found = []
    for run in (layer, lambda x: plain(layer, x)):
        y = run(x)
        found.append((y, torch.autograd.grad((y * back).sum(), every)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-10)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_both_assignments_sum_to_one_along_their_own_axis():
    torch.manual_seed(0)
    gather, dispatch = assign(torch.randn(2, 5, 7), torch.randn(2, 3, 5), 2.0)
    assert gather.shape == dispatch.shape == (2, 3, 7)
    torch.testing.assert_close(gather.sum(2), torch.ones(2, 3))
    torch.testing.assert_close(dispatch.sum(1), torch.ones(2, 7))


def test_lengths_of_pixels_and_slots_do_not_matter_to_the_assignment():
    torch.manual_seed(0)
    x, slots = torch.randn(1, 5, 7), torch.randn(1, 3, 5)
    for ours, theirs in zip(assign(3 * x, 9 * slots, 2.0), assign(x, slots, 2.0), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_slot_is_the_mean_for_all():
    torch.manual_seed(0)
    layer, x = GLMix(6, 2, num_slots=1), torch.randn(1, 6, 3, 4)
    layer.scale.data.zero_()
    same = layer.attn(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None]
    torch.testing.assert_close(layer(x), same + layer.conv(x))


def test_slots_begin_before_positions_and_norm():
    torch.manual_seed(0)
    block, x = GLNetBlock(8, 2, num_slots=4).eval(), torch.randn(1, 8, 4, 6)
    seen = []
    block.mixer.register_forward_pre_hook(lambda _, given: seen.extend(given))
    block(x)
    torch.testing.assert_close(seen[1], F.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2))
    torch.testing.assert_close(seen[0], block.norm1(x + block.pos_conv(x)))


def test_mixers_take_turns():
    model = GLNet(num_classes=2, **TINY)
    kinds = [[isinstance(m.mixer, GLMix) for m in stage if isinstance(m, GLNetBlock)] for stage in model.stages]
    assert kinds == [[True], [True, False, True]]


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (9, 70)])
def test_any_size(size):
    model = GLNet(num_classes=3, layer_scale=0.1, **TINY).eval()
    assert model(torch.rand(1, 3, *size)).shape == (1, 3)


def test_wrong_settings_raise():
    for number in (0, 6):
        with pytest.raises(ValueError, match=f"num_slots must be a square number, got {number}; the slots begin as"):
            GLMix(8, 2, num_slots=number)
    for mixers in (("glmix",), ("glmix", "mean")):
        with pytest.raises(ValueError, match="mixers must be 2 of glmix, attention, alternate, got"):
            GLNet(**{**TINY, "mixers": mixers})


def test_attention_blocks_normalise_each_pixel():
    torch.manual_seed(0)
    block, x = GLNetBlock(8, 2, mixer="attention").eval(), torch.randn(2, 8, 3, 5)
    nn.init.zeros_(block.pos_conv.weight)
    nn.init.zeros_(block.pos_conv.bias)
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    pixels = x.flatten(2).transpose(1, 2)
    mixed = block.mixer.attn(F.layer_norm(pixels, (8,), eps=1e-6)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(block(x), x + mixed)
