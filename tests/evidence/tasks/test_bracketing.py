"""The task of exposure brackets: what moves, what clips, the floor."""

import pytest
import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import bracketing
from foveal.train.restore.bank.exposure import to_linear


@pytest.fixture(autouse=True)
def _drawn():
    with rehearsal():
        yield


def photos():
    return torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(3))


def test_only_moved_places_differ_between_moments():
    light, moved = bracketing.scene(photos(), torch.Generator().manual_seed(0))
    assert light.shape == (2, 3, 3, 40, 48)
    still = ~moved[:, None].expand_as(light)
    assert torch.equal(light[still], to_linear(photos())[:, None].expand_as(light)[still])
    for a, b in ((0, 1), (1, 2)):
        assert (light[:, a] - light[:, b]).abs().amax() > 0.1
    assert all(0.02 < share < 0.7 for share in moved.float().mean((1, 2, 3)).tolist())


def test_a_still_scene_is_merged_well_by_exposure():
    x, light, moved = bracketing.brackets(photos(), torch.Generator().manual_seed(0))
    assert x.shape == (2, 18, 40, 48)
    assert (x[:, 12:15] == 1).float().mean() > 0.5  # the long exposure clips
    error = (bracketing.debevec(x) - light).abs()
    places = moved.expand_as(error)
    assert error[~places].mean() < 0.02
    assert error[places].mean() > 3 * error[~places].mean()


def test_debevec_by_hand():
    taken = torch.tensor([0.2, 0.5, 1.0]).view(1, 3, 1, 1, 1)
    light = torch.tensor([0.1, 0.3, 0.9]).view(1, 3, 1, 1, 1)
    x = torch.cat([taken.expand(-1, -1, 3, -1, -1), light.expand(-1, -1, 3, -1, -1)], 2).flatten(1, 2)
    wanted = (0.2 * 0.1 + 0.5 * 0.3 + 1e-4 * 0.9) / (0.2 + 0.5 + 1e-4)
    torch.testing.assert_close(bracketing.debevec(x), torch.full((1, 3, 1, 1), wanted))


def test_batches_follow_step_and_seed():
    load = bracketing.batches(1, patch=24, batch=2)
    given, light = load(3)
    assert (given.shape, light.shape) == ((2, 18, 24, 24), (2, 3, 24, 24))
    assert torch.equal(given, bracketing.batches(1, patch=24, batch=2)(3)[0])
    assert not torch.equal(given, load(4)[0])


def test_truth_is_far_above_the_classical_mean():
    truth = iter([wanted for _, wanted, _ in bracketing.test_brackets()])
    assert bracketing.moved_psnr(lambda _: next(truth)) > bracketing.moved_psnr(bracketing.debevec) + 20
