import pytest
import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import features
from foveal.train.restore.perceptual import FeatureNet


class Colours:
    """Features are the pictures themselves."""

    def features(self, x):
        return [x]


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_distance_is_of_directions():
    x = drawn(2, 3, 4, 5) + 0.1
    assert features.distance(Colours(), x, x).tolist() == [0, 0]
    torch.testing.assert_close(features.distance(Colours(), x, 3 * x), torch.zeros(2), atol=1e-6, rtol=0)
    red, green = torch.eye(3)[:2].view(2, 3, 1, 1).expand(2, 3, 4, 5)
    assert features.distance(Colours(), red[None], green[None]).item() == pytest.approx(2)


def test_distance_grows_with_damage():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = [FeatureNet((4, 6)), features.HeldOut().eval()]
    x, noise = drawn(3, 3, 16, 16), drawn(3, 3, 16, 16, seed=1)
    for network in networks:
        near, far = (features.distance(network, x, x + k * noise) for k in (0.05, 0.5))
        assert (near > 0).all()
        assert (near < far).all()


def test_frechet_of_gaussians_on_a_line_and_of_stretched_ones():
    one = torch.zeros(1).double(), torch.tensor([[4.0]]).double()
    other = torch.tensor([3.0]).double(), torch.tensor([[9.0]]).double()
    assert features.frechet(one, other) == pytest.approx(9 + 1)
    mean, mix = torch.zeros(3).double(), drawn(3, 3).double()
    covariance = mix @ mix.T
    assert features.frechet((mean, covariance), (mean, covariance)) == pytest.approx(0, abs=1e-9)
    assert features.frechet((mean, covariance), (mean, 4 * covariance)) == pytest.approx(covariance.trace().item())


def test_gaussian_is_of_all_pictures():
    x = drawn(130, 3, 4, 4)
    mean, covariance = features.gaussian(Colours(), x, batch=50)
    rows = x.mean((2, 3)).double()
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(covariance, torch.cov(rows.T))


def test_both_networks_see_other_pictures():
    with rehearsal():
        (first, a), (second, b), (whole, _) = (features.pictures(part) for part in ("first", "second", "train"))
    assert torch.equal(torch.cat([first, second]), whole)
    assert len(a) == len(b) == 10
    assert 0 <= whole.min() <= whole.max() <= 1


@pytest.mark.parametrize("network", [features.training, features.held_out])
def test_networks_are_frozen(network):
    with rehearsal(), torch.inference_mode():
        made = network()
    assert not made.training
    assert not any(p.requires_grad for p in made.parameters())
    assert made(drawn(2, 3, 32, 32)).shape == (2, 10)
