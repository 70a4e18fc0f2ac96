import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.shrink.distill.vanilla_kd import Gap, _augmented, small_data_pitfall
from foveal.shrink.distill.distillation import Distillation, Views, soft_targets
from foveal.shrink.distill.vanilla_kd import correlation, decoupled, dist, dkd, relations, rkd, vanilla_kd


def logits(rows=7, classes=5):
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return s.requires_grad_(), t, torch.arange(rows) % classes


def gradient(value, x):
    return torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("rows", "classes"), [(7, 5), (1, 2), (3, 11)])
def test_the_two_parts_of_dkd_add_up_to_kd(temperature, rows, classes):
    """KD weighs the part among the others by 1 - q_y (DKD, equation 6)."""
    s, t, y = logits(rows, classes)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(rows):
        q = (t[i] / temperature).softmax(0)[y[i]]
        one = slice(i, i + 1)
        total = total + decoupled(s[one], t[one], y[one], beta=float(1 - q), temperature=temperature) / rows
    whole = soft_targets(s, t, temperature=temperature)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(gradient(total, s), gradient(whole, s))


def test_dkd_is_exact_where_the_true_class_is_certain():
    s = torch.tensor([[400.0, 0.0, 1.0]], requires_grad=True)
    value = decoupled(s, torch.tensor([[500.0, 1.0, 0.0]]), torch.tensor([0]), temperature=1.0)
    p = torch.tensor([0.0, 1.0]).softmax(0)
    assert value.item() == pytest.approx(2 * float((p.flip(0) * (p.flip(0) / p).log()).sum()), rel=1e-5)
    assert gradient(value, s).isfinite().all()


def test_dist_sees_only_correlation():
    s, t, _ = logits()
    p, q = s.softmax(1), t.softmax(1)
    rows = torch.stack([torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p, q, strict=True)])
    columns = torch.stack([torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    for beta, gamma in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0)):
        plain = beta * (1 - rows.mean()) + gamma * (1 - columns.mean())
        value = correlation(s, t, beta=beta, gamma=gamma, temperature=1.0)
        torch.testing.assert_close(value, plain)
        torch.testing.assert_close(gradient(value, s), torch.autograd.grad(plain, s, retain_graph=True)[0])
    assert correlation(s, s).item() == pytest.approx(0, abs=1e-12)


def test_relations_are_plain_distances_and_angles():
    s, t, _ = logits(4, 3)

    def parts(f):
        far = torch.stack([torch.stack([(a - b).norm() for b in f]) for a in f])
        angles = [
            (f[j] - f[i]) @ (f[k] - f[i]) / (far[i, j] * far[i, k]) if i not in (j, k) else f.new_zeros(())
            for i in range(len(f))
            for j in range(len(f))
            for k in range(len(f))
        ]
        return far / (far.sum() / 12), torch.stack(angles)

    (far, angles), (their_far, their_angles) = parts(s), parts(t)
    plain = 25 * F.smooth_l1_loss(far, their_far) + 50 * F.smooth_l1_loss(angles, their_angles)
    value = relations(s, t)
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(gradient(value, s), gradient(plain, s))


def test_relations_do_not_change_with_place_turn_and_size():
    s, t, _ = logits()
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    torch.testing.assert_close(relations(3 * s @ turn + 2, t), relations(s, t))
    assert relations(3 * s @ turn + 2, s).item() == pytest.approx(0, abs=1e-12)
    same = torch.ones(3, 2, requires_grad=True)
    assert gradient(relations(same, t[:3]), same).isfinite().all()


def test_losses_of_views_add_the_labels():
    s, t, y = logits()
    hard = F.cross_entropy(s, y)
    maps, tokens = s[..., None, None].expand(-1, -1, 2, 3), t
    views = Views(s, y, s, t, (s[:, :1], maps), (tokens,))
    torch.testing.assert_close(vanilla_kd(views, weight=0.5), hard + 0.5 * soft_targets(s, t))
    torch.testing.assert_close(dkd(views, beta=3.0), hard + decoupled(s, t, y, beta=3.0))
    torch.testing.assert_close(dist(views, gamma=3.0), hard + correlation(s, t, gamma=3.0))
    torch.testing.assert_close(rkd(views, angle=3.0), hard + relations(s, t, angle=3.0))


def test_networks_learn_from_relations():
    student, teacher = (nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten(), nn.LazyLinear(4)) for width in (2, 5))
    x = torch.randn(3, 3, 5, 6)
    teacher(x), student(x)
    distillation = Distillation(student, teacher, rkd, student_taps=["0"], teacher_taps=["0"])
    distillation((x, torch.tensor([0, 3, 1]))).backward()
    assert all(p.grad is not None for p in student.parameters())


def test_what_cannot_be_compared_raises():
    s, t, y = logits()
    with pytest.raises(ValueError, match="relations need a batch of at least 2 pictures, got 1; drop the last batch"):
        relations(s[:1], t[:1])
    with pytest.raises(ValueError, match="the student has no taps; name the last stage in student_taps"):
        rkd(Views(s, y, s, t, (), (t,)))
    with pytest.raises(ValueError, match="the teacher has no taps; name the last stage in teacher_taps"):
        rkd(Views(s, y, s, t, (s,), ()))


def test_augmentation_grows_with_its_strength():
    x = torch.rand(9, 3, 16, 16) + 1

    def change(strength):
        return (_augmented(x, strength, torch.Generator().manual_seed(0)) - x).abs().mean()

    assert _augmented(x, 0.0, torch.Generator()) is x
    assert 0 < change(0.3) < change(1.0)
    hidden = (_augmented(x, 1.0, torch.Generator().manual_seed(0)) == 0).all(1)
    assert (hidden.sum((1, 2)) == 36).all()


def test_the_study_has_a_line_for_each_loss_and_cell():
    with rehearsal():
        lines = small_data_pitfall(((1.0, 1.0),), (3,))
    assert [line.loss for line in lines] == ["DKD", "DIST", "RKD"]
    assert str(Gap("DKD", 0.1, 0.5, (1.0, 2.0))) == "DKD    10 % of the data, augmentation 0.5: +1.50 ± 0.71 points"
