import pytest
import torch
import torch.nn.functional as F

from foveal.models.sequence.broad_mamba import BroadHead, BroadMamba, bidirectional_scan, guided_weights, ridge
from foveal.ops.selective_scan.reference import selective_scan_reference


def scan_inputs(batch, dim, states, length):
    torch.manual_seed(0)
    u, delta = torch.randn(batch, dim, length), torch.rand(batch, 2, dim, length) + 0.1
    weights_in, weights_out = torch.randn(2, batch, 2, states, length)
    return u, delta, -torch.rand(2, dim, states), weights_in, weights_out, torch.randn(2, dim)


@pytest.mark.parametrize("length", [1, 7, 63])
def test_the_scan_is_the_sum_of_two_recurrences(length):
    inputs = [x.requires_grad_() for x in scan_inputs(2, 3, 4, length)]
    u, delta, rates, weights_in, weights_out, skip = inputs
    wanted = torch.zeros_like(u)
    for way in range(2):
        turn = (lambda x: x.flip(-1)) if way else (lambda x: x)
        given = (turn(x) for x in (u, delta[:, way]))
        weights = (turn(x[:, way, None]) for x in (weights_in, weights_out))
        wanted = wanted + turn(selective_scan_reference(*given, rates[way], *weights, skip[way])[0])
    found = bidirectional_scan(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    ours, theirs = (torch.autograd.grad(y.square().sum(), inputs) for y in (found, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_the_surer_view_weighs_more():
    logits = torch.zeros(2, 1, 2, 3)
    logits[0, 0, :, 1] = torch.tensor([3.0, 1.0]).log()  # ¾ against ½
    logits[1, 0, :, 2] = torch.tensor([1.0, 9.0]).log()  # ½ against 9⁄10
    weights = guided_weights(logits)
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([0.5, 0.6, 0.5 / 1.4]))
    torch.testing.assert_close(weights.sum(0), torch.ones(1, 1, 3))


def test_ridge_is_least_squares_with_a_penalty():
    torch.manual_seed(0)
    nodes, targets = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    # the penalty as five more rows
    longer = torch.cat((nodes, 2 * torch.eye(5, dtype=torch.float64)))
    wanted = torch.linalg.lstsq(longer, torch.cat((targets, targets.new_zeros(5, 2)))).solution
    torch.testing.assert_close(ridge(nodes, targets, 4.0), wanted)


def test_a_broad_head_learns_what_a_linear_one_cannot():
    torch.manual_seed(0)
    features = torch.rand(20, 2, 30) * 2 - 1
    labels = (features[:, 0] * features[:, 1] > 0).long()
    head = BroadHead(2, 2, penalty=1e-3)
    assert head.fit_(features, labels) is head
    assert (head(features).argmax(1) == labels).float().mean() > 0.9
    assert torch.equal(BroadHead(2, 2).w_e, head.w_e)
    assert not torch.equal(BroadHead(2, 2, seed=1).w_e, head.w_e)
    assert not list(head.parameters())


def test_one_class_an_utterance_and_both_directions():
    torch.manual_seed(0)
    model, x = BroadMamba((2, 3), num_classes=4, dim=8, depth=1, state=2), torch.randn(2, 5, 9)
    assert model(x).shape == (2, 4, 9)
    for changed in (0, 8):
        other = x.clone()
        other[:, :2, changed] += 1
        assert ((model(x) - model(other)).abs().amax((0, 1)) > 0).all()


def test_fusion_weighs_what_the_views_know():
    torch.manual_seed(0)
    model, x = BroadMamba((2, 3), num_classes=4, dim=8, depth=1, state=2), torch.randn(2, 5, 9)
    encoded = torch.stack([encoder(part) for encoder, part in zip(model.encoders, x.split((2, 3), 1), strict=True)])
    fused, logits = model.features(x)
    torch.testing.assert_close(fused, (encoded * guided_weights(logits)).sum(0))
    model.guided = False
    torch.testing.assert_close(model.features(x)[0], encoded.mean(0))


def test_the_loss_reaches_every_parameter():
    torch.manual_seed(0)
    model, x, labels = (
        BroadMamba((2, 3), num_classes=4, dim=8, depth=1, state=2),
        torch.randn(2, 5, 9),
        torch.ones(2, 9),
    )
    loss = model.loss(x, labels.long())
    alone = torch.stack([F.cross_entropy(each, labels.long()) for each in model.features(x)[1]])
    torch.testing.assert_close(loss, F.cross_entropy(model(x), labels.long()) + alone.mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_even_kernel_raises():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4; take 5"):
        BroadMamba(kernel_size=4)
