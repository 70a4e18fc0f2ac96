import math

import pytest
import torch
import torch.nn.functional as F

from foveal.shrink.distill.adaptconf import adaptconf, augconf, confidence, ramp, weak_to_strong
from foveal.shrink.distill.distillation import Views, soft_targets


def logits(rows=7, classes=5):
    generator = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return s.requires_grad_(), t, torch.arange(rows) % classes


def test_confidence_by_hand():
    s = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    t = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    alpha = confidence(s, t)
    assert alpha.tolist() == pytest.approx([0.5, 1 / (1 + math.exp(2)), 1 / (1 + math.exp(4))])
    assert confidence(s, t, threshold=2.0)[2].item() == pytest.approx(1 / (1 + math.e))


@pytest.mark.parametrize("threshold", [0.5, 1.3])
@pytest.mark.parametrize(("rows", "classes"), [(7, 5), (1, 2), (13, 11)])
def test_confidence_is_the_ratio_of_the_paper(threshold, rows, classes):
    s, t, _ = logits(rows, classes)
    own, theirs = (F.cross_entropy(s, x.argmax(1), reduction="none").div(threshold).exp() for x in (s, t))
    alpha = confidence(s, t, threshold=threshold)
    torch.testing.assert_close(alpha, (own / (own + theirs)).detach())
    assert not alpha.requires_grad
    assert (alpha[s.argmax(1) == t.argmax(1)] == 0.5).all()


def test_confidence_does_not_overflow():
    s = torch.tensor([[1e4, 0.0]])
    assert confidence(s, torch.tensor([[0.0, 1.0]])).item() == 0
    assert confidence(s, torch.tensor([[1.0, 0.0]])).item() == 0.5


def test_the_ends_are_distillation_and_self_training():
    s, t, _ = logits()
    torch.testing.assert_close(weak_to_strong(s, t, 0.0, temperature=4.0), soft_targets(s, t))
    torch.testing.assert_close(weak_to_strong(s, t, torch.ones(7)), F.cross_entropy(s, s.argmax(1)))


def test_the_loss_is_the_sum_of_its_parts_with_their_gradients():
    s, t, y = logits()
    alpha = confidence(s, t)
    plain = F.cross_entropy(s, y)
    for i in range(7):
        one = slice(i, i + 1)
        own = F.cross_entropy(s[one], s[one].argmax(1))
        plain = plain + 3 / 7 * ((1 - alpha[i]) * soft_targets(s[one], t[one], temperature=2.0) + alpha[i] * own)
    value = adaptconf(Views(s, y, s, t), temperature=2.0, weight=3.0)
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (value, plain)))


def test_augconf_takes_one_weight_that_grows():
    s, t, y = logits()
    value = augconf(Views(s, y, s, t), alpha=0.2, weight=2.0)
    torch.testing.assert_close(value, F.cross_entropy(s, y) + 2 * weak_to_strong(s, t, 0.2))
    assert [ramp(share) for share in (0.0, 0.15, 0.3, 1.0)] == pytest.approx([0, 0.25, 0.5, 0.5])
    assert ramp(0.25, rate=0.5, most=1.0) == 0.5


def test_a_threshold_of_zero_raises():
    with pytest.raises(ValueError, match="threshold must be above 0, got 0; the paper takes"):
        confidence(torch.ones(1, 2), torch.ones(1, 2), threshold=0)
