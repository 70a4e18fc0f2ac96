import pytest
import torch
import torch.nn.functional as F

from foveal.evidence.rivals.small import small_vit
from foveal.models.backbone.mobile_vmoe import ImageExperts, mobile_vmoe, routed_loss, routes, super_classes

SMALL = {"dim": 12, "depth": 2, "num_heads": 3, "patch_size": 8, "num_classes": 10, "grid": (4, 4)}


def test_without_experts_it_is_timms_vit():
    torch.manual_seed(0)
    ours = mobile_vmoe(**SMALL, expert_layers=0).eval()
    theirs = small_vit(dim=12, depth=2, num_heads=3, patch=8, fc_norm=False).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_each_picture_goes_to_its_experts_as_a_whole():
    torch.manual_seed(0)
    layer, x = ImageExperts(6, 9, num_experts=4, top_k=2), torch.randn(7, 5, 6)
    with torch.no_grad():
        layer.router.weight.mul_(20)
        for parameter in (layer.w1, layer.w2, layer.b1, layer.b2):
            parameter.normal_()
        wanted = []
        for picture in x:
            p = layer.router(picture.mean(0)).softmax(0)
            chosen = p.argsort(descending=True)[:2].tolist()
            wanted.append(
                sum(
                    p[e] * F.linear(F.gelu(F.linear(picture, layer.w1[e], layer.b1[e])), layer.w2[e], layer.b2[e])
                    for e in chosen
                )
            )
        torch.testing.assert_close(layer(x), torch.stack(wanted), rtol=1e-5, atol=1e-4)


def test_super_classes_are_those_confused_most():
    confusion = torch.diag(torch.full((6,), 80.0))
    for a, b, count in ((0, 3, 15), (1, 4, 10), (4, 5, 8), (2, 3, 1)):
        confusion[a, b] = count
    assert super_classes(confusion, 3).tolist() == [0, 1, 2, 0, 1, 1]
    assert super_classes(confusion, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert super_classes(confusion, 1).tolist() == [0] * 6


def test_rates_count_and_not_the_number_of_pictures():
    confusion = torch.tensor([[1000.0, 0.0, 100.0], [0.0, 5.0, 5.0], [0.0, 0.0, 10.0]])
    assert super_classes(confusion, 2).tolist() == [0, 1, 1]


def test_routers_learn_super_classes_and_only_the_chosen_experts_learn():
    torch.manual_seed(0)
    model = mobile_vmoe(**SMALL, num_experts=3, expert_layers=1)
    labels, groups = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 1, 2, *[0] * 6])
    with routes(model) as scores:
        logits = model(torch.randn(4, 3, 32, 32))
    assert [tuple(s.shape) for s in scores] == [(4, 3)]
    loss = routed_loss(logits, scores, labels, groups, weight=0.5)
    wanted = F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(scores[0], torch.tensor([0, 1, 1, 2]))
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(routed_loss(logits, [], labels, groups), F.cross_entropy(logits, labels))
    loss.backward()
    used = scores[0].argmax(1).unique().tolist()
    learnt = model.blocks[1].mlp.w1.grad.flatten(1).any(1).nonzero().flatten().tolist()
    assert learnt == used
    with routes(model) as again:
        pass
    model(torch.randn(1, 3, 32, 32))
    assert not again  # outside the context nothing is collected


@pytest.mark.dear("torch.export traces in Python")
@pytest.mark.parametrize("top_k", [1, 2])
def test_an_exported_graph_chooses_as_the_network_does(top_k):
    torch.manual_seed(0)
    layer = ImageExperts(6, 9, num_experts=4, top_k=top_k).eval()
    with torch.no_grad():
        layer.router.weight.mul_(20)
    program, x = torch.export.export(layer, (torch.randn(7, 5, 6),)), torch.randn(7, 5, 6)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_no_pictures_are_no_pictures():
    assert ImageExperts(6, 9)(torch.zeros(0, 5, 6)).shape == (0, 5, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: super_classes(torch.ones(2, 3), 1), r"confusion must be \(classes, classes\), got \(2, 3\)"),
        (lambda: super_classes(torch.ones(3, 3), 4), "number must be in 1…3, the number of classes, got 4"),
        (lambda: mobile_vmoe(depth=2, expert_layers=3), "expert_layers must be in 0…2, the number of blocks, got 3"),
        (lambda: ImageExperts(6, 9, num_experts=2, top_k=3), "top_k must be in 1…2, the number of experts, got 3"),
    ],
)
def test_what_does_not_fit_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
