import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from foveal.measure.cost import count_macs
from foveal.shrink.tokens.token_learner import Fuser, Learner, TokenLearner


def network(**words):
    torch.manual_seed(0)
    words = {"img_size": 20, "patch_size": 4, "embed_dim": 12, "depth": 4, "num_heads": 2, "num_classes": 3, **words}
    return VisionTransformer(**words).eval()


def pictures():
    return torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def test_tokens_are_weighted_means_of_all_patches():
    torch.manual_seed(0)
    learner, x = Learner(6, 3, hidden=5).double(), torch.randn(2, 7, 6, dtype=torch.double, requires_grad=True)
    weights = learner.weights(x)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 3, dtype=torch.double))
    norm, first, _, last = learner.maps
    wanted = torch.zeros(2, 3, 6, dtype=torch.double)
    for b in range(2):
        scores = torch.stack([last(F.gelu(first(norm(x[b, n])))) for n in range(7)])
        for s in range(3):
            shares = scores[:, s].exp() / scores[:, s].exp().sum()
            wanted[b, s] = sum(shares[n] * x[b, n] for n in range(7))
    torch.testing.assert_close(learner(x), wanted)
    toward = torch.randn(wanted.shape, dtype=torch.double)
    gradients = [torch.autograd.grad((y * toward).sum(), x)[0] for y in (learner(x), wanted)]
    torch.testing.assert_close(*gradients)


def test_uniform_maps_average():
    learner, x = Learner(6, 3), torch.randn(2, 7, 6)
    torch.nn.init.zeros_(learner.maps[3].weight)
    torch.testing.assert_close(learner(x), x.mean(1, keepdim=True).expand(-1, 3, -1))


def test_a_fresh_fuser_adds_nothing_and_learns():
    torch.manual_seed(0)
    fuser, z, x = Fuser(6, 3, hidden=5), torch.randn(2, 3, 6), torch.randn(2, 7, 6)
    assert fuser(z, x).shape == (2, 7, 6)
    assert not fuser(z, x).any()
    torch.nn.init.normal_(fuser.mix.weight)
    mixed = fuser.after(torch.einsum("ts,bsc->btc", fuser.mix.weight, fuser.before(z)))
    torch.testing.assert_close(fuser(z, x), torch.einsum("bns,bsc->bnc", fuser.maps(x).sigmoid(), mixed))


@pytest.mark.parametrize("words", [{}, {"class_token": False, "global_pool": "avg"}])
@pytest.mark.parametrize("fuse", [False, True])
def test_later_blocks_see_learned_tokens(words, fuse):
    model = TokenLearner(3, hidden=5, fuse=fuse).apply(network(**words))
    own, seen = model.num_prefix_tokens, []
    for number in range(4):
        model.blocks.get_submodule(str(number)).register_forward_hook(lambda m, i, y: seen.append(y.shape[1]))
    tokens = model.forward_features(pictures())
    assert seen == [25 + own, 25 + own, 3 + own, 3 + own]
    assert tokens.shape == (2, own + (25 if fuse else 3), 12)
    assert count_macs(model, (1, 3, 20, 20)) < 0.75 * count_macs(network(**words), (1, 3, 20, 20))
    for fuser in (m for m in model.modules() if isinstance(m, Fuser)):
        torch.nn.init.normal_(fuser.mix.weight)
    model.train()(pictures()).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == set()


def test_wrong_settings_raise():
    with pytest.raises(ValueError, match="tokens and hidden must be at least 1, got 0 and 64"):
        TokenLearner(0)
    with pytest.raises(ValueError, match="after must be at least 0, got -1; None takes half of the blocks"):
        TokenLearner(after=-1)
    with pytest.raises(ValueError, match="after must be below the 4 blocks of the network, got 4"):
        TokenLearner(after=4).apply(network())
    with pytest.raises(ValueError, match="tokens must be fewer than the 25 patches, got 25; 8 suits most"):
        TokenLearner(25).apply(network())
