import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import STEPS, rehearsal
from foveal.evidence.short_run import fast_denormals, short_run


def batches(step):
    return torch.rand(8, 3, generator=torch.Generator().manual_seed(step))


def loss(model, x):
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def flushes():
    return float(torch.tensor(1e-40) * 1.0) == 0.0


def test_the_same_arguments_give_the_same_weights():
    first, again = (short_run(linear(), batches, loss, steps=3) for _ in range(2))
    other = short_run(linear(), lambda step: batches(step + 1), loss, steps=3)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_it_learns_and_ends_in_eval_mode():
    model = short_run(linear(), batches, loss, steps=200, lr=5e-2)
    assert not model.training
    assert loss(model, batches(999)) < 0.05
    assert loss(linear(), batches(999)) > 0.1


def test_it_takes_each_batch_once():
    seen = []
    short_run(linear(), lambda step: seen.append(step) or batches(step), loss, steps=5)
    assert seen == [0, 1, 2, 3, 4]


def test_what_needs_no_gradient_stays():
    model = linear()
    model.bias.requires_grad_(False)
    bias, weight = model.bias.clone(), model.weight.detach().clone()
    short_run(model, batches, loss, steps=2)
    assert torch.equal(model.bias, bias)
    assert not torch.equal(model.weight, weight)


def test_decay_is_for_weights_alone():
    models = [short_run(linear(), batches, lambda m, x: 0 * loss(m, x), steps=30, weight_decay=w) for w in (0.0, 0.5)]
    assert torch.equal(models[0].weight, linear().weight)
    assert (models[1].weight.abs() < models[0].weight.abs()).all()
    assert torch.equal(models[0].bias, models[1].bias)


def test_gradients_are_clipped(monkeypatch):
    clipped = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda _, norm: clipped.append(norm))
    short_run(linear(), batches, loss, steps=2)
    assert not clipped
    short_run(linear(), batches, loss, steps=2, clip=0.5)
    assert clipped == [0.5, 0.5]


def test_a_time_ends_it():
    begun = linear()
    assert not torch.equal(short_run(linear(), batches, loss, seconds=0.01).weight, begun.weight)


@pytest.mark.parametrize("length", [{"steps": 1000}, {"seconds": 1000.0}])
def test_a_rehearsal_takes_two_steps(length):
    seen = []
    with rehearsal():
        short_run(linear(), lambda step: seen.append(step) or batches(step), loss, **length)
    assert len(seen) == STEPS == 2


@pytest.mark.parametrize(("wrong", "got"), [({}, "None and None"), ({"steps": 1, "seconds": 1.0}, r"1 and 1\.0")])
def test_steps_or_seconds(wrong, got):
    with pytest.raises(ValueError, match=f"give exactly one of steps and seconds, got {got}"):
        short_run(linear(), batches, loss, **wrong)


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_treated_as_before_afterwards(before):
    if not torch.set_flush_denormal(before):
        pytest.skip("this processor cannot flush denormal numbers")

    def interrupted():
        with fast_denormals():
            assert flushes()
            raise RuntimeError("stop")

    try:
        with pytest.raises(RuntimeError, match="stop"):
            interrupted()
        assert flushes() == before
    finally:
        torch.set_flush_denormal(False)
