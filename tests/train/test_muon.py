import pytest
import torch

from foveal.train.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (1, 7), (6, 6)])
def test_singular_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix, steps=8))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_singular_vectors_stay():
    matrix = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalise(matrix) @ v.T
    assert (inside - torch.diag(inside.diag())).abs().max() < 1e-4


def test_kernel_moves_by_the_orthogonal_matrix_times_the_step():
    kernel = torch.nn.Parameter(torch.zeros(8, 2, 1, 2))
    kernel.grad = torch.randn(8, 2, 1, 2, generator=torch.Generator().manual_seed(2))
    Muon([kernel], lr=0.1, momentum=0.0).step()
    expected = -0.1 * 2**0.5 * orthogonalise(kernel.grad.flatten(1)).view(8, 2, 1, 2)
    torch.testing.assert_close(kernel.detach(), expected)


def test_regression_is_solved():
    torch.manual_seed(0)
    target = torch.randn(3, 6)
    weight = torch.nn.Parameter(torch.zeros(3, 6))
    optimizer = Muon([weight], lr=0.3)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 200)
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    assert (weight - target).abs().max() < 0.1


def test_vector_is_refused():
    with pytest.raises(ValueError, match=r"Muon takes matrices and kernels, got a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


def test_kernels_of_one_shape_move_as_each_would_alone():
    torch.manual_seed(0)
    shapes = [(8, 2, 3, 3), (4, 18), (8, 2, 3, 3)]
    together = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = [torch.nn.Parameter(p.detach().clone()) for p in together]
    optimisers = [Muon(together), *(Muon([p]) for p in alone)]
    for ours, theirs in zip(together, alone, strict=True):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
    for optimiser in optimisers:
        optimiser.step()
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs)
