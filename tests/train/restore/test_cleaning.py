import numpy as np
import pytest
import torch
from PIL import Image

from foveal.models.restore.luma_clean import LumaClean
from foveal.train.restore.cleaning import BORDER, damaged_batches, objective
from foveal.train.restore.pairs import Pairs


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(2):
        small = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(small).resize((120, 100), Image.Resampling.BICUBIC).save(tmp_path / f"{k}.png")
    return Pairs.from_folder(tmp_path, 2, patch=24 + BORDER, fraction=1.0)


def test_a_batch_depends_on_seed_and_step_alone(pairs):
    first, again = (damaged_batches(pairs, 3, seed=1)(5) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.given, damaged_batches(pairs, 3, seed=2)(5).given)
    assert not np.array_equal(first.given, damaged_batches(pairs, 3, seed=1)(6).given)


def test_parts_of_a_batch_show_the_same_place(pairs):
    batch = damaged_batches(pairs, 6, seed=0)(0)
    assert batch.given.shape == batch.clean.shape == (6, 24, 24, 3)
    assert batch.wanted.shape == batch.taught.shape == (6, 48, 48, 3)
    assert batch.level.shape == (6, 3)
    means = batch.wanted.reshape(6, 24, 2, 24, 2, 3).mean((2, 4))
    for near, most in ((batch.clean, 8), (batch.given, 25)):
        assert np.abs(near - means).mean() < most
    assert np.array_equal(batch.wanted, batch.taught)


def test_patches_must_be_larger_than_the_border(pairs):
    pairs.patch = BORDER
    with pytest.raises(ValueError, match=r"patches of more than 16 pixels, got 16; take larger ones"):
        damaged_batches(pairs, 1, seed=0)


def test_the_objective_is_least_for_what_is_wanted(pairs):
    batch = [torch.from_numpy(part) for part in damaged_batches(pairs, 2, seed=0)(0)]
    wanted, clean = (batch[k].permute(0, 3, 1, 2).float() / 255 for k in (2, 1))

    class Perfect(torch.nn.Module):
        shift = 0.0

        def separate(self, x, level):
            assert level.shape == (2, 3)
            luminance = (wanted * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
            cb = 0.564 * (clean[:, 2:] - (clean * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, True))
            cr = 0.713 * (clean[:, :1] - (clean * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, True))
            return luminance + self.shift, torch.cat([cb, cr], 1)

    perfect = Perfect()
    least = objective(0.0)(perfect, batch).item()
    assert least < 0.008  # both roots at their floor
    perfect.shift = 0.1
    assert objective(0.0)(perfect, batch).item() == pytest.approx(least + 0.1, abs=0.01)


def test_training_lowers_the_loss(pairs):
    torch.manual_seed(0)
    model = LumaClean(2, channels=16, depth=1, expand=0)
    batches, loss_of = damaged_batches(pairs, 4, seed=0), objective(0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(12):
        loss = loss_of(model, [torch.from_numpy(part) for part in batches(step % 2)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
