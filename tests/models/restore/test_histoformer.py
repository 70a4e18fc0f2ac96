import pytest
import torch

from foveal.evidence.models.restore.histoformer import looped
from foveal.models.restore.histoformer import (
    Histoformer,
    HistogramAttention,
    binned,
    correlation_loss,
    dynamic_range,
    softmax_one,
    sort_attend_scatter,
    unbinned,
)


def small(**kwargs):
    torch.manual_seed(0)
    return Histoformer(**{"dim": 4, "depths": (1, 1), "num_heads": (1, 2), "refinement": 1, "expansion": 1.5, **kwargs})


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 5)])
def test_sorting_is_undone(size):
    x = torch.randn(2, 3, *size)
    across, undo = dynamic_range(x)
    assert torch.equal(undo(across), x)
    assert (across.diff(dim=-1) >= 0).all()
    assert torch.equal(across.flatten(2).sort(-1)[0], x.flatten(2).sort(-1)[0])


def test_rows_are_sorted_after_columns():
    x = torch.tensor([[3.0, 1.0], [2.0, 4.0]])[None, None]
    across, undo = dynamic_range(x)
    # columns (2, 3) and (1, 4), then rows (1, 2) and (3, 4)
    assert across[0, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    names = torch.tensor([[10.0, 20.0], [30.0, 40.0]])[None, None]
    # 1 was above right, 2 below left, 3 above left, 4 below right
    assert undo(names)[0, 0].tolist() == [[30.0, 10.0], [20.0, 40.0]]


def test_bins_by_hand():
    x = torch.arange(1.0, 6.0)[None]
    assert binned(x, 2, within=False).tolist() == [[1, 2, 3], [4, 5, 0]]
    assert binned(x, 2, within=True).tolist() == [[1, 3, 5], [2, 4, 0]]


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(("length", "bins"), [(1, 1), (3, 8), (63, 4), (64, 4)])
def test_bins_are_put_together(length, bins, within):
    x = torch.randn(2, 3, 5, length)
    tokens = binned(x, bins, within=within)
    assert tokens.shape == (2, 3, 5 * bins, -(-length // bins))
    assert torch.equal(unbinned(tokens, bins, length, within=within), x)


@pytest.mark.parametrize("within", [False, True])
def test_attention_that_changes_nothing_leaves_values_in_place(within):
    q, k, v = torch.randn(3, 2, 2, 3, 35).round(decimals=1)  # with ties
    out = sort_attend_scatter(q, k, v, v.argsort(-1), lambda q, k, v: v, bins=4, within=within)
    assert torch.equal(out, v)


def test_queries_and_keys_take_the_order_of_the_values():
    v = torch.tensor([3.0, 1.0, 2.0]).view(1, 1, 1, 3)
    seen = []
    sort_attend_scatter(10 * v, 20 * v, v, v.argsort(-1), lambda *t: seen.extend(t) or t[2], bins=1, within=False)
    assert [t.flatten().tolist() for t in seen] == [[10, 20, 30], [20, 40, 60], [1, 2, 3]]


def test_softmax_one_may_answer_nothing():
    scores = torch.tensor([[0.0, 1.0], [-900.0, -900.0], [900.0, 0.0]])
    e = torch.e
    wanted = torch.tensor([[1 / (2 + e), e / (2 + e)], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(softmax_one(scores), wanted)


@pytest.mark.parametrize(("size", "heads", "bins"), [((3, 5), 2, 3), ((4, 4), 1, 2)])
def test_attention_equals_plain_loops(size, heads, bins):
    torch.manual_seed(0)
    layer = HistogramAttention(4, heads, bins=bins).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        layer.temperature.uniform_(0.5, 2)
    out, wanted = layer(x), looped(layer, x)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    inputs = (x, layer.qkv.weight, layer.project_out.weight)
    weight = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad((out * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (9, 14)])
def test_any_size(size):
    x = torch.rand(1, 3, *size)
    assert small()(x).shape == x.shape


def test_it_adds_to_the_picture():
    network = small()
    torch.nn.init.zeros_(network.output.weight)
    x = torch.rand(1, 3, 7, 9)
    assert torch.equal(network(x), x)


def test_every_parameter_gets_a_gradient():
    network = small().double()
    network(torch.rand(2, 3, 9, 10).double()).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_correlation_ignores_brightness_and_contrast():
    x = torch.rand(2, 3, 5, 7)
    assert correlation_loss(0.3 * x + 0.2, x) < 1e-5
    assert correlation_loss(1 - x, x) == pytest.approx(1, abs=1e-5)
    y = torch.rand(2, 3, 5, 7)
    each = [(1 - torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) / 2 for a, b in zip(x, y, strict=True)]
    assert correlation_loss(x, y) == pytest.approx(float(sum(each)) / 2, abs=1e-5)


def test_a_constant_picture_has_no_correlation():
    x = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    loss = correlation_loss(x, torch.rand(1, 3, 4, 4))
    loss.backward()
    assert loss == 0.5
    assert x.grad.isfinite().all()


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="restores at the same size, scale 1, got 2"):
        Histoformer(2)


def test_levels_without_heads_are_refused():
    with pytest.raises(ValueError, match="give heads for each of 2 levels, got 3"):
        Histoformer(depths=(1, 1), num_heads=(1, 2, 4))


@pytest.mark.parametrize(("dim", "heads"), [(5, 1), (6, 4)])
def test_a_width_that_cannot_be_split_is_refused(dim, heads):
    with pytest.raises(ValueError, match=f"even and a multiple of num_heads = {heads}, got {dim}"):
        HistogramAttention(dim, heads)
