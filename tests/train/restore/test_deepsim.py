import math

import pytest
import torch
from torch import nn

from foveal.train.restore.deepsim import Critic, DeePSiM, deepsim_loss, relative_error
from foveal.train.restore.perceptual import FeatureNet


@pytest.fixture
def training():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DeePSiM(nn.Conv2d(3, 3, 1), FeatureNet((4, 4)), Critic(2))


def gradients(module, loss):
    found = torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], allow_unused=True)
    return [g for g in found if g is not None]


def test_the_loss_by_hand():
    out, target = torch.full((1, 1, 1, 2), 0.5), torch.tensor([[[[0.0, 1.0]]]])
    seen, wanted, logits = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.zeros(1, 1)
    words = {"seen": seen, "wanted": wanted, "logits": logits}
    loss = deepsim_loss(out, target, **words, image=2, feature=3, adversarial=5)
    assert loss.item() == pytest.approx(2 * 0.25 + 3 * 1 + 5 * math.log(2))
    assert deepsim_loss(target, target, **words, feature=0, adversarial=0).item() == 0


def test_features_count_by_their_own_size():
    x, y = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(relative_error(100 * x, 100 * y), relative_error(x, y))
    assert relative_error(x, torch.zeros_like(x)).isfinite()


def test_each_network_learns_from_its_own_loss(training):
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    whole = training(x)
    out = training.net(x)
    told = nn.functional.softplus(training.critic(out.detach())).mean()
    told = told + nn.functional.softplus(-training.critic(x)).mean()
    critic = torch.autograd.grad(whole, list(training.critic.parameters()), retain_graph=True)
    for ours, alone in zip(critic, torch.autograd.grad(told, list(training.critic.parameters())), strict=True):
        torch.testing.assert_close(ours, alone)
    seen, wanted = (training.comparator.features(y)[-1] for y in (out, x))
    made = deepsim_loss(out, x, seen=seen, wanted=wanted, logits=training.critic(out))
    net = torch.autograd.grad(whole, list(training.net.parameters()))
    for ours, alone in zip(net, torch.autograd.grad(made, list(training.net.parameters())), strict=True):
        torch.testing.assert_close(ours, alone)
    assert not any(p.requires_grad for p in training.comparator.parameters())


def test_a_critic_that_is_sure_rests(training):
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))

    class Sure(nn.Module):
        """Believes bright pictures."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1e4))

        def forward(self, pictures):
            return self.scale * (pictures.mean((1, 2, 3)) - 0.2)[:, None]

    nn.init.zeros_(training.net.weight)
    nn.init.zeros_(training.net.bias)
    training.critic = Sure()
    (gradient,) = torch.autograd.grad(training(x), [training.critic.scale])
    assert gradient == 0


def test_without_the_critic(training):
    training.weights["adversarial"] = 0.0
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    assert gradients(training.critic, training(x)) == []


def test_another_target(training):
    x, target = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    assert training(x, target) != training(x)
    assert torch.equal(training(x, x), training(x))


def test_errors():
    with pytest.raises(TypeError, match="a comparator has a method `features`, got Linear without it"):
        DeePSiM(nn.Identity(), nn.Linear(2, 2))
