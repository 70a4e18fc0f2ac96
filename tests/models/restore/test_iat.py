import pytest
import torch

from foveal.models.restore.iat import GAMMA, IAT, LightNorm, corrected


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = IAT(dim=4, depth=1).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def test_it_has_the_parameters_of_the_authors_code():
    with torch.device("meta"):
        assert sum(p.numel() for p in IAT().parameters()) == 91_154


def test_at_the_start_there_is_no_cast_and_no_gamma():
    made = IAT(dim=4, depth=1).eval()
    numbers = made.control(torch.rand(2, 3, 96, 96))
    torch.testing.assert_close(numbers, torch.cat([torch.eye(3).flatten(), torch.ones(1)]).expand(2, 10))


def test_colours_go_through_the_matrix_and_the_power():
    x = torch.rand(2, 3, 3, 5)
    matrix, gamma = torch.rand(2, 3, 3), torch.tensor([[0.5], [2.0]])
    out = corrected(x, matrix, gamma)
    for b in range(2):
        for i, j in ((0, 0), (2, 4)):
            expected = (matrix[b] @ x[b, :, i, j]).clamp(1e-6, 1) ** gamma[b]
            torch.testing.assert_close(out[b, :, i, j], expected)


def test_the_normalisation_mixes_and_then_scales():
    norm = LightNorm(3)
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.rand_like(p))
    x = torch.rand(1, 3, 2, 2)
    expected = torch.einsum("oc,bchw->bohw", norm.color, x) * norm.alpha[:, None, None] + norm.beta[:, None, None]
    torch.testing.assert_close(norm(x), expected)


def test_the_exported_form_with_its_numbers_is_the_network(network):
    x = torch.rand(1, 3, 31, 26)
    numbers = network.control(network.view(x))[0]
    fixed = network.collapse()
    with torch.no_grad():
        fixed.matrix.copy_(numbers[:9].view(3, 3, 1, 1))
        fixed.gamma.copy_(numbers[9:])
    torch.testing.assert_close(fixed(x), network(x), atol=1e-5, rtol=1e-5)


def test_a_far_pixel_changes_the_numbers_and_nothing_else(network):
    x = torch.rand(1, 3, 64, 64)
    y = x.clone()
    y[..., -1, -1] = 1 - y[..., -1, -1]
    mul, other = network.local(x)[0], network.local(y)[0]
    assert torch.equal(mul[..., : -2 * network.margin, :], other[..., : -2 * network.margin, :])
    assert not torch.equal(network.control(network.view(x)), network.control(network.view(y)))


def test_gamma_stays_in_its_range(network):
    with torch.no_grad():
        network.whole.gamma.bias.fill_(50)
    assert float(network.control(torch.rand(1, 3, 96, 96))[0, 9].detach()) == GAMMA[1]


def test_it_does_not_enlarge():
    with pytest.raises(ValueError, match="same size, scale 1, got 2"):
        IAT(2)
