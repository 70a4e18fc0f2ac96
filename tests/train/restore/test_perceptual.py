import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foveal.models.restore.luma_sr import LumaSR
from foveal.train.restore.fit import fit
from foveal.train.restore.losses import loss_of
from foveal.train.restore.perceptual import (
    FeatureNet,
    FeaturesError,
    PerceptualLoss,
    TransformNet,
    content_loss,
    gram,
    pretrained,
    style_loss,
    total_variation,
)
from foveal.train.restore.recipe import Recipe, RecipeError


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FeatureNet((4, 6, 8))


@pytest.fixture
def weights(network, tmp_path):
    path = tmp_path / "features.safetensors"
    save_file(network.state_dict(), path)
    return path


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_gram_by_hand():
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # one picture, two channels, 1×2 pixels
    torch.testing.assert_close(gram(x), torch.tensor([[[5.0, 11.0], [11.0, 25.0]]]) / 4)


def test_style_does_not_see_where_things_are():
    x = drawn(2, 5, 6, 7)
    assert style_loss(x, x.flip(-1)).item() < 1e-10
    assert content_loss(x, x.flip(-1)).item() > 0.05
    assert style_loss(x, 2 * x).item() == pytest.approx(9 * gram(x).square().sum((1, 2)).mean().item(), rel=1e-5)


def test_total_variation_by_hand():
    x = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert total_variation(x).item() == pytest.approx((9 + 4) / 2 + (1 + 0) / 2)


def test_features_are_those_of_the_classifier(network):
    x = drawn(2, 3, 12, 8)
    seen = network.features(x)
    assert [tuple(f.shape[1:]) for f in seen] == [(4, 12, 8), (6, 6, 4), (8, 3, 2)]
    torch.testing.assert_close(network.classify(seen[-1].mean((2, 3))), network(x))


def test_the_loss_is_the_weighted_sum_of_its_parts(network):
    out, target, style = drawn(1, 3, 8, 8), drawn(1, 3, 8, 8, seed=1), drawn(1, 3, 12, 12, seed=2)
    loss = PerceptualLoss(network, style=style, style_weight=3.0, tv_weight=0.5)
    seen, wanted, styled = (network.features(x) for x in (out, target, style))
    parts = content_loss(seen[1], wanted[1]) + 0.5 * total_variation(out)
    parts = parts + 3 * sum(style_loss(a, b) for a, b in zip(seen, styled, strict=True))
    torch.testing.assert_close(loss(out, target), parts)
    assert PerceptualLoss(network)(target, target).item() == 0


def test_the_classifier_stays_as_it_is(network):
    loss = PerceptualLoss(network)
    out, target = drawn(1, 3, 8, 8).requires_grad_(), drawn(1, 3, 8, 8, seed=1).requires_grad_()
    loss(out, target).backward()
    assert out.grad.abs().sum() > 0
    assert target.grad is None
    assert all(p.grad is None for p in network.parameters())


def test_transform_net_begins_and_ends_in_pictures():
    model = TransformNet(4, 1)
    out = model(drawn(1, 3, 8, 12))
    assert out.shape == (1, 3, 8, 12)
    assert out.min() >= 0
    assert out.max() <= 1
    with pytest.raises(ValueError, match="sides must be multiples of 4, got 12×9; crop or pad"):
        model(drawn(1, 3, 9, 12))


def test_weights_come_back(network, weights):
    x = drawn(1, 3, 8, 8)
    loaded = pretrained(str(weights))
    torch.testing.assert_close(loaded(x), network(x))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_timm_network_sees_normalised_pictures(monkeypatch):
    import timm

    made = timm.create_model

    def offline(name, *, pretrained, **words):
        assert pretrained
        return made(name, **words)

    monkeypatch.setattr(timm, "create_model", offline)
    loaded = pretrained("test_resnet")
    x = drawn(1, 3, 32, 32)
    mean, deviation = (torch.tensor(loaded.net.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    for ours, theirs in zip(loaded.features(x), loaded.net((x - mean) / deviation), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_recipe_trains_by_features(weights, tmp_path, pictures):
    words = {"model": "luma_sr", "scale": 2, "data": str(pictures), "steps": 2, "patch": 8, "batch": 2, "warmup": 1}
    recipe = Recipe(**words, precision="fp32", loss="perceptual", features=str(weights))
    model = LumaSR(2, channels=4, depth=1, expand=4)
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, recipe, tmp_path / "run")
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_losses_for_looks_by_name(network, weights):
    out, target = drawn(1, 3, 16, 16), drawn(1, 3, 16, 16, seed=1)
    loss = loss_of("perceptual", features=str(weights))(out, target)
    torch.testing.assert_close(loss, PerceptualLoss(network)(out, target) + (out - target).abs().mean())
    for name in ("ms-ssim", "lasi"):
        assert 0 < loss_of(name)(out, target).item() < 2


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(FeaturesError, match=r"none.safetensors: no such file; name the weights of a FeatureNet"):
        pretrained(str(tmp_path / "none.safetensors"))
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FeaturesError, match=r"other.safetensors: must hold the weights of a FeatureNet"):
        pretrained(str(tmp_path / "other.safetensors"))
    with pytest.raises(
        FeaturesError, match=r"features 'no_such_net' cannot be loaded by timm .* or name a safetensors"
    ):
        pretrained("no_such_net")
    with pytest.raises(TypeError, match=r"has a method `features` .*, got Linear without it"):
        PerceptualLoss(nn.Linear(2, 2))
    with pytest.raises(RecipeError, match='"ms-ssim" compares windows of 11 pixels, got patches of 8; take a larger'):
        Recipe(model="luma_sr", scale=2, data="", steps=1, patch=4, loss="ms-ssim")
