import pytest
import torch
from torch import nn

from foveal.nn.isotropic import Isotropic, PatchEmbed


class Add(nn.Module):
    """Adds a number to all tokens."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, tokens, size):
        assert tokens.shape[1] - size[0] * size[1] in {0, 1}
        return tokens + self.value


def build(class_token=False, **kwargs):
    torch.manual_seed(0)
    blocks = [Add(1.0), Add(10.0), Add(100.0)]
    return Isotropic(PatchEmbed(4, 8), blocks, 4, 8, grid=(2, 3), num_classes=5, class_token=class_token, **kwargs)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize(
    ("size", "grid"), [((16, 24), (2, 3)), ((15, 17), (2, 3)), ((1, 33), (1, 5)), ((40, 8), (5, 1))]
)
def test_any_size_gives_logits_and_maps(class_token, size, grid):
    model = build(class_token)
    x = torch.rand(2, 3, *size)
    assert model(x).shape == (2, 5)
    assert model.forward_features(x).shape == (2, grid[0] * grid[1] + class_token, 4)
    last, maps = model.forward_intermediates(x)
    assert last.shape[1] == grid[0] * grid[1] + class_token
    assert [tuple(found.shape) for found in maps] == [(2, 4, *grid)] * 3


def test_on_its_own_grid_positions_are_added_as_they_are():
    model = build()
    tokens, size = model.embed(torch.zeros(1, 3, 16, 24))
    assert size == (2, 3)
    torch.testing.assert_close(tokens, model.patch_embed.proj.bias + model.pos_embed)


def test_the_class_token_stands_in_the_middle_with_a_position_of_its_own():
    model = build(class_token=True)
    tokens, _ = model.embed(torch.zeros(1, 3, 16, 24))
    torch.testing.assert_close(tokens[:, 3:4], model.cls_token + model.pos_embed[:, 3:4])
    others = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(tokens[:, others], model.patch_embed.proj.bias + model.pos_embed[:, others])
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens[:, 3])
    # an odd number of patches
    tokens, _ = model.embed(torch.zeros(1, 3, 24, 24))
    torch.testing.assert_close(tokens[:, 4:5], model.cls_token + model.pos_embed[:, 3:4])
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens[:, 4])


def test_without_a_class_token_the_head_reads_the_mean():
    model = build()
    tokens = torch.rand(2, 6, 4)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens.mean(1))


def test_patches_are_filled_up_at_right_and_bottom():
    embed = PatchEmbed(4, 8)
    x = torch.rand(1, 3, 9, 5)
    whole = torch.zeros(1, 3, 16, 8)
    whole[..., :9, :5] = x
    torch.testing.assert_close(embed(x), embed.proj(whole))


@pytest.mark.parametrize("class_token", [False, True])
def test_intermediate_maps_are_those_after_the_blocks(class_token):
    model = build(class_token)
    x = torch.rand(1, 3, 16, 24)
    first, last = model.forward_intermediates(x, [0, -1], intermediates_only=True)
    torch.testing.assert_close(last, first + 110)
    only = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(only[0], first)
    (second, third) = model.forward_intermediates(x, 2, intermediates_only=True)
    torch.testing.assert_close(third, second + 100)
    patches = [i for i in range(6 + class_token) if not class_token or i != 3]
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), model.forward_features(x)[:, patches])


def test_intermediate_maps_are_normalised_on_demand():
    model = build(norm=nn.LayerNorm(4))
    (raw,) = model.forward_intermediates(torch.rand(1, 3, 16, 24), [1], intermediates_only=True)
    (normed,) = model.forward_intermediates(torch.rand(1, 3, 16, 24), [1], intermediates_only=True, norm=True)
    assert raw.mean(1).abs().min() > 1
    assert normed.mean(1).abs().max() < 1e-5


def test_wrong_questions_raise():
    model = build()
    with pytest.raises(ValueError, match="output_fmt must be NCHW, got 'NLC'"):
        model.forward_intermediates(torch.rand(1, 3, 16, 24), output_fmt="NLC")
    with pytest.raises(ValueError, match=r"indices must be in -3…2, got \[3\]"):
        model.forward_intermediates(torch.rand(1, 3, 16, 24), [3])


def test_layers_that_are_not_needed_go():
    model = build(norm=nn.LayerNorm(4))
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert len(model.blocks) == 2
    assert isinstance(model.norm, nn.Identity)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(torch.rand(1, 3, 16, 24)).shape == (1, 4)


def test_a_fresh_classifier():
    model = build()
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(torch.rand(1, 3, 16, 24)).shape == (1, 7)
    assert model.feature_info[-1] == {"num_chs": 4, "reduction": 8, "module": "blocks.2"}


def test_the_mean_beside_a_class_token_leaves_it_out():
    model = build(class_token=True)
    tokens = torch.rand(2, 7, 4)
    model.set_global_pool("avg")
    want = tokens[:, [0, 1, 2, 4, 5, 6]].mean(1)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), want)
    with pytest.raises(ValueError, match="global_pool must be one of 'avg', '', got 'token'"):
        build().set_global_pool("token")


def test_positions_are_left_out_of_weight_decay():
    assert build(class_token=True).no_weight_decay() == {"pos_embed", "cls_token"}
