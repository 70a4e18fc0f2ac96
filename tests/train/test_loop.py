import ast
import ctypes
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.train import loop, muon, objective, run, trainable
from foveal.train.loop import fast_denormals, fit, kept_memory, learning_rate, muon_and_adam, to_device
from foveal.train.objective import supervised


def network(seed=0):
    """Weights, statistics that move with every batch, and random numbers in the forward pass."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))


def batch(step):
    rng = np.random.default_rng((5, step))
    x = rng.standard_normal((16, 4), np.float32)
    return x, x[:, :3].argmax(1)


def weights(model):
    return torch.cat([t.flatten().float() for t in model.state_dict().values()])


def trained(model, **changes):
    values = {"steps": 12, "warmup": 3, "ema": 0.9, "every": 4}
    optimizers = muon_and_adam(model)
    return fit(model, supervised(F.cross_entropy), batch, optimizers, **values | changes)


def test_it_does_what_a_plain_loop_does():
    """The loop without checkpoints, threads and timers, in full."""
    model = network().train()
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01)]
    average = [p.detach().clone() for p in model.parameters()]
    for step in range(12):
        optimizers[0].param_groups[0]["lr"] = 0.01 * learning_rate(step, 12, 3)
        torch.manual_seed(int(np.random.SeedSequence((7, step)).generate_state(1)[0]))
        x, y = batch(step)
        loss = F.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
        optimizers[0].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizers[0].step()
        keep = min(0.9, (step + 1) / (step + 10))
        for a, p in zip(average, model.parameters(), strict=True):
            a.lerp_(p.detach(), 1 - keep)
    other = network()
    adam = torch.optim.Adam(other.parameters(), lr=0.01)
    fit(other, supervised(F.cross_entropy), batch, [adam], steps=12, warmup=3, ema=0.9, clip=0.5, seed=7)
    for a, p in zip(average, other.parameters(), strict=True):
        assert torch.equal(a, p)
    assert torch.equal(model[1].running_mean, other[1].running_mean)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_stopped_and_resumed_training_gives_the_same_weights(stop):
    whole = trained(network())
    states = []
    trained(network(), stop_after=stop, save=lambda state: states.append(deepcopy(state)))
    assert states[-1]["step"] == stop
    resumed = trained(network(seed=9), state=states[-1])
    assert torch.equal(weights(whole), weights(resumed))
    assert not torch.equal(weights(whole), weights(trained(network(), seed=1))), "dropout is drawn under the seed"


def test_random_numbers_outside_go_on_as_if_nothing_had_been_drawn():
    torch.manual_seed(3)
    expected = torch.rand(4)
    model = network()
    torch.manual_seed(3)
    trained(model)
    assert torch.equal(torch.rand(4), expected)


def test_quality_is_that_of_the_averaged_weights_in_eval_mode():
    model, seen, said, states = network(), [], [], []

    def validate(model):
        assert not model.training
        seen.append(weights(model))
        return float(len(seen))

    trained(model, save=lambda state: states.append(deepcopy(state)), validate=validate, report=said.append)
    saved = [p for p in said if p.saved]
    assert [(p.step, p.quality) for p in saved] == [(4, 1.0), (8, 2.0), (12, 3.0)]
    assert saved[-1].left == 0
    assert torch.equal(seen[-1], weights(model))
    averages = [torch.cat([a.flatten() for a in s["average"].values()]) for s in states]
    assert torch.equal(averages[-1], torch.cat([p.detach().flatten() for p in model.parameters()]))


def test_training_goes_on_with_its_own_weights_after_a_look_at_the_averaged():
    looked, not_looked = trained(network(), validate=lambda _: 0.0), trained(network())
    assert torch.equal(weights(looked), weights(not_looked))


def test_no_batch_is_asked_for_beyond_the_last_step():
    asked = []

    def noted(step):
        asked.append(step)
        return batch(step)

    model = network()
    fit(model, supervised(F.cross_entropy), noted, [torch.optim.SGD(model.parameters(), 0.1)], steps=3)
    fit(model, supervised(F.cross_entropy), noted, [torch.optim.SGD(model.parameters(), 0.1)], steps=0)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_other_precisions_train_and_leave_statistics_alone(precision):
    model = trained(network(), precision=precision)
    assert torch.isfinite(weights(model)).all()
    assert int(model[1].num_batches_tracked) == 12


def test_unknown_precision():
    with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16, got 'fp16'"):
        trained(network(), precision="fp16")


def test_kernels_named_as_linear_are_left_to_adam():
    model = network()
    names = {id(p): n for n, p in model.named_parameters()}
    hidden, rest = ({names[id(p)] for p in o.param_groups[0]["params"]} for o in muon_and_adam(model))
    assert hidden == {"0.weight", "4.weight"}
    assert len(hidden | rest) == len(names)
    model.linear = ("4.weight",)
    assert {names[id(p)] for p in muon_and_adam(model)[0].param_groups[0]["params"]} == {"0.weight"}
    assert len(muon_and_adam(nn.Linear(2, 2, bias=False))) == 1
    assert type(muon_and_adam(nn.BatchNorm1d(2))[0]) is torch.optim.Adam


def flushed():
    return float(torch.full((), 2e-38).mul(0.1)) == 0


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_flushed_inside_and_as_before_afterwards(before):
    torch.set_flush_denormal(before)
    try:
        with fast_denormals():
            assert flushed()
        assert flushed() == before
        with pytest.raises(ZeroDivisionError), fast_denormals():
            raise ZeroDivisionError
        assert flushed() == before

        class StopError(Exception):
            pass

        def fails(model, batch):
            assert flushed()
            raise StopError

        model = network()
        with pytest.raises(StopError):
            fit(model, fails, batch, [torch.optim.SGD(model.parameters(), 0.1)], steps=2)
        assert flushed() == before
    finally:
        torch.set_flush_denormal(False)


def test_memory_is_handed_back_afterwards(monkeypatch):
    calls = []

    class Library:
        def __init__(self, name):
            pass

        def mallopt(self, option, value):
            calls.append((option, value))

        def malloc_trim(self, pad):
            calls.append(("trim", pad))

    monkeypatch.setattr(loop.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    with kept_memory():
        inside = len(calls)
        assert (-4, 0) in calls
    assert dict(calls[inside:]) == {-1: 128 << 10, -2: 128 << 10, -4: 1 << 16, "trim": 0}
    monkeypatch.setattr(loop.sys, "platform", "darwin")
    with kept_memory():
        pass
    assert len(calls) == inside + 4


def test_arrays_become_tensors_wherever_they_stand():
    made = to_device({"x": (np.ones(2), [torch.zeros(1)]), "name": "a"}, "cpu")
    assert type(made["x"]) is tuple
    assert made["x"][0].tolist() == [1, 1]
    assert made["x"][1][0].device.type == "cpu"
    assert made["name"] == "a"


def test_learning_rate_rises_then_falls_as_a_cosine():
    rates = [learning_rate(s, 102, 2) for s in range(102)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[52] == pytest.approx(0.5)
    assert rates[77] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.75)))
    assert rates[-1] < 1e-3


@pytest.mark.parametrize("module", [loop, muon, objective, run, trainable], ids=lambda m: m.__name__)
def test_the_general_part_knows_no_pictures_and_no_network(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    own = {name for name in names if name.startswith("foveal")}
    assert own <= {"foveal.errors", *(f"foveal.train.{n}" for n in ("loop", "muon", "objective", "trainable"))}
    assert not {"PIL", "foveal.images"} & set(names)


@pytest.mark.gpu
def test_a_gpu_resumes_as_exactly():
    states = []
    whole = trained(network().cuda())
    trained(network().cuda(), stop_after=5, save=lambda state: states.append(deepcopy(state)))
    assert torch.equal(weights(whole), weights(trained(network(seed=9).cuda(), state=states[-1])))
