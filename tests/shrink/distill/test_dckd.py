import math

import pytest
import torch
from torch import nn

from foveal.shrink.distill.dckd import DCKD, code_loss, contrastive, noised, refreshes, turned, undone
from foveal.shrink.distill.distillation import Distillation
from foveal.shrink.distill.vq import VQAutoEncoder, VQEncoder

DIMS = (4, 4)


def encoder():
    torch.manual_seed(0)
    return VQEncoder(DIMS, codes=5, code_dim=3)


def test_contrast_by_hand():
    student, teacher, first, second = (torch.full((1, 1, 1, 2), v) for v in (1.0, 2.0, 4.0, -1.0))
    # near 1, far 3 + 2; the second scale is the first one doubled, and its ratio the same
    scales = [[x, 2 * x] for x in (student, teacher, first, second)]
    found = contrastive(scales[0], scales[1], scales[2:], weights=(0.5, 1.0))
    assert found.item() == pytest.approx(1.5 / 5)


def test_contrast_draws_to_the_teacher_and_away_from_negatives():
    student = torch.zeros(1, 1, 1, 1, requires_grad=True)
    contrastive([student], [torch.ones(1, 1, 1, 1)], [[-torch.ones(1, 1, 1, 1)]], weights=(1.0,)).backward()
    assert student.grad.item() < 0


def test_codes_by_hand():
    student, teacher = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 0.0]])
    assert code_loss(student, teacher).item() == pytest.approx(-0.5 * (math.log(0.75) + math.log(0.25)))
    assert code_loss(teacher, teacher).item() == pytest.approx(math.log(2))
    assert code_loss(student + 7, teacher).item() == pytest.approx(code_loss(student, teacher).item())


@pytest.mark.parametrize("size", [1, 5])
def test_every_change_is_undone(size):
    changes = torch.cartesian_prod(*[torch.tensor([False, True])] * 4)
    x = torch.rand(16, 3, size, size, dtype=torch.float64)
    y = turned(x, changes)
    torch.testing.assert_close(undone(y, changes), x)
    assert torch.equal(y[0], x[0])
    torch.testing.assert_close(y[8], 1 - x[8])
    torch.testing.assert_close(y[7], x[7].flip(1, 2).transpose(1, 2))
    with pytest.raises(ValueError, match="pictures must be square to be transposed, got 2×3; train on patches"):
        turned(torch.rand(16, 1, 2, 3), changes)


def test_noise_is_of_a_few_levels_and_sometimes_grey():
    torch.manual_seed(0)
    x = torch.full((64, 3, 16, 16), 0.5)
    noise = noised(x) - x
    levels = noise.flatten(1).std(1) * 255
    assert 0.9 < levels.min() < 6
    assert 25 < levels.max() < 32
    grey = (noise[:, 0] == noise[:, 1]).flatten(1).all(1)
    assert 16 < int(grey.sum()) < 48
    assert noised(torch.ones(2, 3, 8, 8)).max() <= 1


def test_refreshes_become_rarer():
    done = [n for n in range(1, 25) if refreshes(n, intervals=(2, 3, 5), phase=6)]
    assert done == [2, 4, 6, 9, 12, 15, 20]
    assert [n for n in range(1, 4001) if refreshes(n)] == [1000, 2000, 3000, 4000]


class Twice(nn.Module):
    """Two times larger, with one number to learn."""

    def __init__(self, value=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(value))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        return self.factor * x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_the_history_follows_when_it_is_time():
    student = Twice(1.0)
    loss = DCKD(student, Twice(2.0), encoder(), intervals=(2,), weights=(0.0, 0.0), decay=0.25)
    batch = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 8, 8)
    module = Distillation(student, Twice(2.0), loss).train()
    values = []
    for step in range(5):
        module(batch)
        values.append(loss.history.factor.item())
        with torch.no_grad():
            student.factor.fill_(2.0 + step)
            student.seen.fill_(step)
    # after two steps the student is at 3, after four at 5
    assert values == pytest.approx([1.0, 1.0, 0.25 + 0.75 * 3, 2.5, 0.25 * 2.5 + 0.75 * 5])
    assert loss.history.seen.item() == 3
    module.eval()(batch)
    assert loss.steps == 5


def test_negatives_are_what_the_history_makes_of_the_input_and_of_noise():
    student = Twice(1.0)
    loss = DCKD(student, Twice(2.0), encoder(), count=3)
    x = torch.full((2, 3, 4, 4), 0.5)
    plain, *noisy = loss.negatives(x)
    assert len(noisy) == 3
    assert torch.equal(plain, student(x))
    assert not any(torch.equal(a, plain) for a in noisy)


def test_only_the_student_learns():
    torch.manual_seed(0)
    student, teacher, judge = Twice(0.7), Twice(0.9), encoder()
    module = Distillation(student, teacher, DCKD(student, teacher, judge)).train()
    assert [name for name, _ in module.named_parameters()] == ["student.factor"]
    module((torch.rand(2, 3, 4, 4), torch.rand(2, 3, 8, 8))).backward()
    assert student.factor.grad is not None
    assert teacher.factor.grad is None
    assert module.loss.history.factor.grad is None


def test_without_extra_terms_the_loss_is_three_absolute_errors():
    student, teacher = Twice(0.5), Twice(1.0)
    loss = DCKD(student, teacher, encoder(), weights=(0.0, 0.0)).eval()
    x, y = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 8, 8)
    views = Distillation(student, teacher, loss).views(x, y)
    # this teacher commutes with every change, so the undone picture is its picture
    wanted = (views.student - y).abs().mean() + 2 * (views.student - views.teacher).abs().mean()
    torch.testing.assert_close(loss(views), wanted)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_scales_halve_and_distances_are_those_to_the_codes(size):
    judge = encoder()
    features = judge.features(torch.rand(2, 3, *size))
    halves = tuple((side + 1) // 2 for side in size)
    assert [tuple(f.shape) for f in features] == [(2, 4, *size), (2, 4, *halves)]
    latent = judge.latent(features[-1])
    assert latent.shape == (2 * halves[0] * halves[1], 3)
    wanted = (latent[:, None] - judge.codebook).square().sum(-1)
    torch.testing.assert_close(judge.distances(latent), wanted)


def test_the_auto_encoder_decodes_nearest_codes_and_learns():
    model = VQAutoEncoder(encoder(), DIMS)
    x = torch.rand(2, 3, 8, 8)
    picture, latent, code = model.decoded(x)
    assert picture.shape == x.shape
    nearest = model.encoder.distances(latent).argmin(1)
    assert torch.equal(code, model.encoder.codebook[nearest])
    model.eval()(x).backward()
    assert all(p.grad is not None and p.grad.ne(0).any() for p in model.parameters())


def test_unused_codes_become_vectors_of_the_batch():
    model = VQAutoEncoder(encoder(), DIMS)
    far = torch.full((5, 3), 1e3)
    with torch.no_grad():
        model.encoder.codebook.copy_(far)
        model.eval().decoded(torch.rand(2, 3, 8, 8))
        assert torch.equal(model.encoder.codebook, far)
        _, latent, code = model.train().decoded(torch.rand(2, 3, 8, 8))
    rows = {tuple(row) for row in latent.tolist()}
    assert {tuple(row) for row in model.encoder.codebook.tolist()} <= rows
    assert torch.isin(code, latent).all()
    assert model.used.sum() > 0
    with torch.no_grad():
        model.used.fill_(1.0)
        kept = model.encoder.codebook.clone()
        model.decoded(torch.rand(2, 3, 8, 8))
    assert torch.equal(model.encoder.codebook, kept)
