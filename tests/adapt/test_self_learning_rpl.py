import pytest
import torch
import torch.nn.functional as F
from torch import nn

import foveal
from foveal.adapt import AdaptError
from foveal.adapt.adapt import score
from foveal.adapt.methods import Pictures
from foveal.adapt.self_learning_rpl import LOSSES, generalised_cross_entropy, self_learning_loss, self_learning_rpl


def logits(seed=0):
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.8, 1.0])
def test_generalised_cross_entropy_by_its_formula(q):
    z, y = logits().requires_grad_(), torch.arange(7) % 5
    p = z.softmax(-1)[torch.arange(7), y]
    wanted = ((1 - p**q) / q).mean() if q else -p.log().mean()
    found = generalised_cross_entropy(z, y, q=q)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in (found, wanted)))


def test_a_wrong_label_of_low_probability_pulls_less():
    z = torch.tensor([[4.0, 0.0]], dtype=torch.float64, requires_grad=True)
    wrong = torch.tensor([1])
    hard, robust = (torch.autograd.grad(generalised_cross_entropy(z, wrong, q=q), z)[0].abs().max() for q in (0.0, 0.8))
    torch.testing.assert_close(robust / hard, z.detach().softmax(-1)[0, 1] ** 0.8)


def test_the_losses_of_own_answers():
    z = logits()
    answers, p = z.argmax(-1), z.softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    wanted = {
        "robust": generalised_cross_entropy(z, answers, q=0.8),
        "hard": F.cross_entropy(z, answers),
        "soft": entropy,
        "entropy": entropy,
    }
    for kind in LOSSES:
        torch.testing.assert_close(self_learning_loss(z, kind=kind), wanted[kind])
    soft, sharp = (
        torch.autograd.grad(self_learning_loss(x, kind=kind), x)[0]
        for kind in ("soft", "entropy")
        for x in [logits().requires_grad_()]
    )
    assert soft.abs().max() < 1e-12  # its own answer is the best one
    assert sharp.abs().max() > 1e-3


def test_shifted_inputs_are_classified_again():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (400,), generator=generator)
    x = torch.randn(400, 2, generator=generator) * 0.5 + 2 * (2 * y - 1)[:, None]
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-2.0, -2.0], [2.0, 2.0]]))
        model[1].bias.zero_()
    moved = x + 5
    assert score(model, x, y) > 99
    assert score(model, moved, y) < 70
    found = foveal.adapt(model, moved, method="rpl", steps=5)
    assert set(found.delta.changes) == {"0.weight", "0.bias", "0.running_mean", "0.running_var"}
    found.delta.fold_(model)
    assert score(model, moved, y) > 99


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: generalised_cross_entropy(logits(), torch.zeros(7).long(), q=1.5), r"q must be in \[0, 1\], got 1.5"),
        (lambda: self_learning_loss(logits(), kind="magic"), "kind must be one of robust, hard, soft, entropy"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_a_model_without_norms():
    with pytest.raises(AdaptError, match="Linear has no norm with scales and shifts"):
        self_learning_rpl(nn.Linear(2, 2), Pictures(torch.zeros(4, 2)))
