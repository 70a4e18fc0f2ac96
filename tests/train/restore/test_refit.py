import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.luma_sr import LumaSR
from foveal.train.restore.fit import fit
from foveal.train.restore.recipe import Recipe
from foveal.train.restore.refit import refit

LUMA = torch.tensor([65.481, 128.553, 24.966]) / 255


def network(**arguments):
    """A network whose last layer is far from the best one."""
    torch.manual_seed(0)
    model = LumaSR(2, channels=8, depth=1, expand=0, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batches(count=6, seed=1):
    """Rough pictures in all eight ways, so that no way is more frequent than another."""
    torch.manual_seed(seed)
    made = []
    for _ in range(count):
        high = F.interpolate(torch.rand(1, 3, 26, 26), size=(32, 32), mode="bilinear")
        ways = [torch.rot90(high, k, (2, 3)) for k in range(4)]
        high = torch.cat([*ways, *(way.flip(3) for way in ways)])
        made.append((F.interpolate(high, scale_factor=0.5, mode="area"), high))
    return made


def squared_error(model, pairs):
    """Of luminance inside the margin, a number for each picture."""
    m = model.margin
    made = [
        F.mse_loss(
            (model.plain()(low) * LUMA.view(3, 1, 1)).sum(1),
            (high * LUMA.view(3, 1, 1)).sum(1)[..., 2 * m : -2 * m, 2 * m : -2 * m],
            reduction="none",
        ).mean((1, 2))
        for low, high in pairs
    ]
    return torch.cat(made)


@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("root", [False, True])
def test_it_takes_as_much_of_the_error_away_as_it_says(equivariant, root):
    model = network(equivariant=equivariant)
    with torch.no_grad():
        before = squared_error(model, batches())
        weight = (before + 1e-5).rsqrt() if root else torch.ones(len(before))
        gained = refit(model, batches(), root=root)
        after = squared_error(model, batches())
    assert gained > 0.1
    assert 1 - (weight * after).sum() / (weight * before).sum() == pytest.approx(gained, rel=1e-4)


@pytest.mark.parametrize("base_kernel", [3, 5])
def test_nothing_better_is_left(base_kernel):
    model = network(base_kernel=base_kernel)
    refit(model, batches())
    assert refit(model, batches()) < 1e-4
    best = squared_error(model, batches()).mean()
    for part in (model.tail.weight, model.base):
        kept = part.detach().clone()
        for seed in range(3):
            torch.manual_seed(seed)
            step = 0.01 * torch.randn_like(part)
            with torch.no_grad():
                part.copy_(kept + step)
            assert squared_error(model, batches()).mean() > best
        with torch.no_grad():
            part.copy_(kept)


def test_what_the_network_promises_stays():
    model = network(equivariant=True)
    refit(model, batches())
    flat = torch.tensor([0.2, 0.7, 0.4]).view(1, 3, 1, 1)
    made = model.plain()(flat.expand(1, 3, 12, 12))
    torch.testing.assert_close(made, flat.expand_as(made), atol=1e-5, rtol=0)
    x = torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(model(x.flip(2)), model(x).flip(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(model(x.mT), model(x).mT, atol=1e-5, rtol=0)


def test_back_projection_comes_after_it():
    one, other = network(), network(back_projection=True)
    assert refit(one, batches()) == refit(other, batches())
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])


def test_what_it_cannot_do():
    with pytest.raises(TypeError, match=r"refit solves for a last layer that is linear .* got a Conv2d"):
        refit(torch.nn.Conv2d(3, 3, 3), batches())
    with pytest.raises(ValueError, match="refit needs at least one batch, got none"):
        refit(network(), [])


@pytest.mark.parametrize("loss", ["luma", "luma_root"])
def test_a_recipe_asks_for_it_at_the_end(loss, tmp_path, pictures):
    def trained(name, **changes):
        torch.manual_seed(0)
        model = LumaSR(2, channels=4, depth=1, expand=0)
        recipe = Recipe(
            "luma_sr", 2, str(pictures), 6, patch=12, batch=4, fraction=1.0, precision="fp32", loss=loss, **changes
        )
        said = []
        return fit(model, recipe, tmp_path / name, say=said.append), said

    plain, nothing = trained("plain")
    again, said = trained("again", refit=8)
    assert nothing == []
    assert "last layer solved for over 8 batches: " in said[0]
    assert torch.equal(plain.head.weight, again.head.weight)
    assert not torch.equal(plain.tail.weight, again.tail.weight)
    # Another end is no other training: the same folder goes on.
    assert trained("plain", refit=8)[1] == said
