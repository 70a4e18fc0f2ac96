import pytest
import torch

from foveal.models.restore.mbispld import MBISPLD, reconstruction_loss, to_raw, to_rgb
from foveal.nn import isp

GAINS = torch.tensor([[1.5, 1.0, 1.8], [1.9, 1.2, 1.3]], dtype=torch.float64)
MATRIX = torch.tensor([[1.6, -0.4, -0.2], [-0.2, 1.5, -0.3], [0.0, -0.5, 1.5]], dtype=torch.float64).expand(2, 3, 3)


def drawn(*shape, low=0.2, high=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def tiny(**sizes):
    torch.manual_seed(0)
    return MBISPLD(**{"gain_atoms": 2, "matrix_atoms": 3, "dim": 4, **sizes})


@pytest.mark.parametrize("pattern", isp.PATTERNS)
def test_there_and_back_is_where_it_began(pattern):
    raw = drawn(2, 1, 7, 9, low=0.3, high=0.35)
    rgb = to_rgb(raw, GAINS, MATRIX, 2.2, pattern=pattern)
    assert rgb.min() > 0
    assert rgb.max() < 1
    torch.testing.assert_close(to_raw(rgb, GAINS, MATRIX, 2.2, pattern=pattern), raw, rtol=0, atol=1e-6)


def test_a_grey_scene_by_hand():
    raw = isp.mosaic(torch.tensor([0.2, 0.3, 0.15], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 4, 4))
    gains = torch.tensor([[1.5, 1.0, 2.0]], dtype=torch.float64)  # makes 0.3 of all three
    curved = 0.3 ** (1 / 2.2)
    rgb = to_rgb(raw, gains, MATRIX[:1] / MATRIX[:1].sum(2, keepdim=True), 2.2)
    torch.testing.assert_close(rgb, torch.full_like(rgb, 3 * curved**2 - 2 * curved**3), rtol=0, atol=1e-6)


def test_the_model_runs_the_functions_with_what_its_encoders_chose():
    model = tiny().double()
    rgb = drawn(2, 3, 8, 6)
    raw, (matrix_weights, gain_weights) = model.undevelop(rgb)
    wanted = to_raw(rgb, model.mixed_gains(gain_weights), model.mixed_matrix(matrix_weights), model.exponent)
    torch.testing.assert_close(raw, wanted)
    assert torch.equal(raw, model(rgb))
    shown, (gain_weights, matrix_weights) = model.develop(raw)
    wanted = to_rgb(raw, model.mixed_gains(gain_weights), model.mixed_matrix(matrix_weights), model.exponent)
    torch.testing.assert_close(shown, wanted)


def test_mixtures_are_convex_and_keep_grey():
    model = tiny()
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    gains = model.mixed_gains(weights)
    atoms = model.gains.exp().detach()
    torch.testing.assert_close(gains[0], atoms[0, 0] * torch.tensor([atoms[0, 1], 1.0, atoms[0, 2]]))
    torch.testing.assert_close(gains[1, 1], 0.25 * atoms[0, 0] + 0.75 * atoms[1, 0])
    matrix = model.mixed_matrix(torch.tensor([[0.2, 0.3, 0.5]]))
    torch.testing.assert_close(matrix.sum(2), torch.ones(1, 3))
    encoded = model.reverse_gains(torch.rand(3, 3, 8, 8))
    assert encoded.min() > 0
    torch.testing.assert_close(encoded.sum(1), torch.ones(3))


def test_the_loss_trains_both_directions_and_all_encoders():
    model = tiny()
    rgb, raw = drawn(2, 3, 8, 8).float(), drawn(2, 1, 8, 8).float()
    loss = reconstruction_loss(model, raw, rgb, sparsity=0.1)
    loss.backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())
    assert all(value.grad.abs().sum() > 0 for name, value in model.named_parameters() if "gains" in name[:5])
    (ours, back), (shown, there) = model.undevelop(rgb), model.develop(raw)
    entropy = -sum((w * w.log()).sum(1).mean() for w in (*back, *there))
    wanted = (ours - raw).abs().mean() + (shown - rgb).abs().mean() + 0.1 * entropy
    torch.testing.assert_close(loss, wanted)


def test_one_atom_is_one_fixed_camera():
    model = tiny(gain_atoms=1, matrix_atoms=1)
    rgb = drawn(2, 3, 8, 8).float()
    both, alone = model(rgb), model(rgb[:1])
    torch.testing.assert_close(both[:1], alone)
    gains, matrix = model.mixed_gains(torch.ones(2, 1)), model.mixed_matrix(torch.ones(2, 1))
    torch.testing.assert_close(both, to_raw(rgb, gains, matrix, model.exponent))
    assert torch.equal(model.augment(rgb), both)


def test_augmenting_draws_cameras_by_its_generator():
    model = tiny()
    rgb = drawn(1, 3, 8, 8).float().expand(2, -1, -1, -1)
    first, again, other = (model.augment(rgb, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.allclose(first[0], first[1])


def test_an_empty_dictionary_raises():
    with pytest.raises(ValueError, match="a dictionary needs at least 1 atom, got 0 of gains, 8 of matrices"):
        MBISPLD(gain_atoms=0)
