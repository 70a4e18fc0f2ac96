import pytest
import torch
import torch.nn.functional as F

from foveal.ops.backends import ShapeError
from foveal.ops.low_bit_attention import choose_bits, explain, sage_attention2
from foveal.ops.low_bit_attention.eager import fp8, grouped_integers
from foveal.ops.low_bit_attention.reference import _fp8, _integers, fp22


def problem(queries, keys, *, mean=0.0, dim=6):
    generator = torch.Generator().manual_seed(queries + keys)
    q, k = (torch.randn(1, 2, n, dim, generator=generator) for n in (queries, keys))
    q[..., 0] += mean
    k[..., 0] += mean
    return q, k, torch.randn(1, 2, keys, 5, generator=generator)


@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"smooth": False}], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (7, 63), (129, 100)], ids=str)
def test_it_is_the_reference(sizes, options):
    given = [x.double() for x in problem(*sizes, mean=3.0)]
    ours, theirs = (sage_attention2(*given, backend=backend, **options) for backend in ("eager", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_are_those_of_the_threads(keys, bits):
    """Groups by their definition: 4 rows of queries, 8 apart; 16 rows of keys, in pairs."""
    x = torch.randn(1, 1, 100, 3, generator=torch.Generator().manual_seed(0))
    integers, steps = grouped_integers(x, bits, keys=keys)
    groups = [(64 * (r // 64) + r // 2 % 4) if keys else (32 * (r // 32) + r % 8) for r in range(100)]
    plain, wanted = _integers(x[0, 0], groups, 2 ** (bits - 1) - 1)
    assert torch.equal(integers[0, 0], plain)
    assert torch.equal(steps[0, 0], wanted)
    assert len(set(groups)) == (8 if keys else 28)  # the last rows fill four of eight groups
    assert integers.abs().max() == 2 ** (bits - 1) - 1


def test_halves_are_rounded_away_from_zero():
    integers, _ = grouped_integers(torch.tensor([[7.0, 2.5001, -2.5001, 0.4]])[None, None], 4, keys=True)
    assert integers.flatten().tolist() == [7, 3, -3, 0]


def test_fp8_is_the_nearest_value():
    x = torch.cat((torch.linspace(-448, 448, 999), torch.tensor([0.0, 2.0**-9, 2.0**-10, 17.0, 18.0, 19.0])))
    assert torch.equal(fp8(x), _fp8(x))
    assert fp8(torch.tensor([1e6, 17.0])).tolist() == [448, 16]


def test_fp22_has_13_bits_of_mantissa():
    x = torch.tensor([1.0, 1 + 2.0**-13, 1 + 2.0**-15, -3.0 - 2.0**-14, 0.0])
    assert fp22(x).tolist() == [1.0, 1 + 2.0**-13, 1.0, -3.0, 0.0]


def test_smoothing_takes_channels_that_are_large_alike():
    q, k, v = problem(130, 70, mean=20.0)
    full = F.scaled_dot_product_attention(q, k, v)
    smooth, rough = ((sage_attention2(q, k, v, smooth=smooth) - full).abs().sum() for smooth in (True, False))
    assert rough > 3 * smooth


def test_constant_tokens_cost_nothing():
    """What all keys share is no difference, and a mean is kept in full: only weights and values are rounded."""
    q, k, v = (x.repeat(1, 1, 20, 1) for x in problem(1, 1))
    torch.testing.assert_close(sage_attention2(q, k, v), v, rtol=1e-2, atol=1e-2)


def test_bits_are_chosen_by_the_cosine():
    given = problem(64, 64)
    assert choose_bits(*given, least=0.5) == 4
    assert choose_bits(*given, least=0.99999) == 8


def test_types_are_kept_and_no_gradient_comes_back():
    given = [x.half().requires_grad_() for x in problem(9, 5)]
    out = sage_attention2(*given)
    assert out.dtype == torch.float16
    assert not out.requires_grad


def test_what_can_run():
    assert explain()["eager"] == "can run"


def test_wrong_arguments_raise():
    x = torch.ones(1, 1, 4, 2)
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 5; 8 is for layers that lose too much with 4"):
        sage_attention2(x, x, x, bits=5)
    with pytest.raises(ShapeError, match=r"q must be .* and not empty"):
        sage_attention2(x[0], x, x)
    with pytest.raises(ShapeError, match=r"k must be .* and not empty"):
        sage_attention2(x, x[:, :, :0], x)
    with pytest.raises(ShapeError, match=r"k must be .* heads and channels of q"):
        sage_attention2(x, torch.ones(1, 1, 4, 3), x)
    with pytest.raises(ShapeError, match=r"v must be .* a value for each key"):
        sage_attention2(x, x, x[:, :, :3])
