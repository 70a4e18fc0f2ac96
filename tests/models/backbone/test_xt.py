import math

import pytest
import torch

from foveal.models.backbone.xt import ContextBlock, join, positions, regions, xt

TINY = {"region_size": 8, "patch_size": 2, "embed_dim": 4, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}


def network(dim=8, depth=2, **words):
    torch.manual_seed(0)
    return xt(dim, depth, **{**TINY, "state": 2, "num_classes": 3, **words}).eval()


def test_regions_are_cut_row_by_row_and_picture_by_picture():
    x = torch.arange(2 * 6 * 9.0).view(2, 1, 6, 9)
    cut = regions(x, 3, 0, 12)
    plain = x.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    assert torch.equal(cut, plain)
    assert torch.equal(regions(x, 3, 4, 9), plain[4:9])


def test_regions_beyond_the_border_are_zero():
    x = torch.ones(1, 2, 5, 7)
    cut = regions(x, 4, 0, 4)
    assert cut.shape == (4, 2, 4, 4)
    assert [int(part[0].sum()) for part in cut] == [16, 12, 4, 3]
    assert cut[3, 0, 0].tolist() == [1, 1, 1, 0]


def test_features_of_regions_lie_where_the_regions_were():
    x = torch.rand(2, 3, 6, 10)
    features = regions(x, 2, 0, 30).permute(0, 2, 3, 1)
    assert torch.equal(join(features, 3, 5), x.permute(0, 2, 3, 1))


def test_positions_are_sines_and_cosines_of_column_and_row():
    found = positions(3, 5, 8)
    for row, column in ((0, 0), (2, 4), (1, 3)):
        wanted = [f(place * rate) for place in (column, row) for f in (math.sin, math.cos) for rate in (1, 0.01)]
        assert found[row, column].tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_reversed_layer_is_the_layer_on_the_reversed_sequence():
    torch.manual_seed(0)
    block, tokens = ContextBlock(8, state=2, reverse=True), torch.randn(2, 7, 8)
    backward = block(tokens)
    block.reverse = False
    torch.testing.assert_close(backward.flip(1), block(tokens.flip(1)))
    normed = block.norm(tokens)
    torch.testing.assert_close(block(tokens), normed + block.mixer(normed))


def test_any_chunk_gives_the_same_outputs_and_gradients():
    model, x = network().double(), torch.rand(2, 3, 13, 22).double()
    found = []
    for chunk in (None, 1, 4, 5, 100):
        model.set_chunk(chunk)
        out = model(x)
        found.append((out, torch.autograd.grad(out.square().sum(), list(model.parameters()))))
    for out, gradients in found[1:]:
        torch.testing.assert_close(out, found[0][0])
        for a, b in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(a, b)


def test_a_chunk_is_what_the_encoder_gets():
    model, counts = network(chunk=4), []
    model.encoder.patch_embed.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[0]))
    model(torch.rand(1, 3, 24, 24))
    assert counts == [4, 4, 1]


def test_one_region_is_the_encoder_itself():
    model, x = network(), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(model.encode(x), model.proj(model.encoder.forward_features(x)))


def test_regions_are_read_apart_and_joined_by_the_sequence():
    for depth in (1, 2, 3):
        model, x = network(depth=depth), torch.rand(1, 3, 24, 24)
        other = x.clone()
        other[..., :8, :8] += 1  # the first region, as far as can be from the token at the end
        ours, theirs = model.encode(x), model.encode(other)
        assert torch.equal(ours[:, 2:], theirs[:, 2:])
        assert torch.equal(ours[:, :, 2:], theirs[:, :, 2:])
        assert not torch.equal(ours[:, :2, :2], theirs[:, :2, :2])
        assert not torch.equal(model(x), model(other))


def test_the_head_reads_the_last_token():
    model, x = network(), torch.rand(2, 3, 9, 17)
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 2 * 2 * 3 * 2 + 1, 8)
    torch.testing.assert_close(model(x), model.head(tokens[:, -1]))
    assert network(num_classes=0)(x).shape == (2, 8)


def test_wrong_sizes_raise():
    with pytest.raises(ValueError, match="dim must be a multiple of 4, got 6; a quarter each"):
        network(dim=6)
    with pytest.raises(ValueError, match="chunk must be at least 1 region, got 0; None encodes all regions at once"):
        network(chunk=0)
