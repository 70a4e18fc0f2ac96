import copy
import math

import pytest
import torch
from torch import nn

import foveal
from foveal.adapt import Delta
from foveal.adapt.attach import attach_, difference
from foveal.adapt.kadaptation import (
    FreePart,
    Kronecker,
    KroneckerPart,
    SubspacePart,
    attention_layers,
    intrinsic_dimension,
    kronecker_sum,
    measured_dimensions,
    number_of_values,
)
from foveal.adapt.methods import Pictures
from foveal.evidence.adapt import kadaptation as evidence

pytestmark = pytest.mark.dear("the first optimiser of a process loads half of torch")


def factors(t=3, rows=4, columns=5, rank=2):
    generator = torch.Generator().manual_seed(0)
    shapes = ((t, t, t), (t, rows, rank), (t, rank, columns))
    return [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 4, 5, 2), (2, 7, 1, 3)])
def test_one_contraction_is_the_sum_of_products(sizes):
    shared, up, down = made = factors(*sizes)
    fast = kronecker_sum(shared, up, down)
    plain = sum(torch.kron(a, u @ v) for a, u, v in zip(*made, strict=True))
    torch.testing.assert_close(fast, plain)
    weight = torch.randn_like(plain)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), made) for y in (fast, plain))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)


def test_a_tie_of_dimensions_is_no_comparison(monkeypatch):
    monkeypatch.setattr(evidence, "dimensions", lambda: {"attention": 8.0, "mlp": 8.0})
    with pytest.raises(ValueError, match="groups must differ in dimension, got"):
        evidence.least_over_most(0)


def test_by_hand():
    shared = torch.tensor([[[0.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    up, down = torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[[5.0, 6.0]], [[1.0, 0.0]]])
    assert kronecker_sum(shared, up, down).tolist() == [[0, 0, 10, 12], [0, 0, 3, 0]]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def test_folded_equals_attached_and_the_count_is_the_formula(tmp_path):
    model = network()
    work = copy.deepcopy(model)
    shared = nn.Parameter(torch.randn(4, 4, 4))
    parts = attach_(work, lambda w: KroneckerPart(w, shared, rank=2), where=lambda name, _: name in ("0", "2"))
    x = torch.randn(5, 8)
    assert torch.equal(work(x), model(x))
    for part in parts.values():
        nn.init.normal_(part.up)
    assert sum(p.numel() for p in work.parameters() if p.requires_grad) - sum(
        p.numel() for name, p in model.named_parameters() if not name.endswith("weight") or name == "4.weight"
    ) == number_of_values([(12, 8), (8, 12)], t=4, rank=2)
    delta = difference(model, work)
    delta.save(tmp_path / "delta.safetensors")
    half = 0.5 * Delta.load(tmp_path / "delta.safetensors")
    assert isinstance(half.changes["0.weight"], Kronecker)
    torch.testing.assert_close(
        half.changes["2.weight"].difference(), 0.5 * delta.changes["2.weight"].difference(), atol=1e-6, rtol=1e-5
    )
    delta.fold_(model)
    torch.testing.assert_close(model(x), work(x), atol=1e-5, rtol=1e-5)


def test_a_subspace_and_freedom_start_at_nothing():
    weight, at = torch.randn(4, 3, 2, 2), nn.Parameter(torch.zeros(5))
    part, free = SubspacePart(weight, at), FreePart(weight)
    assert torch.equal(part(weight), weight)
    assert torch.equal(free(weight), weight)
    torch.testing.assert_close(part.projection.norm(dim=0), torch.ones(5))
    with torch.no_grad():
        at[2], free.value[0, 0, 0, 0] = 3.0, 2.0
    torch.testing.assert_close((part(weight) - weight).flatten(), 3 * part.projection[:, 2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part(weight), weight + part.change().difference().view_as(weight))
    torch.testing.assert_close(free(weight), weight + free.change().difference())


def test_the_dimension_is_where_the_share_is_reached():
    assert intrinsic_dimension({8: 95.0, 32: 99.0}, 100.0) == 8
    assert intrinsic_dimension({32: 95.0, 8: 85.0}, 100.0) == pytest.approx(16)  # half-way in log d
    assert intrinsic_dimension({8: 10.0, 32: 80.0}, 100.0) == math.inf
    assert intrinsic_dimension({8: 50.0}, 100.0, share=0.5) == 8


def test_dimensions_are_measured_for_each_group():
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    groups = {"first": lambda name, _: name == "0", "second": lambda name, _: name == "2"}
    found = measured_dimensions(network(), Pictures(x, y), (x, y), groups, dims=(2,), steps=1)
    assert set(found) == {"first", "second"}
    assert set(found.values()) <= {2.0, math.inf}


def test_it_learns_by_its_name_and_takes_attention_where_there_is_some():
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    delta = foveal.adapt(network(), x, (x[:, 0] > 0).long(), method="kadaptation", steps=2).delta
    assert {name for name, change in delta.changes.items() if isinstance(change, Kronecker)} == {"0.weight", "2.weight"}
    assert delta.changes["0.weight"].up.abs().sum() > 0
    assert attention_layers("blocks.0.attn.qkv", nn.Linear(2, 2))
    assert not attention_layers("blocks.0.mlp.fc1", nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: KroneckerPart(torch.zeros(6, 8), nn.Parameter(torch.zeros(4, 4, 4))),
            "t divide both sides, got rank 1 and t = 4 for 6×8; take t = 2",
        ),
        (
            lambda: intrinsic_dimension({}, 1.0),
            r"share must be in \(0, 1\] and some dimension be measured, got 0.9 and 0",
        ),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
