from functools import partial

import pytest
import torch
from torch import nn

from foveal.evidence.train.sam_on import WAYS, Block, Masked, PlainSAM, network, optimizer_of
from foveal.train.sam_on import SAMON, norm_parameters, perturbations


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def reference(weights, gradients, *, rho, adaptive=None, infinite=False, eta=0.01):
    """The formulas with one vector of all weights."""
    w, g = (torch.cat([t.flatten() for t in each]) for each in (weights, gradients))
    whole = torch.cat([w_l.norm().expand(w_l.numel()) for w_l in weights])
    stretch = {None: torch.ones_like(w), "elementwise": w.abs() + eta, "layerwise": whole + eta}[adaptive]
    if infinite:
        return rho * stretch * g.sign()
    return rho * stretch**2 * g / (stretch * g).norm()


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("adaptive", [None, "elementwise", "layerwise"])
def test_it_is_the_formula(adaptive, infinite):
    weights, gradients = drawn((3, 5), (7,), ()), drawn((3, 5), (7,), (), (3, 5), (7,), ())[3:]
    words = {"rho": 0.3, "adaptive": adaptive, "infinite": infinite, "eta": 0.1}
    found = torch.cat([e.flatten() for e in perturbations(weights, gradients, **words)])
    torch.testing.assert_close(found, reference(weights, gradients, **words))


def test_by_hand():
    w, g = [torch.tensor([1.0, -3.0])], [torch.tensor([3.0, 4.0])]
    (epsilon,) = perturbations(w, g, rho=0.5)
    torch.testing.assert_close(epsilon, torch.tensor([0.3, 0.4]))
    (epsilon,) = perturbations(w, g, rho=0.5, adaptive="elementwise", infinite=True, eta=0)
    torch.testing.assert_close(epsilon, torch.tensor([0.5, 1.5]))
    (epsilon,) = perturbations(w, g, rho=0.5, adaptive="elementwise", eta=0)
    torch.testing.assert_close(epsilon, 0.5 * torch.tensor([3.0, 36.0]) / 153**0.5)


def test_no_gradient_moves_nothing():
    assert list(perturbations([], [], rho=1.0)) == []
    (epsilon,) = perturbations([torch.ones(3)], [torch.zeros(3)], rho=1.0)
    assert epsilon.eq(0).all()


def test_norms_are_found_once():
    shared = nn.GroupNorm(1, 4)
    frozen = nn.BatchNorm2d(4).requires_grad_(requires_grad=False)
    parts = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), shared, nn.Sequential(shared, nn.LayerNorm(4)), frozen]
    model = nn.Sequential(*parts, nn.InstanceNorm2d(4), nn.RMSNorm(4))
    names = {p: name for name, p in model.named_parameters()}
    found = [names[p] for p in norm_parameters(model)]
    assert found == ["1.weight", "1.bias", "2.weight", "2.bias", "3.1.weight", "3.1.bias", "6.weight"]
    assert len(norm_parameters(model, types=(nn.RMSNorm,))) == 1


def trained(optimizer, steps=3):
    torch.manual_seed(0)
    model, x = Block(3, 4).double(), torch.randn(5, 3, 7, 9, dtype=torch.float64)
    used = optimizer(model)

    def closure():
        used.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return float(loss.detach())

    losses = [used.step(closure) for _ in range(steps)]
    return nn.utils.parameters_to_vector(model.parameters()).detach(), losses, used


def base(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)


def test_nothing_uphill_is_the_base_optimiser():
    plain, losses, _ = trained(base)
    ours, same, _ = trained(lambda model: SAMON(base(model), norm_parameters(model), rho=0))
    assert torch.equal(ours, plain)
    assert losses == same
    moved, _, _ = trained(lambda model: SAMON(base(model), norm_parameters(model), rho=0.1))
    assert not torch.allclose(moved, plain)


def test_all_parameters_are_sam():
    plain, _, _ = trained(lambda model: PlainSAM(model, 0.1))
    ours, _, _ = trained(lambda model: SAMON(base(model), model.parameters(), rho=0.1))
    torch.testing.assert_close(ours, plain)
    norms, _, _ = trained(lambda model: SAMON(base(model), norm_parameters(model), rho=0.1))
    assert not torch.allclose(norms, plain)


def test_only_norms_move_and_they_come_back():
    torch.manual_seed(0)
    model = Block(3, 4)
    optimizer = SAMON(base(model), norm_parameters(model), rho=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(2, 3, 4, 4)).square().mean().backward()
    saved = optimizer.ascend()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"}
    far = torch.cat([p.detach() - was for p, was in saved])
    torch.testing.assert_close(far.norm(), torch.tensor(0.5))
    assert sum(was.nbytes for _, was in saved) == 4 * 4 * 4
    optimizer.descend(saved)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_an_error_uphill_leaves_the_weights():
    model = nn.LayerNorm(3)
    optimizer = SAMON(torch.optim.SGD(model.parameters(), 0.1), model.parameters())
    calls = []

    def closure():
        if calls:
            raise RuntimeError("stop")
        calls.append(1)
        model(torch.arange(3.0)).square().sum().backward()

    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step(closure)
    assert model.weight.eq(1).all()
    assert model.bias.eq(0).all()


def test_groups_and_state_are_the_base_optimisers():
    _, _, used = trained(lambda model: SAMON(base(model), norm_parameters(model)))
    used.param_groups[0]["lr"] /= 2
    assert used.base.param_groups[0]["lr"] == 0.05
    state = used.state_dict()
    assert len(state["state"]) == 7
    _, _, other = trained(lambda model: SAMON(base(model), norm_parameters(model)), steps=1)
    other.load_state_dict(state)
    assert other.param_groups is other.base.param_groups
    assert other.param_groups[0]["lr"] == 0.05
    assert other.state is other.base.state


def test_as_many_random_weights_move():
    torch.manual_seed(0)
    model = network()
    optimizer = optimizer_of("random", model)
    assert isinstance(optimizer, Masked)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.ascend()
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert moved.ne(0).sum() == sum(p.numel() for p in norm_parameters(model))
    torch.testing.assert_close(moved.norm(), torch.tensor(WAYS["random"]), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"rho": -1}, "rho must be at least 0, got -1"),
        ({"rho": float("nan")}, "rho must be at least 0, got nan"),
        ({"eta": -0.5}, "eta must be at least 0, got -0.5"),
        ({"adaptive": "filter"}, "adaptive must be None, 'elementwise' or 'layerwise', got 'filter'"),
        ({"perturbed": [torch.ones(2)]}, "parameters that base trains, got 1 of which 1 are not; norm_parameters"),
        ({"perturbed": []}, "parameters that base trains, got 0 of which 0 are not"),
    ],
)
def test_what_it_refuses(words, text):
    model = nn.LayerNorm(3)
    make = partial(SAMON, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match=text):
        make(**{"perturbed": model.parameters(), **words})


def test_no_norms_and_no_closure():
    with pytest.raises(ValueError, match="model must have norms with scales to train, got none in Linear; give types"):
        norm_parameters(nn.Linear(2, 2))
    model = nn.LayerNorm(3)
    with pytest.raises(TypeError, match="step needs a closure that zeroes gradients, goes backward and returns"):
        SAMON(torch.optim.SGD(model.parameters(), 0.1), model.parameters()).step()
