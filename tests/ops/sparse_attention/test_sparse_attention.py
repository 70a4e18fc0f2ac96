import pytest
import torch
import torch.nn.functional as F

from foveal.ops.backends import ShapeError
from foveal.ops.sparse_attention import explain, hilbert_order, sparge_attention, work
from foveal.ops.sparse_attention.eager import attend, block_map
from foveal.ops.sparse_attention.reference import block_map_reference, rounded_blocks

SIZES = [(1, 1), (4, 3), (7, 100), (63, 10), (33, 64)]


def problem(queries, keys, *, dim=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(queries + keys)
    near = torch.randn(2, 3, 20, dim, generator=generator).repeat_interleave(5, 2)
    q, k = (2 * (near[:, :, :n] + 0.3 * torch.randn(2, 3, n, dim, generator=generator)) for n in (queries, keys))
    return [x.to(dtype) for x in (q, k, torch.randn(2, 3, keys, 5, generator=generator))]


def results(given, backend, **options):
    leaves = [x.detach().clone().requires_grad_() for x in given]
    y = sparge_attention(*leaves, backend=backend, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


@pytest.mark.parametrize("options", [{"tau": 0.5, "theta": 0.0}, {"tau": 0.9, "theta": 0.6, "margin": 1.5}], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_outputs_and_gradients_are_the_reference_s(sizes, options):
    given = problem(*sizes, dtype=torch.float64)
    ours, theirs = (results(given, backend, block=(8, 5), **options) for backend in ("eager", "reference"))
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("options", [{"tau": 1.0}, {"tau": 0.1, "theta": 1.0}, {"tau": 1.0, "margin": 50.0}], ids=str)
def test_at_its_limits_it_is_full_attention(sizes, options):
    q, k, v = problem(*sizes)
    ours = sparge_attention(q, k, v, block=(8, 5), **options)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tau", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("theta", [-1.0, 0.5, 1.0])
def test_the_map_is_the_reference_s(tau, theta):
    q, k, _ = problem(63, 38)
    options = {"tau": tau, "theta": theta, "block": (8, 5), "scale": 0.3}
    plain = [[block_map_reference(q[b, h], k[b, h], **options) for h in range(3)] for b in range(2)]
    assert torch.equal(block_map(q, k, **options), torch.stack([torch.stack(row) for row in plain]))


def test_the_map_by_hand():
    """Two blocks of equal tokens and one of opposite ones: the nearer alike one, and the one that has no mean."""
    k = torch.tensor([[4.0, 0.0], [4, 0], [0, 4], [0, 4], [9, 9], [-9, -9], [-4, -4], [-4, -4]])[None, None]
    q = torch.tensor([[1.0, 0.0], [1, 0]])[None, None]
    kept = block_map(q, k, tau=0.5, theta=0.5, block=(2, 2), scale=1.0)
    assert kept[0, 0].tolist() == [[True, False, True, False]]
    unsure = torch.tensor([[1.0, 0.0], [-1, 0]])[None, None]
    assert block_map(unsure, k, tau=0.5, theta=0.5, block=(2, 2), scale=1.0).all()


def test_a_margin_leaves_out_the_second_product_only():
    q = torch.ones(1, 1, 2, 1)
    k, v = torch.tensor([5.0, 5, 0, 0, 4, 4]).view(1, 1, 6, 1), torch.arange(6.0).view(1, 1, 6, 1)
    kept = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    out, done = attend(q, k, v, kept, block=(2, 2), scale=1.0, margin=3.0)
    assert done == 2
    shares = torch.tensor([5.0, 5, 4, 4]).softmax(0)
    torch.testing.assert_close(out.flatten(), (shares @ torch.tensor([0.0, 1, 4, 5])).expand(2))
    share = work(q, k, tau=1.0, theta=-1.0, margin=3.0, block=(2, 2), scale=1.0)
    assert share == pytest.approx(5 / 6)
    assert work(q, k, tau=1.0, block=(2, 2)) == 1


def test_neighbours_on_a_hilbert_curve_are_neighbours_in_the_picture():
    order = hilbert_order(16, 16)
    steps = (order // 16).diff().abs() + (order % 16).diff().abs()
    assert (steps == 1).all()
    for height, width in ((1, 1), (3, 5), (7, 2)):
        assert sorted(hilbert_order(height, width).tolist()) == list(range(height * width))


def test_a_grid_changes_what_is_skipped_and_nothing_else():
    rows = torch.arange(64.0).view(8, 8)
    token = torch.stack((rows // 8, rows % 8), 2).view(1, 1, 64, 2) - 3.5
    token = torch.cat((torch.cos(token), torch.sin(token)), 3)
    options = {"tau": 0.6, "theta": 0.0, "block": (4, 4), "scale": 4.0}
    order = hilbert_order(8, 8)
    ours = sparge_attention(token, token, token, grid=(8, 8), **options)
    curve = token[:, :, order]
    assert torch.equal(ours[:, :, order], sparge_attention(curve, curve, curve, **options))
    assert work(token, token, grid=(8, 8), **options) == work(curve, curve, **options)


def test_8_bits_are_rounded_in_blocks():
    x = torch.tensor([1.0, -127, 63.4, 10, 0.4, 20]).view(1, 1, 6, 1)
    assert rounded_blocks(x, 3).flatten()[:3].round(decimals=3).tolist() == [1, -127, 63]
    q, k, v = problem(33, 64)
    ours, full = sparge_attention(q, k, v, tau=1.0, int8=True), F.scaled_dot_product_attention(q, k, v)
    assert 0 < (ours - full).abs().sum() < 0.02 * full.abs().sum()


def test_half_types_and_strides():
    q, k, v = problem(33, 64)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    options = {"tau": 0.7, "theta": 0.0, "block": (8, 5)}
    assert torch.equal(sparge_attention(*turned, **options), sparge_attention(q, k, v, **options))
    half = sparge_attention(*(x.bfloat16() for x in (q, k, v)), tau=1.0)
    assert half.dtype == torch.bfloat16


def test_what_can_run():
    assert explain() == {"eager": "can run", "reference": "can run"}


def test_wrong_arguments_raise():
    x = torch.ones(1, 1, 4, 2)
    for wrong, text in [
        ({"tau": 0.0}, r"tau must be in \(0, 1\], got 0.0; 0.98 computes nearly all"),
        ({"theta": 2.0}, r"theta must be in \[-1, 1\], got 2.0; 1 computes every block"),
        ({"margin": -1.0}, "margin must be at least 0, got -1.0; infinity passes over no block"),
        ({"block": (0, 4)}, r"block must be two numbers of at least 1, got \(0, 4\)"),
        ({"grid": (2, 3)}, "a grid of 2×3 has 6 tokens, got 4 queries and 4 keys; leave out class tokens"),
    ]:
        with pytest.raises(ValueError, match=text):
            sparge_attention(x, x, x, **wrong)
    with pytest.raises(ShapeError, match=r"q must be .* and not empty"):
        sparge_attention(x[0], x, x)
    with pytest.raises(ShapeError, match=r"k must be .* and not empty"):
        sparge_attention(x, x[:, :, :0], x)
    with pytest.raises(ShapeError, match=r"k must be .* heads and channels of q"):
        sparge_attention(x, torch.ones(1, 1, 4, 3), x)
    with pytest.raises(ShapeError, match=r"v must be .* a value for each key"):
        sparge_attention(x, x, x[:, :, :3])
    with pytest.raises(TypeError, match="k must be a real floating-point tensor"):
        sparge_attention(x, x.long(), x)
