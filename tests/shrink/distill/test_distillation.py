"""Taps, the protocol of distillation and the step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.data import Data
from foveal.shrink.distill.distillation import Distil, Distillation, Views, soft_cross_entropy, soft_targets
from foveal.shrink.distill.taps import Taps
from foveal.shrink.step import Step


def network(width: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.Dropout(0.5), nn.ReLU(), nn.Linear(width, 3))


def test_taps_see_what_modules_return_and_leave_no_hooks():
    net = network().eval()
    x = torch.randn(2, 4)
    with Taps(net, ["2", "0"]) as taps:
        net(x)
    assert torch.equal(taps.values()[1], net[0](x))
    assert torch.equal(taps["2"], net[0](x).relu())
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(ValueError, match=r"Sequential has no module 'layer9'; give names from named_modules\(\)"):
        Taps(net, ["layer9"])
    with pytest.raises(KeyError, match="module '0' did not run; taps that ran: none"):
        Taps(net, ["0"])["0"]


def test_only_student_and_loss_learn_and_the_teacher_stays_in_eval_mode():
    student, teacher = network(), network(7)

    class Hint(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(5, 7)

        def forward(self, views: Views):
            (ours,), (theirs,) = views.student_features, views.teacher_features
            assert not theirs.requires_grad
            assert not views.teacher.requires_grad
            return F.mse_loss(self.project(ours), theirs) + F.cross_entropy(views.student, views.targets)

    distillation = Distillation(student, teacher, Hint(), student_taps=["0"], teacher_taps=["0"]).train()
    assert student.training
    assert not teacher.training
    distillation((torch.randn(6, 4), torch.arange(6) % 3)).backward()
    assert all(p.grad is not None for p in distillation.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in distillation.parameters()}
    with pytest.raises(TypeError, match=r"taps need a teacher that is an nn\.Module, got function"):
        Distillation(student, lambda x: x, Hint(), teacher_taps=["0"])


def test_any_callable_teaches():
    views = Distillation(network().eval(), lambda x: x[:, :3], lambda views: views.student.sum()).views(
        torch.ones(2, 4), torch.zeros(2)
    )
    assert torch.equal(views.teacher, torch.ones(2, 3))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_the_scaled_divergence(temperature: float):
    s, t = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    p = (t / temperature).softmax(-1)
    plain = temperature**2 * (p * (p.log() - (s / temperature).softmax(-1).log())).sum(-1).mean()
    assert float(soft_targets(s, t, temperature=temperature)) == pytest.approx(float(plain), rel=1e-12)
    assert float(soft_targets(s, s, temperature=temperature)) == pytest.approx(0, abs=1e-12)
    entropy = -(p * p.log()).sum(-1).mean()
    found = temperature**2 * (soft_cross_entropy(s / temperature, p) - entropy)
    assert float(found) == pytest.approx(float(plain), rel=1e-12)


def test_the_step_teaches_a_student_what_its_teacher_knows():
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    teacher = nn.Linear(4, 3)
    labels = teacher(x).argmax(1)
    data = Data(x, quality=lambda model: 0.0, batches=lambda step: (x, labels), loss=F.cross_entropy)
    student = nn.Linear(4, 3)
    step = Distil(teacher, steps=25, lr=0.1)
    assert isinstance(step, Step)
    assert step.apply(student, data) is student
    assert float((student(x).argmax(1) == labels).float().mean()) > 0.85
    assert not student.training


def test_what_the_step_refuses():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Distil(abs, steps=0)
    with pytest.raises(ValueError, match="lr must be above 0, got 0"):
        Distil(abs, lr=0)
    with pytest.raises(ValueError, match="Distil trains and needs Data with batches and loss; give both"):
        Distil(abs).apply(network(), torch.randn(2, 4))
