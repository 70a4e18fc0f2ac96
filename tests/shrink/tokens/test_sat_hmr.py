import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveal.runtime.route import recording
from foveal.shrink.tokens.flexivit import FlexiViT
from foveal.shrink.tokens.sat_hmr import SATHMR, levels, map_loss

SIZE = (8, 16)  # with patches of 2: 4×8 fine ones, 2×4 coarse ones, 1×2 groups


def vit(size=SIZE, **words):
    torch.manual_seed(0)
    return VisionTransformer(size, 2, embed_dim=8, depth=3, num_heads=2, num_classes=3, **words).eval()


def scale_map(text):
    """Of a row of letters for each row of coarse patches: small, large, empty."""
    there = torch.tensor([[float(letter != ".") for letter in row] for row in text.split()])
    scale = torch.tensor([[0.2 if letter == "s" else 0.9 for letter in row] for row in text.split()])
    return torch.stack((there, scale))


def plain(network, x, text):
    """One picture: its tokens are picked one by one, and the stock blocks run on them."""
    model, own, rows = network.model, network.model.num_prefix_tokens, text.split()
    tokens = model._pos_embed(model.patch_embed(x))
    positions = (model.pos_embed if model.no_embed_class else model.pos_embed[:, own:]).view(1, 4, 8, 8)
    coarse = F.conv2d(F.avg_pool2d(x, 2), network.embed.weight, network.embed.bias, stride=2)
    coarse = coarse + F.interpolate(positions.permute(0, 3, 1, 2), (2, 4), mode="bicubic")
    low = torch.cat((tokens[:, :own], coarse.flatten(2).transpose(1, 2)), 1)
    for block in network.early:
        low = block(low)
    small = [(i, j) for i in range(4) for j in range(8) if rows[i // 2][j // 2] == "s"]
    high = model.blocks[0](torch.cat((tokens[:, :own], tokens[:, [own + i * 8 + j for i, j in small]]), 1))
    share = len(small) / 32
    kept = list(((1 - share) * low[0, :own] + share * high[0, :own]).unbind(0))
    places = {}
    for number, place in enumerate(small):
        places[place] = len(kept)
        kept.append(high[0, own + number])
    for i in range(2):
        for j in range(4):
            group = [(a, 2 * (j // 2) + b) for a in (0, 1) for b in (0, 1)]
            empty = all(rows[a][b] == "." for a, b in group)
            if rows[i][j] == "s" or (empty and (i, j) != group[0]):
                continue
            covered = group if empty else [(i, j)]
            for a, b in covered:
                places.update({(2 * a + c, 2 * b + d): len(kept) for c in (0, 1) for d in (0, 1)})
            kept.append(torch.stack([low[0, own + a * 4 + b] for a, b in covered]).amax(0))
    y = model.norm(model.blocks[1:](torch.stack(kept)[None]))
    return y[:, list(range(own)) + [places[i, j] for i in range(4) for j in range(8)]]


HEADS = [{}, {"class_token": False, "global_pool": "avg"}, {"no_embed_class": True, "reg_tokens": 2}]
MAPS = ["s.l. ..s.", "..ll ..ls", ".... ....", "ssss ssss", "llll ll.."]


@pytest.mark.parametrize("words", HEADS)
def test_pictures_of_different_lengths_equal_those_picked_one_by_one(words):
    network, x = SATHMR(layers=1).apply(vit(**words)), torch.rand(len(MAPS), 3, *SIZE)
    nn.init.normal_(network.early[0].mlp.fc2.weight)  # the coarse path has weights of its own
    with torch.no_grad():
        wanted = torch.cat([plain(network, x[i : i + 1], text) for i, text in enumerate(MAPS)])
        found, _ = network.encode(x, torch.stack([scale_map(text) for text in MAPS]))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        alone, _ = network.encode(x[2:3], scale_map(MAPS[2])[None])  # not one fine patch in the batch
        torch.testing.assert_close(alone, wanted[2:3], rtol=0, atol=1e-5)
        out, _ = network.mapped(x, torch.stack([scale_map(text) for text in MAPS]))
        torch.testing.assert_close(out, network.model.forward_head(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("words", HEADS)
def test_all_fine_is_the_plain_network(words):
    model, x = vit(**words), torch.rand(2, 3, *SIZE)
    network = SATHMR(layers=2, by="high").apply(model)
    nn.init.normal_(network.early[0].mlp.fc2.weight)
    with torch.no_grad():
        torch.testing.assert_close(network.forward_features(x), model.forward_features(x), rtol=0, atol=1e-6)
        torch.testing.assert_close(network(x), model(x), rtol=0, atol=1e-6)


def test_all_coarse_keeps_every_coarse_token():
    network, x = SATHMR(layers=1, by="low").apply(vit()), torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        wanted = torch.cat([plain(network, picture[None], "llll llll") for picture in x])
        torch.testing.assert_close(network.forward_features(x), wanted, rtol=0, atol=1e-5)


def test_levels_follow_the_thresholds():
    scales = torch.tensor([[0.31, 0.31, 0.30, 0.29], [0.31, 0.9, 0.0, 0.1]])
    sizes = torch.tensor([[0.49, 0.5, 0.1, 0.1], [0.51, 0.0, 0.1, 0.1]])
    found = levels(torch.stack((scales, sizes))[None], confidence=0.3, small=0.5)
    assert found.fine[0].tolist() == [[True, False, False, False], [False, True, False, False]]
    assert found.pooled[0].tolist() == [[False, True]]


def test_the_loss_is_focal_and_absolute():
    found = torch.tensor([[[[0.8, 0.4]], [[0.3, 0.9]]]], requires_grad=True)
    wanted = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.0]]]])
    logs = torch.tensor([0.8, 0.6]).log()
    focal = -(0.25 * 0.2**2 * logs[0] + 0.75 * 0.4**2 * logs[1]) / 2
    loss = map_loss(found, wanted)
    torch.testing.assert_close(loss, focal + 0.2)
    loss.backward()
    assert found.grad[0, 1, 0, 1] == 0  # no scale is wanted where nothing is
    assert (found.grad[0, 0] != 0).all()
    assert map_loss(torch.tensor([[[[1e-9]], [[0.5]]]]), torch.zeros(1, 2, 1, 1)) < 1e-6


def test_every_parameter_learns():
    network = SATHMR(layers=1).apply(vit()).train()
    x, wanted = torch.rand(3, 3, *SIZE), torch.stack([scale_map(text) for text in MAPS[:3]])
    out, found = network.mapped(x, wanted)
    (F.cross_entropy(out, torch.tensor([0, 1, 2])) + map_loss(found, wanted)).backward()
    assert {name for name, value in network.named_parameters() if value.grad is None} == set()
    assert found.shape == (3, 2, 2, 4)


def test_the_predicted_map_chooses():
    network, x = SATHMR(layers=1).apply(vit()), torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        found = network.encode(x)[1]
        torch.testing.assert_close(network.forward_features(x), network.encode(x, found)[0])
        network.scale_head[-1].bias.copy_(torch.tensor([9.0, -9.0]))  # all there and small
        torch.testing.assert_close(network(x), network.model(x), rtol=0, atol=1e-6)


def test_the_route_tells_what_is_read_at_which_level():
    network = SATHMR(layers=1).apply(vit())
    with recording() as routes, torch.no_grad():
        network.encode(torch.rand(1, 3, *SIZE), scale_map("s... l...")[None])
    (route,) = routes
    assert route.work[0].tolist() == [[1, 1, 0.25, 0.25, *[1 / 16] * 4]] * 2 + [[*[0.25] * 4, *[1 / 16] * 4]] * 2
    assert route.counts == (14.0, 9.0, 9.0)  # two class tokens, eight coarse, four fine; then one, four, three, one
    assert route.of == (33.0, 33.0, 33.0)


def test_wrong_settings_raise():
    with pytest.raises(ValueError, match="layers must be at least 1, got 0; 3 suits a ViT-B"):
        SATHMR(layers=0)
    for name in ("confidence", "small"):
        with pytest.raises(ValueError, match=rf"{name} must be in \(0, 1\), got 1.0"):
            SATHMR(**{name: 1.0})
    with pytest.raises(ValueError, match="by must be one of scale, high, low, got 'random'"):
        SATHMR(by="random")
    with pytest.raises(ValueError, match="layers must be fewer than the 3 blocks, got 3"):
        SATHMR().apply(vit())


def test_networks_that_cannot_be_read_so_raise():
    with pytest.raises(TypeError, match="model must be a vision transformer of timm, got Linear"):
        SATHMR().apply(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model must be a vision transformer of timm, got VisionTransformer"):
        SATHMR().apply(FlexiViT(sizes=(2,)).apply(vit()))
    with pytest.raises(ValueError, match="the map of patches must have sides that are multiples of 4, got 4×6"):
        SATHMR().apply(vit((8, 12)))
    model = vit()
    model.blocks[1] = nn.Identity()
    with pytest.raises(TypeError, match="blocks must be timm's Block with its Attention, got Identity"):
        SATHMR().apply(model)
