import pytest
import torch
from torch import nn

from foveal.adapt import AdaptError
from foveal.adapt.delta import Delta, Dense, LowRank
from foveal.adapt.rmm import PER, Reversible, bases_of, discarded_energy, merge


def deltas(count=4, rank=3, seed=0, base="same"):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return [
        Delta({"0.weight": LowRank(draw(5, rank), draw(rank, 7))}, {"0.weight": base} if base else {})
        for _ in range(count)
    ]


@pytest.mark.parametrize("shape", [(6, 9), (1, 7), (3, 5, 2), (2, 4, 4)])
def test_bases_are_the_truncated_svd(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for p in range(1, shape[-2] + 1):
        c, s = bases_of(x, p)
        assert c.shape == (*shape[:-1], p)
        assert s.shape == (*shape[:-2], p, shape[-1])
        u, values, v = torch.linalg.svd(x, full_matrices=False)
        torch.testing.assert_close(c @ s, (u[..., :p] * values[..., None, :p]) @ v[..., :p, :])
        torch.testing.assert_close((x - c @ s).square().sum((-1, -2)), discarded_energy(x, p), atol=1e-12, rtol=1e-9)


def test_a_collection_of_one_direction_needs_one_basis():
    x = torch.outer(torch.tensor([1.0, 2.0, -2.0]), torch.tensor([3.0, 4.0]))
    c, s = bases_of(x, 1)
    torch.testing.assert_close(c @ s, x)
    torch.testing.assert_close(s.abs(), torch.tensor([[9.0, 12.0]]))  # 3 · (3, 4)


@pytest.mark.parametrize("per", PER)
def test_all_bases_give_every_task_back(per):
    tasks = deltas()
    merged = merge(tasks, 4, per=per)
    for number, delta in enumerate(tasks):
        found, wanted = merged.recover(number).changes["0.weight"], delta.changes["0.weight"]
        torch.testing.assert_close(found.up, wanted.up, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.down, wanted.down, atol=1e-5, rtol=1e-5)


def test_fewer_bases_store_less_and_err_as_little_as_they_can():
    tasks = deltas()
    assert merge(tasks, 2).values == (5 + 7) * 2 * (3 + 4)
    assert merge(tasks, 2, per="tensor").values == 2 * (5 + 7) * 3 + 2 * 2 * 4
    merged = merge(tasks, 2)
    ups = [merged.recover(t).changes["0.weight"].up - delta.changes["0.weight"].up for t, delta in enumerate(tasks)]
    collection = torch.stack([delta.changes["0.weight"].up for delta in tasks], 1)  # (rows, T, r)
    torch.testing.assert_close(torch.stack(ups).square().sum().double(), discarded_energy(collection, 2).sum())


def test_a_recovered_task_folds_and_a_file_keeps_it(tmp_path):
    model = nn.Sequential(nn.Linear(7, 5))
    merged = merge(deltas(base=""), 2)
    merged.save(tmp_path / "tasks.safetensors")
    again = Reversible.load(tmp_path / "tasks.safetensors")
    assert (again.values, again.tasks, again.base) == (merged.values, 4, {})
    before = model[0].weight.clone()
    undo = again.recover(3).fold_(model)
    torch.testing.assert_close(model[0].weight, before + merged.recover(3).changes["0.weight"].difference())
    undo()
    assert torch.equal(model[0].weight, before)
    Delta({"0.weight": Dense(before)}).save(tmp_path / "other.safetensors")
    with pytest.raises(AdaptError, match="no merged tasks; give a file written by Reversible"):
        Reversible.load(tmp_path / "other.safetensors")


def mixed():
    return [*deltas(1), Delta({"0.weight": Dense(torch.zeros(5, 7))})]


def more():
    one, two = deltas(2)
    return [one, Delta({**two.changes, "1.weight": two.changes["0.weight"]}, two.base)]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: bases_of(torch.zeros(3, 2), 4), "p must be in 1…3 for 3 tasks, got 4"),
        (lambda: merge(deltas(), 0), "p must be in 1…4 for 4 tasks, got 0"),
        (lambda: merge([], 1), "merge takes at least one delta"),
        (lambda: merge(deltas(), 1, per="layer"), "per one of position, tensor, got 4, 'layer'"),
        (lambda: merge(mixed(), 1), "'0.weight' is not low-rank in every delta"),
        (lambda: merge([*deltas(1), *deltas(1, rank=2)], 1), "'0.weight' has changes of several ranks or shapes"),
        (lambda: merge([*deltas(1), *deltas(1, base="other")], 1), "'0.weight' was changed from different weights"),
        (lambda: merge(more(), 1), "the deltas must change the same tensors"),
        (lambda: merge(deltas(), 2).recover(4), "task must be in 0…3, got 4"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
