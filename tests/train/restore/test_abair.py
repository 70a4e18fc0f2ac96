import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.train.restore.abair import ABAIR, SegmentationHead, cutmix, pretraining


class Restorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x):
        return x + self.last(F.relu(self.first(x)))


def made(*names, random=True):
    torch.manual_seed(0)
    model = ABAIR(Restorer(), names, rank=2, dim=4)
    if random:
        for adapter in model.adapters.values():
            for up in adapter.up:
                nn.init.normal_(up)
    return model


def test_at_the_start_it_is_the_frozen_restorer():
    model = made("noise", "blur", random=False)
    x = torch.rand(2, 3, 9, 7)
    assert torch.equal(model(x), torch.cat([model.network(one) for one in x.split(1)]))


@pytest.mark.parametrize("shape", [(3, 3, 9, 7), (1, 3, 5, 12)])
def test_a_blend_is_convolutions_beside_the_frozen_ones_with_gradients(shape):
    model = made("noise", "blur")
    x = torch.rand(shape)

    def convolved(layer, x, k, weights):
        out = layer(x)
        for weight, adapter in zip(weights, model.adapters.values(), strict=True):
            down = adapter.down[k].view(-1, x.shape[1], 3, 3)
            out = out + weight * F.conv2d(F.conv2d(x, down, padding=1), adapter.up[k][..., None, None])
        return out

    def reference(x):
        made = []
        for one, weights in zip(x.split(1), model.estimator(x).softmax(1), strict=True):
            hidden = F.relu(convolved(model.network.first, one, 0, weights))
            made.append(one + convolved(model.network.last, hidden, 1, weights))
        return torch.cat(made)

    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = model(x), reference(x)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), parameters) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_one_adapter_is_the_blend_of_weight_one_and_folds_exactly():
    model = made("noise", "blur", "haze")
    x = torch.rand(2, 3, 7, 9)
    for k, name in enumerate(model.adapters):
        assert torch.equal(model.adapted(x, name), model.folded(torch.eye(3)[k])(x))
    weights = torch.tensor([0.2, 0.5, 0.3])
    folded = model.folded(weights)
    assert sum(p.numel() for p in folded.parameters()) == sum(p.numel() for p in Restorer().parameters())
    alone = [model.folded(e).first.weight - model.network.first.weight for e in torch.eye(3)]
    expected = model.network.first.weight + sum(w * a for w, a in zip(weights, alone, strict=True))
    torch.testing.assert_close(folded.first.weight, expected)


def test_only_the_part_that_learns_changes():
    model = made("noise", "blur")
    for part, prefix in (("blur", "adapters.blur."), ("estimator", "estimator.")):
        assert model.learn_(part) is model
        learnt = {name for name, p in model.named_parameters() if p.requires_grad}
        assert learnt
        assert all(name.startswith(prefix) for name in learnt)
    assert not model.train().network.training
    assert model.estimator.training


def test_a_new_degradation_leaves_the_others_and_the_estimator_s_old_outputs():
    model = made("noise", "blur")
    x = torch.rand(2, 3, 8, 8)
    before, logits = [model.adapted(x, n) for n in ("noise", "blur")], model.estimator(x)
    model.add("rain")
    assert [*model.adapters] == ["noise", "blur", "rain"]
    assert all(torch.equal(model.adapted(x, n), b) for n, b in zip(("noise", "blur"), before, strict=True))
    torch.testing.assert_close(model.estimator(x)[:, :2], logits)
    assert torch.equal(model.adapted(x, "rain"), model.network(x))


def test_cutmix_has_one_kind_outside_and_one_inside():
    x = torch.rand(4, 3, 17, 13)
    given, labels = cutmix(x, ("noise", "haze", "holes"), torch.Generator().manual_seed(2))
    again, _ = cutmix(x, ("noise", "haze", "holes"), torch.Generator().manual_seed(2))
    assert torch.equal(given, again)
    assert given.shape == x.shape
    assert labels.shape == (4, 17, 13)
    for one in labels:
        assert len(one.unique()) <= 2
        other = one != one[0, 0]
        assert any(torch.equal(m, m.any(1)[:, None] & m.any(0)) for m in (other, ~other))
    assert any(len(one.unique()) == 2 for one in labels)


def test_pretraining_adds_the_segmentation_of_the_last_features():
    torch.manual_seed(0)
    network, head = Restorer(), SegmentationHead(6, 2)
    x, y, labels = torch.rand(2, 3, 8, 6), torch.rand(2, 3, 8, 6), torch.randint(2, (2, 8, 6))
    features = F.relu(network.first(x))
    expected = F.l1_loss(network(x), y) + 0.1 * F.cross_entropy(head.layers(features), labels)
    torch.testing.assert_close(pretraining(network, head, (x, y, labels), last="last", weight=0.1), expected)
    assert not network.last._forward_pre_hooks


def test_errors():
    with pytest.raises(ValueError, match="ABAIR adapts convolutions, and the network has none"):
        ABAIR(nn.Identity(), ("noise",))
    model = made("noise", "blur")
    with pytest.raises(ValueError, match="'blur' has an adapter; the degradations are noise, blur"):
        model.add("blur")
    with pytest.raises(ValueError, match="no part is called 'rain'; choose estimator or one of noise, blur"):
        model.learn_("rain")
