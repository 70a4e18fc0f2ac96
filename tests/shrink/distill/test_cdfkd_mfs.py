import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.distill.cdfkd_mfs import (
    Generator,
    MultiHead,
    distil_without_data,
    generator_loss,
    observed,
    statistics,
    student_loss,
)


def teacher(seed=0):
    torch.manual_seed(seed)
    body = nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(4, 3)).eval()


def student(heads=2):
    torch.manual_seed(3)
    stages = [nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)]
    return MultiHead(stages, (4, 6), (2, 2), num_teachers=heads, num_features=4, num_classes=3)


def test_the_student_s_loss_by_hand():
    logits = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]], requires_grad=True)
    taught = torch.tensor([[[0.0, 2.0]], [[1.0, 1.0]]], requires_grad=True)
    features, aim = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]]), torch.tensor([[[0.0, 3.0]], [[0.0, 1.0]]])
    # |s − t|: 1, 0, 2, 1; |f − g| summed: 3 and 1; means of the heads (2, 1) and (0.5, 1.5)
    loss = student_loss(logits, taught, features, aim)
    assert loss.item() == pytest.approx(1.0 + 0.2 * 2.0 + 5 * 1.0)
    loss.backward()
    assert taught.grad is None
    assert logits.grad.ne(0).any()


def test_statistics_by_hand():
    norm = nn.BatchNorm2d(1)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(0.5)
    x = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(2, 1, 1, 2)  # mean 3, variance 5
    assert statistics(x, norm).item() == pytest.approx(2.0 + 4.5)
    inputs = torch.randn(6, 3, 4, 4)
    fitted = nn.BatchNorm2d(3, momentum=None)
    fitted(inputs)
    shift = fitted.running_var * (1 - 95 / 96)  # BatchNorm keeps the unbiased variance
    assert statistics(inputs, fitted).item() == pytest.approx(shift.norm().item(), abs=1e-5)


def test_the_generator_s_loss_by_hand():
    logits, taught = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]])
    loss = generator_loss(logits, taught, torch.tensor([[1.0, 2.0, 3.0]]))
    assert loss.item() == pytest.approx(0.1 * (5 + 2 + 3) - 2.0)
    more = generator_loss(logits * 2, taught, torch.tensor([[1.0, 2.0, 3.0]]))
    assert more < loss  # the further apart, the better for it


def test_pictures_have_zero_mean_and_unit_variance():
    torch.manual_seed(0)
    made = Generator(12, channels=2, latent=5, dim=4)(torch.randn(7, 5))
    assert made.shape == (7, 2, 12, 12)
    torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.var((0, 2, 3), correction=0), torch.ones(2), atol=1e-2, rtol=0)


def test_heads_share_the_trunk_and_read_each_of_its_levels():
    net, x = student().eval(), torch.rand(5, 1, 8, 8)
    logits, features = net.heads(x)
    assert (logits.shape, features.shape) == ((2, 5, 3), (2, 5, 4))
    torch.testing.assert_close(net(x), (logits[0] + logits[1]) / 2)
    u1 = net.stages[0](x)
    u2 = net.stages[1](u1)
    y = net.encoders[1][1](torch.cat((u2, net.encoders[1][0](u1)), 1)).mean((2, 3))
    torch.testing.assert_close(net.classifiers[1](y), logits[1])
    net.heads(x)[0][0].sum().backward()
    assert all(p.grad is not None for p in net.stages.parameters())
    assert all(not p.grad.any() for p in net.encoders[1].parameters())


def test_what_a_teacher_computes_is_observed():
    net, x = teacher(), torch.rand(5, 1, 8, 8)
    with observed(net) as found:
        logits = net(x)
    torch.testing.assert_close(net[5](found["features"]), logits)
    torch.testing.assert_close(found["distances"], [statistics(net[0](x), net[1])])
    assert not net[1]._forward_pre_hooks
    with pytest.raises(ValueError, match="a teacher needs BatchNorm2d layers and ends in a Linear, got Linear with 0"):
        observed(nn.Linear(2, 2)).__enter__()


def test_teachers_are_left_as_they_were_and_no_data_is_asked_for():
    teachers = [teacher(0), teacher(1).train()]
    before = copy.deepcopy([net.state_dict() for net in teachers])
    net, generator = student(), Generator(8, channels=1, latent=4, dim=4)
    made = copy.deepcopy(generator.state_dict())
    distil_without_data(teachers, net, generator, steps=2, batch=4, student_steps=2)
    for known, model in zip(before, teachers, strict=True):
        assert all(torch.equal(x, known[name]) for name, x in model.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert [net.training for net in teachers] == [False, True]
    assert not net.training
    assert any(not torch.equal(x, made[name]) for name, x in generator.named_parameters())
    assert set(inspect.signature(distil_without_data).parameters).isdisjoint({"data", "dataset", "inputs", "batches"})


def test_a_student_comes_closer_to_its_teachers():
    teachers, generator = [teacher(0), teacher(1)], Generator(8, channels=1, latent=4, dim=4)
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def apart(net):
        with torch.no_grad():
            return F.l1_loss(net.eval().heads(x)[0], torch.stack([t(x) for t in teachers])).item()

    net = student()
    distil_without_data(teachers, net, generator, steps=1, batch=16, lr=0.0)  # statistics of the student's own norms
    first = apart(net)
    assert apart(distil_without_data(teachers, net, generator, steps=8, batch=8, lr=0.05)) < 0.8 * first


def test_wrong_numbers_raise():
    with pytest.raises(ValueError, match="img_size must be a multiple of 4, got 10"):
        Generator(10)
    with pytest.raises(ValueError, match="a head is needed for each teacher, got 1 and 2 heads"):
        distil_without_data([teacher()], student(2), Generator(8, channels=1, latent=4, dim=4))
