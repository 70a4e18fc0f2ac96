import pytest
import torch

from foveal.train.restore.dot_dmax import (
    VAE,
    GaussianTransport,
    LatentTransport,
    optimal_map,
    transport,
    wasserstein,
)


def rows(seed, count=60, dim=5):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mix + seed


@pytest.fixture
def vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAE(3, 8).double()


def test_moved_rows_have_the_wanted_moments():
    natural = rows(2, count=41)
    moved = transport(rows(1), natural)
    torch.testing.assert_close(moved.mean(0), natural.mean(0))
    torch.testing.assert_close(torch.cov(moved.T), torch.cov(natural.T))


def test_diagonal_covariances_only_stretch():
    source, target = torch.diag(torch.tensor([4.0, 1.0, 0.25])), torch.diag(torch.tensor([1.0, 9.0, 0.25]))
    torch.testing.assert_close(optimal_map(source, target), torch.diag(torch.tensor([0.5, 3.0, 1.0])))


def test_no_other_map_between_them_moves_rows_less():
    """Any rotation inside the target gives the same moments; each moves the rows further."""
    restored, natural = rows(1), rows(2)
    fitted = GaussianTransport.fit(restored, natural)
    least = (fitted.apply(restored) - restored).square().sum(1).mean()
    centred = restored - restored.mean(0)
    white = torch.linalg.inv(torch.linalg.cholesky(torch.cov(restored.T)))
    colour = torch.linalg.cholesky(torch.cov(natural.T))
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    other = centred @ (colour @ turn @ white).T + natural.mean(0)
    torch.testing.assert_close(torch.cov(other.T), torch.cov(natural.T))
    assert least < (other - restored).square().sum(1).mean()
    assert fitted.squared == pytest.approx(least.item(), rel=0.05)


def test_the_distance_is_that_of_the_closed_form_on_a_line():
    one = torch.tensor([[4.0]]).double(), torch.tensor([[9.0]]).double()
    assert wasserstein(torch.zeros(1), one[0], torch.ones(1), one[1]) == pytest.approx(1 + (3 - 2) ** 2)


def test_a_direction_without_variance_is_no_trouble():
    restored = torch.cat([rows(1), torch.zeros(60, 1, dtype=torch.float64)], 1)
    natural = torch.cat([rows(2), torch.full((60, 1), 3.0, dtype=torch.float64)], 1)
    moved = transport(restored, natural)
    torch.testing.assert_close(torch.cov(moved.T), torch.cov(natural.T))
    torch.testing.assert_close(moved[:, 5], torch.full((60,), 3.0, dtype=torch.float64))


def test_alpha_walks_from_the_picture_to_the_whole_change(vae):
    generator = torch.Generator().manual_seed(1)
    restored, natural = torch.rand(2, 2, 3, 24, 20, generator=generator, dtype=torch.float64)
    more = LatentTransport.fit(vae, [restored], [natural])
    torch.testing.assert_close(more(restored, 0.0), restored)
    z = vae.encode(restored)
    torch.testing.assert_close(more.latents(z, 0.25), z + 0.25 * (more.latents(z) - z))
    moved = more.latents(z).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(torch.cov(moved.T), torch.cov(vae.encode(natural).movedim(1, -1).flatten(0, 2).T))


def test_patches_of_latents(vae):
    pictures = torch.rand(4, 3, 36, 28, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    more = LatentTransport.fit(vae, [pictures[:2]], [pictures[2:]], patch=2)
    z = vae.encode(pictures[:1])  # (1, 3, 9, 7)
    moved = more.latents(z)
    row = more.between.apply(z[0, :, 2:4, 4:6].reshape(1, -1))
    torch.testing.assert_close(moved[0, :, 2:4, 4:6].reshape(1, -1), row)
    assert torch.equal(moved[..., 8:, :], z[..., 8:, :])
    assert torch.equal(moved[..., 6:], z[..., 6:])


def test_the_vae_learns(vae):
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    loss = vae.loss(x)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in vae.parameters())
    assert vae(x).shape == x.shape


def test_errors(vae):
    with pytest.raises(ValueError, match=r"\(D, D\), of one size, got \(2, 3\) and \(3, 3\)"):
        optimal_map(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"of one length, got \(9, 3\), \(9, 4\)"):
        transport(torch.zeros(9, 3), torch.zeros(9, 4))
    with pytest.raises(ValueError, match="covariances of 3 numbers take more rows than that, got 3 and 9; take more"):
        transport(torch.zeros(3, 3), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="pictures of both kinds are needed, got 0 restored and 1 natural"):
        LatentTransport.fit(vae, [], [torch.zeros(1, 3, 8, 8)])
