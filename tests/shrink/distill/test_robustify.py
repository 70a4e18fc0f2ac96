import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.shrink.distill.robustify import _seen
from foveal.shrink.distill.distillation import Views, soft_targets
from foveal.shrink.distill.robustify import Robustified, certain_targets, transfer, uncertainty


def logits(rows=7, classes=5):
    generator = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return s.requires_grad_(), t, torch.arange(rows) % classes


def network():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return Robustified(trunk, nn.Sequential(nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def test_uncertainty_lies_between_certain_and_uniform():
    assert uncertainty(torch.zeros(2, 7)).tolist() == pytest.approx([1, 1])
    assert uncertainty(torch.tensor([[900.0, 0.0, 0.0]])).item() == 0
    two = uncertainty(torch.tensor([[0.0, 0.0, -900.0, -900.0]]))
    assert two.item() == pytest.approx(0.5)


@pytest.mark.parametrize(("rows", "classes"), [(7, 5), (1, 2), (3, 11)])
def test_unsure_teachers_count_less(rows, classes):
    s, t, _ = logits(rows, classes)
    plain = torch.zeros((), dtype=torch.float64)
    for i in range(rows):
        one = slice(i, i + 1)
        p = t[i].softmax(0)
        sure = 1 + (p * p.log()).sum() / torch.tensor(float(classes)).log()
        plain = plain + sure * soft_targets(s[one], t[one], temperature=2.0) / rows
    value = certain_targets(s, t, temperature=2.0)
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (value, plain)))
    assert certain_targets(s, torch.zeros_like(t)).item() == pytest.approx(0, abs=1e-12)


def test_the_loss_is_the_sum_of_its_parts():
    s, t, y = logits()
    clean = Views(s, y, 2 * s, t + s.detach())
    value = transfer(Views(s, y, s, t), clean, temperature=2.0)
    parts = certain_targets(s, t, temperature=2.0) + certain_targets(2 * s, t + s.detach(), temperature=2.0)
    torch.testing.assert_close(value, F.cross_entropy(s, y) + parts)


def test_at_first_the_network_is_the_original_one():
    model = network().eval()
    x = torch.randn(3, 3, 9, 7)
    torch.testing.assert_close(model(x), model.original(model.trunk(x)), rtol=0, atol=0)


def test_only_the_tuned_part_learns():
    model = network().train()
    assert not model.trunk.training
    assert not model.original.training
    assert model.tuned.training
    before = copy.deepcopy(model.state_dict())
    x, y = torch.randn(4, 3, 9, 7), torch.arange(4)
    clean = model.views(x, y)
    torch.testing.assert_close(clean.teacher, model.original(model.trunk(x)))
    loss = transfer(model.views(x + 1, y, torch.randn(4, 5)), clean)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"tuned.0.weight", "tuned.0.bias"}


@pytest.mark.parametrize(
    ("margin", "tuned"), [(0.0, [False] * 3), (1.0, [True, False, False]), (1.08, [True, True, False])]
)
def test_the_surer_part_answers(margin, tuned):
    model = Robustified(nn.Identity(), nn.Linear(3, 3, bias=False), margin=margin)
    model.original.weight.data = torch.eye(3)
    model.tuned.weight.data = torch.tensor([3.0, 0.8, 0.1]).diag()
    assert [bool((row != own).any()) for row, own in zip(model(torch.eye(3)), torch.eye(3), strict=True)] == tuned
    with pytest.raises(ValueError, match="margin must be at least 0, got -1; 0 is the original network"):
        Robustified(nn.Identity(), nn.Linear(2, 2), margin=-1)


def test_each_corruption_of_the_training_changes_its_quarter():
    x = torch.randn(8, 3, 16, 12)
    found = _seen(x, torch.Generator().manual_seed(0))
    assert found.shape == x.shape
    assert ((found - x).abs().mean((1, 2, 3)) > 0.05).all()
    assert torch.equal(found, _seen(x, torch.Generator().manual_seed(0)))
