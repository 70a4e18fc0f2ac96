import pytest
import torch

from foveal.train.restore import recipe
from foveal.train.restore.losses import LOSSES


def test_a_recipe_may_name_every_loss_and_no_other():
    assert set(recipe.LOSSES) == set(LOSSES)


def test_luminance_loss_against_the_hand_computed_value():
    out, target = torch.zeros(1, 3, 1, 1), torch.tensor([0.1, 0.2, 0.4]).view(1, 3, 1, 1)
    y = (65.481 * 0.1 + 128.553 * 0.2 + 24.966 * 0.4) / 255
    assert LOSSES["l2_luma"](out, target).item() == pytest.approx(y**2 + 0.1 * (0.01 + 0.04 + 0.16) / 3, rel=1e-5)


def test_the_root_of_each_patch_counts_alike_for_hard_and_easy_ones():
    target = torch.zeros(2, 1, 4, 4)
    out = torch.stack([torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), 0.02)]).requires_grad_()
    loss = LOSSES["luma_root"](out, target)
    assert loss.item() == pytest.approx((0.01001**0.5 + 0.00041**0.5) / 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, out)
    hard, easy = gradient.abs().mean((1, 2, 3))
    assert 1 <= hard / easy < 1.02, "the squared error alone would pull five times as hard"


def test_the_luminance_loss_knows_its_gradient():
    torch.manual_seed(0)
    out, target = torch.rand(2, 2, 3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(LOSSES["l2_luma"], (out.requires_grad_(), target))
