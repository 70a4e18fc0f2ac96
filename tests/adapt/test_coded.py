import math

import pytest
import torch

from foveal.adapt.coded import CodedMatrix, codes_of, gaussian_levels, pack, unpack, unpacked


def test_levels_by_formula_and_by_sampling():
    torch.testing.assert_close(gaussian_levels(1), torch.tensor([-1.0, 1.0]) * math.sqrt(2 / math.pi))
    torch.testing.assert_close(gaussian_levels(2), torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104]), atol=1e-4, rtol=0)
    torch.testing.assert_close(gaussian_levels(1, error="absolute"), torch.tensor([-0.67449, 0.67449]))
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0))

    def error(levels):
        return (x[:, None] - levels).abs().min(1).values.square().mean()

    best = error(gaussian_levels(2))
    assert best < min(error(gaussian_levels(2) * factor) for factor in (0.9, 1.1))
    assert best < error(gaussian_levels(2, error="absolute"))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 7, 64])
def test_bytes_keep_all_codes(bits, count):
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(count))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(count * bits / 8)
    assert torch.equal(unpack(packed, bits, count), codes)


def test_bytes_by_hand():
    assert pack(torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1]), 1).tolist() == [129, 1]
    assert pack(torch.tensor([3, 0, 2]), 2).tolist() == [35]


@pytest.mark.parametrize("bits", [1, 2])
def test_a_matrix_is_used_in_its_levels_and_reloads(bits):
    torch.manual_seed(0)
    matrix = CodedMatrix(7, 5, bits=bits, deviation=0.3)
    used = matrix()
    assert len(used.unique()) <= 2**bits
    plain = (matrix.weight - matrix.weight.mean()) / (matrix.weight.std() + 1e-5)
    nearest = (plain[..., None] - gaussian_levels(bits)).abs().argmin(-1)
    assert torch.equal(codes_of(matrix.weight, gaussian_levels(bits))[0], nearest)
    assert torch.equal(unpacked(*matrix.packed(), (7, 5), bits), used)


def test_the_gradient_passes_straight_through():
    torch.manual_seed(0)
    matrix = CodedMatrix(4, 3, bits=1, deviation=1.0).double()
    upstream = torch.randn(4, 3, dtype=torch.float64)
    (matrix() * upstream).sum().backward()
    # Ŵ = σ (z + c) + μ with c held: by torch's own rules for μ and σ
    weight = matrix.weight.detach().clone().requires_grad_()
    mean, deviation = weight.mean(), weight.std()
    z = (weight - mean) / (deviation + 1e-5)
    held = gaussian_levels(1).double()[(z > 0).long()] - z.detach()
    (((z + held) * deviation + mean) * upstream).sum().backward()
    torch.testing.assert_close(matrix.weight.grad, weight.grad)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="bits must be 1, 2 or 4 and error squared or absolute, got 3 and 'squared'"):
        gaussian_levels(3)
    with pytest.raises(ValueError, match="got 1 and 'median'"):
        gaussian_levels(1, error="median")
