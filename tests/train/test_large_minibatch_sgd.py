import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.train.large_minibatch_sgd import Block, network, rate_of
from foveal.train.large_minibatch_sgd import (
    accumulate,
    corrected_step,
    decay_groups,
    large_minibatch_rate,
    zero_last_norms_,
)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.1), (2.5, 1.65), (4.9, 3.138), (5, 3.2), (29.9, 3.2), (30, 0.32), (60, 0.032), (89, 0.0032)],
)
def test_the_papers_own_schedule(epoch, rate):
    """Batches of 8192 on workers of 256."""
    assert large_minibatch_rate(epoch, batch=8192, worker=256) == pytest.approx(rate)


def test_one_worker_has_no_warmup_and_half_the_batch_half_the_rate():
    rates = [large_minibatch_rate(t / 4, batch=32) for t in range(40)]
    assert set(rates) == {0.0125}
    assert large_minibatch_rate(7, batch=512) == 2 * large_minibatch_rate(7, batch=256) == 0.2
    assert large_minibatch_rate(0, batch=512, warmup=0) == 0.2


def test_the_ways_differ_in_their_rates():
    found = {way: [rate_of(way, t) for t in (0, 1, 2)] for way in ("small", "large", "unscaled")}
    assert found == {
        "small": [0.00625] * 3,
        "large": pytest.approx([0.00625, 0.053125, 0.1]),
        "unscaled": [0.00625] * 3,
    }


@pytest.mark.parametrize("worker", [1, 3, 7, 32])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.Identity])
def test_gradients_of_parts_are_those_of_the_batch(worker, norm):
    torch.manual_seed(0)
    model, x, labels = nn.Sequential(nn.Linear(5, 4), norm(4), nn.Linear(4, 3)), torch.randn(7, 5), torch.arange(7) % 3
    whole = F.cross_entropy(model(x), labels)
    wanted = torch.autograd.grad(whole, list(model.parameters()))
    torch.testing.assert_close(accumulate(model, F.cross_entropy, x, labels, worker=worker), whole.detach())
    for p, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    accumulate(model, F.cross_entropy, x, labels, worker=worker)
    torch.testing.assert_close(model[0].weight.grad, 2 * wanted[0])


def test_batch_norms_see_a_worker():
    torch.manual_seed(0)
    model, x = nn.BatchNorm1d(3), torch.randn(8, 3)
    seen = []
    accumulate(model, lambda out, _: (seen.append(out.detach()), out.sum())[1], x, x, worker=4)
    torch.testing.assert_close(
        torch.cat(seen), torch.cat([F.batch_norm(h, None, None, training=True) for h in x.split(4)])
    )


def test_norms_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), nn.GroupNorm(2, 4))
    model[2].requires_grad_(requires_grad=False)
    decaying, others = decay_groups(model, weight_decay=0.3)
    assert decaying["weight_decay"] == 0.3
    assert {id(p) for p in decaying["params"]} == {id(p) for p in model[0].parameters()}
    assert others["weight_decay"] == 0
    assert {id(p) for p in others["params"]} == {id(p) for i in (1, 3) for p in model[i].parameters()}
    assert len(decay_groups(nn.Linear(2, 2))) == 1
    optimizer = torch.optim.SGD([decaying, others], 1.0)
    before = model[1].weight.detach().clone(), model[0].weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(model[1].weight, before[0])
    torch.testing.assert_close(model[0].weight, 0.7 * before[1])


def test_blocks_start_as_their_shortcuts():
    torch.manual_seed(0)
    block, x = Block(3, 4), torch.randn(2, 3, 6, 5)
    assert not torch.allclose(block(x), F.relu(block.shortcut(x)))
    assert zero_last_norms_(block) is block
    torch.testing.assert_close(block(x), F.relu(block.shortcut(x)))
    assert block.bn1.weight.eq(1).all()
    zeroed = [name for name, p in network().named_parameters() if not p.any() and name.endswith("weight")]
    assert zeroed == ["1.bn2.weight", "2.bn2.weight"]


def test_the_corrected_form_is_pytorchs():
    generator = torch.Generator().manual_seed(0)
    rates, gradients = (0.1, 0.3, 0.3, 0.05), torch.randn(4, 7, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(torch.ones(7, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], 1.0, momentum=0.8)
    w, u, before = weight.detach().clone(), torch.zeros(7, dtype=torch.float64), rates[0]
    uncorrected = w, u
    for lr, weight.grad in zip(rates, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        w, u = corrected_step(w, weight.grad, u, lr=lr, before=before, momentum=0.8)
        uncorrected = corrected_step(uncorrected[0], weight.grad, uncorrected[1], lr=lr, before=lr, momentum=0.8)
        before = lr
    torch.testing.assert_close(w, weight.detach())
    assert not torch.allclose(uncorrected[0], weight.detach())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: large_minibatch_rate(0, batch=16), r"worker must be in 1…16, the batch, got 32"),
        (lambda: large_minibatch_rate(-1, batch=32), "epoch and warmup must be at least 0, got -1 and 5.0"),
        (lambda: large_minibatch_rate(1, batch=32, warmup=-2), "epoch and warmup must be at least 0, got 1 and -2"),
        (
            lambda: accumulate(nn.Identity(), F.mse_loss, torch.ones(0, 1), torch.ones(0, 1)),
            "inputs and worker must have at least 1 picture, got 0 and 32",
        ),
        (
            lambda: accumulate(nn.Identity(), F.mse_loss, torch.ones(2, 1), torch.ones(2, 1), worker=0),
            "inputs and worker must have at least 1 picture, got 2 and 0",
        ),
        (
            lambda: zero_last_norms_(nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))),
            "model must have residual blocks with two norms or more, got none in Sequential",
        ),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
