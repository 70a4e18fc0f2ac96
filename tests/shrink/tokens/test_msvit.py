import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveal.runtime.route import recording
from foveal.shrink.tokens.flexivit import FlexiViT
from foveal.shrink.tokens.msvit import MSViT, batch_shaping, gumbel_sigmoid, hyperprior

SIZE = (8, 12)  # with patches of 2: 4×6 fine ones, 2×3 coarse ones


def vit(size=SIZE, **words):
    torch.manual_seed(0)
    return VisionTransformer(size, 2, embed_dim=8, depth=2, num_heads=2, num_classes=3, **words).eval()


def choosing(model, fine):
    """A network that chooses what it is told."""
    model.choose = lambda _: (None, torch.as_tensor(fine, dtype=torch.float32))
    return model


def plain(model, x, fine):
    """One picture: its tokens are picked one by one, and the stock blocks run on them."""
    tokens = model._pos_embed(model.patch_embed(x))
    own, kept, places = model.num_prefix_tokens, [], {}
    half = model.patch_embed.proj(F.avg_pool2d(x, 2))
    positions = (model.pos_embed if model.no_embed_class else model.pos_embed[:, own:])[0].view(4, 6, -1)
    kept += [tokens[0, i] for i in range(own)]
    for i in range(4):
        for j in range(6):
            if fine[i // 2 * 3 + j // 2]:
                places[i, j] = len(kept)
                kept.append(tokens[0, own + i * 6 + j])
    for i in range(2):
        for j in range(3):
            if not fine[i * 3 + j]:
                around = positions[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1))
                for a in (0, 1):
                    for b in (0, 1):
                        places[2 * i + a, 2 * j + b] = len(kept)
                kept.append(half[0, :, i, j] + around)
    y = model.norm(model.blocks(torch.stack(kept)[None]))
    order = list(range(own)) + [places[i, j] for i in range(4) for j in range(6)]
    return model.forward_head(y[:, order])


HEADS = [{}, {"class_token": False, "global_pool": "avg"}, {"no_embed_class": True, "reg_tokens": 2}]


@pytest.mark.parametrize("words", HEADS)
def test_pictures_of_different_lengths_equal_those_picked_one_by_one(words):
    model, x = vit(**words), torch.rand(3, 3, *SIZE)
    fine = [[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 1]]
    mixed = choosing(MSViT(by="random").apply(model), fine)
    with torch.no_grad():
        wanted = torch.cat([plain(model, x[i : i + 1], fine[i]) for i in range(3)])
        torch.testing.assert_close(mixed(x), wanted, rtol=0, atol=1e-5)
        # training has all tokens there and masks some
        torch.testing.assert_close(mixed.train()(x), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("words", HEADS)
def test_all_fine_is_the_plain_network(words):
    model, x = vit(**words), torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(MSViT(by="fine").apply(model)(x), model(x))


def test_choices_are_binary_and_have_the_gradient_of_the_relaxed_ones():
    torch.manual_seed(0)
    logits = torch.full((4000,), 1.0, requires_grad=True)
    drawn = gumbel_sigmoid(logits)
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert float(drawn.detach().mean()) == pytest.approx(float(torch.tensor(1.0).sigmoid()), abs=0.03)
    drawn.sum().backward()
    assert ((logits.grad > 0) & (logits.grad <= 0.25)).all()


def test_the_gate_learns_from_what_it_left_out():
    model = MSViT(hidden=4).apply(vit().train())
    model.gate[-1].bias.data.fill_(-40.0)  # all coarse, for certain
    seen = []
    model.choose = lambda x: (None, seen.append((1e-9 * model.gate(x).flatten(1)).requires_grad_()) or seen[0])
    model(torch.rand(2, 3, *SIZE)).sum().backward()
    assert model.gate[0].weight.grad.abs().max() > 0


def test_every_parameter_learns():
    model = MSViT(hidden=4).apply(vit().train())
    found = model.gated(torch.rand(4, 3, *SIZE))
    (F.cross_entropy(found.out, torch.tensor([0, 1, 2, 0])) + model.shaping(found.probability)).backward()
    assert {name for name, value in model.named_parameters() if value.grad is None} == set()
    assert found.probability.shape == found.fine.shape == (4, 6)


def test_shaping_brings_gates_to_their_target():
    torch.manual_seed(0)
    logits, prior = nn.Parameter(torch.randn(64, 5)), nn.Parameter(torch.full((5,), 0.25).logit())
    optimizer = torch.optim.Adam([logits, prior], lr=0.2)
    for _ in range(100):
        means = prior.sigmoid()
        loss = batch_shaping(logits.sigmoid(), means) + hyperprior(means, target=0.25, spread=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((logits > 0).float().mean()) == pytest.approx(0.25, abs=0.06)
    assert float(loss.detach()) < 0.02


def test_shaping_is_the_sum_of_squares_of_two_distribution_functions():
    p, mean = torch.tensor([[0.9], [0.2], [0.6]]), torch.tensor([0.3])
    by_hand = 0.0
    for rank, value in enumerate((0.2, 0.6, 0.9), 1):
        odds = (value / (1 - value)) ** 0.5 * (0.7 / 0.3)
        by_hand += (odds / (1 + odds) - rank / 4) ** 2 / 3
    assert float(batch_shaping(p, mean, temperature=0.5)) == pytest.approx(by_hand, abs=1e-6)
    assert float(hyperprior(mean, target=0.3, spread=0.1)) == 0.0
    assert float(hyperprior(mean, target=0.1, spread=0.1)) == pytest.approx((0.97725 - 0.5) ** 2, abs=1e-4)


def test_random_choices_are_the_same_for_every_call_and_drawn_anew_in_training():
    model = MSViT(by="random", target=0.5).apply(vit())
    x = torch.rand(4, 3, *SIZE)
    assert torch.equal(model.choose(x)[1], model.choose(x)[1])
    model.train()
    assert not torch.equal(model.choose(x)[1], model.choose(x)[1])
    assert MSViT(by="coarse").apply(vit()).choose(x)[1].sum() == 0


def test_the_route_tells_where_the_fine_patches_are():
    model = choosing(MSViT(by="random").apply(vit()), [[1, 0, 0, 0, 0, 1]])
    with recording() as routes, torch.no_grad():
        model(torch.rand(1, 3, *SIZE))
    (route,) = routes
    assert route.work.tolist() == [[[1, 0.25, 0.25], [0.25, 0.25, 1]]]
    assert route.counts == (13.0, 13.0)  # class token, eight fine, four coarse
    assert route.of == (25.0, 25.0)


def test_wrong_settings_raise():
    with pytest.raises(ValueError, match=r"target must be in \(0, 1\), got 1.0; 0.33 leaves half"):
        MSViT(target=1.0)
    with pytest.raises(ValueError, match="by must be one of gate, random, fine, coarse, got 'top'"):
        MSViT(by="top")
    for name in ("hidden", "temperature", "spread"):
        with pytest.raises(ValueError, match=f"{name} must be above 0, got 0"):
            MSViT(**{name: 0})
    with pytest.raises(ValueError, match="scales are chosen by 'random', which has no gate to shape; take by='gate'"):
        MSViT(by="random").apply(vit()).shaping(torch.rand(2, 6))


def test_networks_that_cannot_be_read_at_two_scales_raise():
    with pytest.raises(TypeError, match="model must be a vision transformer of timm, got Linear"):
        MSViT().apply(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model must be a vision transformer of timm, got VisionTransformer"):
        MSViT().apply(FlexiViT(sizes=(2,)).apply(vit()))
    with pytest.raises(ValueError, match="the map of patches must have even sides, got 3×4; four make a coarse one"):
        MSViT().apply(vit((6, 8)))
    model = vit()
    model.blocks[1] = nn.Identity()
    with pytest.raises(TypeError, match="blocks must be timm's Block with its Attention, got Identity"):
        MSViT().apply(model)
