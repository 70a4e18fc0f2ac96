"""Suites of operators, transforms, objectives and procedures: each check passes a good case and refuses a wrong one."""

import numpy as np
import pytest
import torch
from torch import nn
from toys import toy

from foveal.cases import Objective, Operator, Procedure, Transform
from foveal.evidence.checks import CheckError, check, run


def refuses(kind, name, case, text):
    with pytest.raises(CheckError, match=text):
        check(toy(kind=kind, cases={"case": case}), name, "case")


def passes(kind, case):
    said = run(toy(kind=kind, cases={"case": case}))
    assert set(said.values()) == {"passed"}, said


# operators


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(3, 5, generator=generator), "y": torch.randn(3, 5, generator=generator), "power": 2}


def fast(x, y, power):
    return x * y**power


def slow(x, y, power):
    return torch.stack([a * b**power for a, b in zip(x.unbind(), y.unbind(), strict=True)])


def test_a_good_operator_passes():
    passes("operator", Operator(fast, slow, inputs))


@pytest.mark.parametrize(
    ("name", "wrong", "text"),
    [
        ("equals", lambda x, y, power: fast(x, y, power) * 1.001, "differs from the reference: the largest of 15"),
        ("equals", lambda x, y, power: fast(x, y, power)[:2], r"gives \(2, 5\) where the reference gives \(3, 5\)"),
        ("gradients", lambda x, y, power: x * y.detach() ** power, "no gradient reaches y"),
        (
            "gradients",
            lambda x, y, power: x * y**power + (x - x.detach()),
            "the gradient of x differs from the reference's",
        ),
    ],
)
def test_a_wrong_operator_is_refused(name, wrong, text):
    refuses("operator", name, Operator(wrong, slow, inputs), text)


# transforms


def model(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def tokens(seed):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def round_(network, levels=2.0):
    if getattr(network, "rounded", False):
        raise ValueError("it is rounded already")
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.round(p * levels) / levels)
    network.rounded = True


GOOD = Transform(round_, model, tokens, identity=lambda network: round_(network, 2**30), twice="rounded already")


def test_a_good_transform_passes():
    passes("transform", GOOD)


def broken(network):
    nn.init.constant_(network[0].weight, torch.nan)


def renamed(network):
    network.offset = nn.Parameter(torch.randn(2))
    network.forward = lambda x: nn.Sequential.forward(network, x) + network.plain
    network.plain = torch.rand(2)


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("identity", {"identity": round_}, "the identity configuration changes outputs"),
        ("changes", {"apply": lambda network: None}, "computes and holds what it did before"),
        ("changes", {"apply": broken}, "not finite"),
        ("state", {"apply": renamed}, "after loading the state the largest of 6"),
        ("twice", {"twice": ""}, "applied twice it raises it is rounded already, wanted 'no error'"),
        ("twice", {"apply": lambda network: None}, "applied twice it must raise 'rounded already', and does not"),
    ],
)
def test_a_wrong_transform_is_refused(name, changes, text):
    plain = {"apply": GOOD.apply, "model": model, "inputs": tokens, "identity": GOOD.identity, "twice": GOOD.twice}
    refuses("transform", name, Transform(**{**plain, **changes}), text)


# objectives


def pair(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"student": torch.randn(4, 5, generator=generator), "teacher": torch.randn(4, 5, generator=generator)}


def equal(seed):
    made = pair(seed)
    return {"student": made["teacher"].clone(), "teacher": made["teacher"]}


def distil(student, teacher):
    return (student - teacher.detach()).square().mean()


def test_a_good_objective_passes():
    passes("objective", Objective(distil, pair, ("student",), best=equal))


@pytest.mark.parametrize(
    ("name", "wrong", "text"),
    [
        ("finite", lambda student, teacher: distil(student, teacher) / 0, "the loss is inf in torch.float32"),
        ("finite", lambda student, teacher: (student - teacher).square(), r"must be a scalar tensor, got \(4, 5\)"),
        ("finite", lambda student, teacher: distil(student, teacher).float(), "must give a torch.float64 loss"),
        ("finite", lambda student, teacher: distil(student, teacher) + torch.rand(()).to(student), "and then"),
        ("learns", lambda student, teacher: distil(student.detach(), teacher) + 0 * student.sum(), "reaches student"),
        ("learns", lambda student, teacher: (student - teacher).square().mean(), "a gradient reaches teacher"),
        ("best", lambda student, teacher: -distil(student, teacher), "is less than -?0 at the best"),
    ],
)
def test_a_wrong_objective_is_refused(name, wrong, text):
    refuses("objective", name, Objective(wrong, pair, ("student",), best=equal), text)


# procedures


def none_left():
    raise ValueError("nothing to draw from")


def test_a_good_procedure_passes():
    draw = np.random.default_rng
    passes("procedure", Procedure(lambda seed: draw(seed).random(3), empty=none_left, refuses="nothing to draw from"))
    passes("study", Procedure(float))


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("seeded", {"run": lambda seed: np.random.default_rng().random(3)}, "it gives two results"),
        ("seeded", {"run": lambda seed: None}, "gives no number, array or tensor"),
        ("empty", {"empty": none_left}, "raises nothing to draw from, wanted 'no error'"),
        ("empty", {"empty": lambda: None, "refuses": "nothing"}, "must raise 'nothing', and does not"),
    ],
)
def test_a_wrong_procedure_is_refused(name, changes, text):
    refuses("procedure", name, Procedure(**{"run": float, **changes}), text)
