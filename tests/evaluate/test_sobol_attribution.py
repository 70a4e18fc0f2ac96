import pytest
import torch

from foveal.evaluate.sobol_attribution import deletion, replicated_design, sobol_attribution, sobol_indices
from foveal.evidence.evaluate.sobol_attribution import additive, index_error, ishigami, occlusion


def in_a_corner(pictures):
    """Two classes; the second one's score is what the top left 2×2 pixels hold."""
    score = pictures[:, 0, :2, :2].sum((1, 2))
    return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize("quasi", [True, False])
def test_a_design_replaces_one_column_at_a_time(quasi):
    rows = replicated_design(8, 3, seed=1, quasi=quasi).view(5, 8, 3)
    a, b = rows[:2]
    assert not (a == b).any()
    for i in range(3):
        for column in range(3):
            assert torch.equal(rows[2 + i][:, column], (b if column == i else a)[:, column])
    assert torch.equal(rows.view(-1, 3), replicated_design(8, 3, seed=1, quasi=quasi))
    assert not torch.equal(rows.view(-1, 3), replicated_design(8, 3, seed=2, quasi=quasi))


def test_quasi_random_rows_fill_the_square():
    rows = replicated_design(16, 1)
    assert (rows[:16, 0] * 16).long().sort().values.tolist() == list(range(16))


def test_indices_by_hand():
    a, b = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])
    first, total = sobol_indices(torch.cat([a, b, torch.tensor([0.0, 1.0])]), 1)  # variance of A: 2
    assert first.tolist() == [1 - 0.5 / 4]
    assert total.tolist() == [0.5 / 4]


@pytest.mark.parametrize("function", [ishigami, additive])
def test_indices_of_known_functions(function):
    assert index_error(function, 2048).abs().max() < 0.02
    assert index_error(function, 2048)[0].abs().max() > 1e-9


def test_a_constant_function_has_no_indices():
    for indices in sobol_indices(torch.ones(2, 10), 3):
        assert torch.equal(indices, torch.zeros(2, 3))


def test_the_map_finds_what_the_score_looks_at():
    pictures = 1 + torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = sobol_attribution(in_a_corner, pictures, torch.tensor([1, 0, 1]), grid=4, count=16, batch=7)
    assert maps.shape == (3, 8, 8)
    assert maps[0].argmax() == 0
    assert maps[0, 0, 0] > 0.8
    assert maps[0, 3:].abs().max() == 0
    assert not maps[1].any()
    torch.testing.assert_close(
        maps, sobol_attribution(in_a_corner, pictures, torch.tensor([1, 0, 1]), grid=4, count=16)
    )


def test_a_masked_pixel_has_the_baseline():
    pictures = torch.full((1, 1, 4, 4), 3.0)
    still = sobol_attribution(in_a_corner, pictures, torch.ones(1, dtype=torch.long), grid=2, count=4, baseline=3.0)
    assert not still.any()


def test_deletion_is_the_area_below_the_curve():
    pictures, labels = torch.full((2, 1, 2, 2), 5.0), torch.ones(2, dtype=torch.long)
    maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]]).expand(2, -1, -1)
    scores = torch.tensor([20.0, 15.0, 10.0, 5.0, 0.0]).sigmoid()
    expected = torch.trapezoid(scores, dx=0.25)
    torch.testing.assert_close(deletion(in_a_corner, pictures, labels, maps, steps=4), expected.expand(2))


def test_deletion_is_lower_for_the_right_order():
    pictures, labels = torch.ones(1, 1, 4, 4), torch.ones(1, dtype=torch.long)
    right = torch.zeros(1, 4, 4)
    right[:, :2, :2] = 1
    assert deletion(in_a_corner, pictures, labels, right) < deletion(in_a_corner, pictures, labels, -right) - 0.1


def test_the_rival_masks_a_patch_around_each_pixel():
    pictures = torch.ones(1, 1, 5, 5)
    fall = occlusion(in_a_corner, pictures, torch.ones(1, dtype=torch.long), patch=3)
    assert fall[0, 0].tolist() == [4, 4, 2, 0, 0]
    assert fall[0, 2].tolist() == [2, 2, 1, 0, 0]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: replicated_design(12, 2), "count must be a power of 2, at least 2, got 12; 32 is usual"),
        (lambda: replicated_design(1, 2, quasi=False), "count must be a power of 2, at least 2, got 1"),
        (lambda: sobol_indices(torch.zeros(11), 3), "there must be a multiple of 5 values, got 11"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
