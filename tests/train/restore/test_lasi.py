import pytest
import torch

from foveal.train.restore.lasi import (
    _toeplitz,
    _weights,
    embedding,
    embedding_reference,
    lasi,
    lasi_loss,
    neighbours,
)


def planes(*shape, seed=0):
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def test_neighbours_are_the_nearest_before():
    assert neighbours(2) == ((-1, 0), (0, -1))
    assert set(neighbours(6)) == {(-1, 0), (0, -1), (-2, 0), (-1, -1), (-1, 1), (0, -2)}
    assert len(neighbours(12)) == 12
    assert max(abs(y) + abs(x) for y, x in neighbours(12)) == 3


@pytest.mark.parametrize(("dim", "height", "width"), [(1, 1, 7), (3, 4, 3), (6, 2, 70), (2, 68, 2), (12, 5, 3)])
def test_equals_one_pixel_after_the_other(dim, height, width):
    x = planes(2, height, width)[:1] if height * width > 100 else planes(2, height, width)
    torch.testing.assert_close(embedding(x, dim=dim), embedding_reference(x, dim=dim), rtol=1e-10, atol=1e-12)


def test_strips_do_not_change_the_result(monkeypatch):
    x = planes(3, 6, 7)
    whole = embedding(x)
    monkeypatch.setattr("foveal.train.restore.lasi.STRIP", 11)
    torch.testing.assert_close(embedding(x), whole, rtol=1e-12, atol=0)


def test_a_plane_that_follows_a_rule_is_predicted_by_it():
    """Each pixel is 0.9 of the one to its left: far from the border, that is what is found."""
    x = (0.9 ** torch.arange(40, dtype=torch.float64)).expand(1, 40, 40)
    found = embedding(x, dim=2, ridge=1e-9)[0, :, 20, 30]
    predicted = found[0] * x[0, 19, 30] + found[1] * x[0, 20, 29]
    assert predicted.item() == pytest.approx(x[0, 20, 30].item(), rel=5e-3)


def test_distance_grows_with_damage_and_is_symmetric():
    generator = torch.Generator().manual_seed(0)
    y, noise = torch.rand(2, 1, 3, 12, 11, generator=generator)
    assert lasi(y, y).item() == 0
    near, far = lasi(y + 0.02 * noise, y), lasi(y + 0.2 * noise, y)
    assert 0 < near < far <= 2
    torch.testing.assert_close(lasi(y, y + 0.2 * noise), far)


def test_gradients():
    x, y = torch.rand(2, 1, 1, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda out: lasi_loss(out, y), x.requires_grad_())


def test_what_a_measurement_cached_serves_a_loss():
    for cached in (_toeplitz, _weights):
        cached.cache_clear()
    x = planes(1, 1, 4, 5)
    with torch.inference_mode():
        lasi(x, x)
    lasi_loss(x.requires_grad_(), planes(1, 1, 4, 5, seed=1)).backward()
    assert x.grad.count_nonzero() > 0


def test_a_loss_at_equality_has_a_finite_gradient():
    x = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(3)).requires_grad_()
    lasi_loss(x, x.detach().clone()).backward()
    assert x.grad.isfinite().all()


def test_errors():
    with pytest.raises(ValueError, match="dim must be at least 1, got 0; 6 is the default"):
        neighbours(0)
    with pytest.raises(ValueError, match=r"planes \(n, H, W\), decay in \(0, 1\) and ridge above 0, got \(4, 4\), 0.8"):
        embedding(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1, 4, 4\), \(1, 1, 4, 5\)"):
        lasi(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
