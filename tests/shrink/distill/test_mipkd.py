import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.distill.distillation import Distillation, Views
from foveal.shrink.distill.mipkd import FeaturePriorMixer, MiPKD, mix, routed


class Net(nn.Module):
    """Blocks between a first and a last layer."""

    def __init__(self, dim, depth):
        super().__init__()
        self.head, self.tail = nn.Conv2d(1, dim, 3, padding=1), nn.Conv2d(dim, 1, 3, padding=1)
        self.body = nn.Sequential(*(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(depth)))

    def forward(self, x):
        return self.tail(self.body(self.head(x)).relu())


STAGES = ((("body.0",), ("body.0", "body.1")), (("body.1",), ("body.2",)))


def networks():
    torch.manual_seed(0)
    return Net(2, 2), Net(3, 3).eval()


def distillation(**words):
    student, teacher = networks()
    loss = MiPKD(student, teacher, stages=STAGES, dims=(2, 3), **words)
    return Distillation(
        student, teacher, loss, student_taps=["body.0", "body.1"], teacher_taps=["body.1", "body.2"]
    ).train()


def test_the_mask_chooses():
    mask = torch.tensor([[True, False], [False, True]])
    found = mix(torch.ones(2, 2), torch.zeros(2, 2), mask)
    assert found.tolist() == mask.float().tolist()


@pytest.mark.parametrize("size", [(1, 1), (7, 5)])
def test_a_mixer_is_its_formula(size):
    torch.manual_seed(0)
    mixer = FeaturePriorMixer(2, 3, latent=4)
    student, teacher = torch.randn(2, 2, *size, requires_grad=True), torch.randn(2, 3, *size, requires_grad=True)
    mask = torch.rand(2, 4, *size) < 0.5
    mixed, copied = mixer(student, teacher, mask)
    ours, theirs = mixer.encode_student(student), mixer.encode_teacher(teacher)
    latent = mask * theirs + ~mask * ours
    torch.testing.assert_close(mixed, (mixer.decode(latent) - teacher).abs().mean())
    torch.testing.assert_close(copied, (mixer.decode(theirs) - teacher).abs().mean())
    (mixed + copied).backward()
    assert teacher.grad is None
    assert student.grad is not None
    every, none = (mixer(student, teacher, torch.full_like(mask, taken))[0] for taken in (True, False))
    torch.testing.assert_close(every, copied)
    torch.testing.assert_close(none, (mixer.decode(ours) - teacher).abs().mean())


def test_masks_are_drawn_anew_about_half_and_half():
    torch.manual_seed(0)
    mixer = FeaturePriorMixer(1, 1)
    for conv, value in ((mixer.encode_student, 0.0), (mixer.encode_teacher, 1.0)):
        nn.init.zeros_(conv.weight)
        nn.init.constant_(conv.bias, value)
    with torch.no_grad():
        mixer.decode.weight.zero_()[0, 0, 1, 1] = 1.0
        mixer.decode.bias.zero_()
        # decoded features are the mask itself; the error against zeros is its share of ones
        first, second = (mixer(torch.zeros(1, 1, 40, 40), torch.zeros(1, 1, 40, 40))[0].item() for _ in range(2))
    assert first == pytest.approx(0.5, abs=0.05)
    assert first != second


@pytest.mark.parametrize("route", [(False, False), (True, False), (False, True), (True, True)])
def test_a_path_takes_the_stages_that_it_is_told_to(route):
    student, teacher = networks()
    mixers = [FeaturePriorMixer(2, 3) for _ in STAGES]
    x = torch.rand(2, 1, 5, 6)
    found = routed(teacher, x, student=student, stages=STAGES, mixers=mixers, route=route)
    h = teacher.head(x)
    for taken, mixer, ours, theirs in zip(route, mixers, (0, 1), ((0, 1), (2,)), strict=True):
        if taken:
            h = mixer.decode(mixer.encode_student(student.body[ours](mixer.project(h))))
        else:
            for index in theirs:
                h = teacher.body[index](h)
    torch.testing.assert_close(found, teacher.tail(h.relu()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())
    if any(route):
        found.sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    reached = [student.body[k].weight.grad is not None for k in range(2)]
    assert reached == list(route)


def test_the_loss_is_the_weighted_sum_of_its_terms(monkeypatch):
    batch = torch.rand(2, 1, 5, 6), torch.rand(2, 1, 5, 6)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.zeros(2))  # both stages are the student's
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)  # all latent values are the teacher's
    values = [distillation(weights=w)(batch).item() for w in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 2, 3))]
    module = distillation()
    views = module.views(*batch)
    assert values[0] == pytest.approx(F.l1_loss(views.student, views.targets).item())
    assert values[1] - values[0] == pytest.approx(F.l1_loss(views.student, views.teacher).item(), rel=1e-4)
    assert min(values[2], values[3]) > values[0]
    steps = [value - values[0] for value in values[1:4]]
    assert values[4] - values[0] == pytest.approx(steps[0] + 2 * steps[1] + 3 * steps[2], rel=1e-4)


def test_student_and_mixers_learn_and_the_teacher_does_not():
    torch.manual_seed(1)
    module = distillation()
    for _ in range(8):  # until every stage was taken
        module((torch.rand(2, 1, 5, 6), torch.rand(2, 1, 5, 6))).backward()
    assert all(p.grad is not None for p in module.parameters())
    assert all(p.grad is None for p in module.teacher.parameters())
    assert set(module.student.state_dict()) == set(Net(2, 2).state_dict())


def test_errors():
    student, teacher = networks()
    with pytest.raises(ValueError, match="MiPKD needs one stage or more, got none; name the modules of each"):
        MiPKD(student, teacher, stages=(), dims=(2, 3))
    loss = MiPKD(student, teacher, stages=STAGES, dims=(2, 3))
    x = torch.rand(1, 1, 5, 6)
    with pytest.raises(ValueError, match=r"MiPKD needs one tap for each of its 2 stages, got \(0, 0\)"):
        loss(Views(x, x, x, x))
